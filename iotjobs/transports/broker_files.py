"""The text of Mosquitto's configuration, password and ACL files; each value checked before it is written.

The files have a line for each statement and no quoting: a line break in a name would be a right.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iotjobs.domain.errors import BadRequest, ConfigurationError
from iotjobs.transports.topics import ROOT, check_own_filter, check_thing_name, is_thing_name

# Mosquitto's own figure (mosquitto_passwd 2.0.11). Its only thread computes it at each login, and once
# more for every client that is connected when the files are read again (0.1 ms; 1,000 would be 0.7 ms),
# so the strength has to be the password's: make them random.
_ITERATIONS = 101
_SALT_BYTES = 12  # what Mosquitto 2.0 reads, no more and no less

_HASH = re.compile(r"\$7\$[1-9][0-9]{0,5}\$[A-Za-z0-9+/]{16}\$[A-Za-z0-9+/]{86}==")
_SERVICE = re.compile(r"[a-zA-Z0-9._@-]{1,64}")
_HOST = re.compile(r"[a-zA-Z0-9.-]{1,253}")


@dataclass(frozen=True, slots=True)
class Credential:
    """One thing's login and rights.

    Attributes:
        thing: its name; it logs in as `broker_username(thing)`.
        password_hash: from `hash_password`.
        read: filters it may receive beside its own, none of which reach below `iotjobs/` or `$`.
        write: filters of topics it may publish on beside its own, likewise.
    """

    thing: str
    password_hash: str = field(repr=False)
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Listener:
    """Where Mosquitto listens, and its limits; see `BrokerProcess`."""

    bind: str
    port: int
    max_packet_bytes: int
    max_queued_bytes: int
    autosave_changes: int

    def __post_init__(self) -> None:
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(self.bind)
            return
        if _HOST.fullmatch(self.bind) is None:
            raise ConfigurationError("the broker's bind address is an IP address or a host name")


def is_reachable(host: str) -> bool:
    """Whether a host name or an address can be that of this host for others."""
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(host).is_loopback
    return _HOST.fullmatch(host) is not None and host != "localhost"


def broker_username(thing: str) -> str:
    """What a thing logs in as: its name, but `.` for `:`, which ends the name in Mosquitto's password file.

    No thing name has a dot, so no two things share a login.
    """
    return check_thing_name(thing).replace(":", ".")


def hash_password(password: str) -> str:
    """The password as it stands in Mosquitto's password file (`$7$`: PBKDF2 with SHA-512).

    Give it random passwords of 128 bits: the hash is a quick one, see `_ITERATIONS`.
    """
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def check_service_username(username: str) -> str:
    """Give our own login's name back.

    Raises:
        ConfigurationError: a thing could have that name, and with it our rights.
    """
    if _SERVICE.fullmatch(username) is None or is_thing_name(username):
        raise ConfigurationError("the service's broker login has letters, digits, -, _ and a dot or an @")
    return username


def check_credentials(credentials: Iterable[Credential], service: str) -> tuple[Credential, ...]:
    """Give the credentials back.

    Raises:
        BadRequest: one cannot stand in the files, or two would log in as one.
    """
    checked = tuple(credentials)
    seen = {service}
    for credential in checked:
        username = broker_username(credential.thing)
        if username in seen:
            raise BadRequest(f"there is already a broker login {username!r}", field="thing_name")
        seen.add(username)
        if _HASH.fullmatch(credential.password_hash) is None:
            raise BadRequest("not a password hash that Mosquitto reads", field="password_hash")
        for topic_filter in credential.read:
            check_own_filter(topic_filter, field="mqtt.read")
        for topic_filter in credential.write:
            check_own_filter(topic_filter, field="mqtt.write")
    return checked


def password_text(credentials: Sequence[Credential], service: str, service_hash: str) -> str:
    """The password file: `name:hash` a line."""
    lines = [f"{service}:{service_hash}"]
    lines += [f"{broker_username(credential.thing)}:{credential.password_hash}" for credential in credentials]
    return "\n".join(lines) + "\n"


def acl_text(credentials: Sequence[Credential], service: str) -> str:
    """The ACL file: patterns for everyone, then ourselves, then what single things may beside."""
    lines = [f"pattern readwrite {ROOT}/%u/#", "pattern readwrite $aws/things/%u/#"]
    # A leading wildcard never matches `$`: each such tree is named.
    lines += ["", f"user {service}", "topic readwrite #", "topic readwrite $aws/#", "topic read $SYS/#"]
    for credential in credentials:
        rights = _rights(credential)
        if rights:
            lines += ["", f"user {broker_username(credential.thing)}", *rights]
    return "\n".join(lines) + "\n"


def _rights(credential: Credential) -> list[str]:
    thing = credential.thing
    rights: list[str] = []
    if broker_username(thing) != thing:  # %u is the login's name, which is not this thing's
        rights += [f"topic readwrite {ROOT}/{thing}/#", f"topic readwrite $aws/things/{thing}/#"]
    rights += [f"topic read {topic_filter}" for topic_filter in credential.read]
    rights += [f"topic write {topic_filter}" for topic_filter in credential.write]
    return rights


def configuration_text(directory: Path, listener: Listener, *, as_root: bool) -> str:
    """The configuration file.

    Raises:
        ConfigurationError: the directory's name cannot stand in it.
    """
    if not str(directory).isprintable():
        raise ConfigurationError("the broker's directory has a name with control characters")
    directory = directory.absolute()
    lines = [
        f"listener {listener.port} {listener.bind}",
        "allow_anonymous false",
        f"password_file {directory}/passwords",
        f"acl_file {directory}/acl",
        "persistence true",
        f"persistence_location {directory}/",
        "autosave_on_changes true",
        f"autosave_interval {listener.autosave_changes}",
        "persistent_client_expiration 60d",
        "set_tcp_nodelay true",
        # The default of 1,000 messages dropped 1,980 of 3,000 for a consumer that had stalled. Bytes are the
        # limit; but 0 for "any number" makes 2.0.11 close the connection at each publish that the ACL denies.
        "max_queued_messages 100000000",
        f"max_queued_bytes {listener.max_queued_bytes}",
        "max_inflight_messages 256",
        f"max_packet_size {listener.max_packet_bytes}",
        "connection_messages false",
        "log_dest stderr",
        "log_timestamp false",
        "log_type error",
        "log_type warning",
        "log_type notice",
    ]
    if as_root:
        # Dropping privileges would clear the parent-death signal and lose our 0600 files.
        lines.append("user root")
    return "\n".join(lines) + "\n"


def replace_file(path: Path, text: str) -> None:
    """Write a file that only we can read, whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    new.replace(path)
