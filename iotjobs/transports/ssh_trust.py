"""Whom SSH connects to, with which key, and which host keys it believes.

There is no trust on first use: a host without a key on record is refused before a connection is
made, and nothing here ever passes `None` as the known hosts.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from iotjobs.domain.entities import SshCredential
from iotjobs.domain.errors import (
    BadAnswer,
    ConfigurationError,
    CredentialsRefused,
    DeliveryError,
    DeviceUnreachable,
    HostKeyChanged,
    HostKeyUnknown,
    LinkLost,
)

# Order by cost (measured): curve25519 before NIST before finite fields; GCM before ChaCha (Dropbear
# has no GCM). No SHA-1 RSA anywhere.
KEX_ALGS = (
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group-exchange-sha256",
    "diffie-hellman-group14-sha256",
)
ENCRYPTION_ALGS = (
    "aes128-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
MAC_ALGS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)
HOST_KEY_ALGS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
HOST_CERT_ALGS = tuple(f"{name}-cert-v01@openssh.com" for name in HOST_KEY_ALGS)
SIGNATURE_ALGS = (*HOST_KEY_ALGS, "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com")


@dataclass(frozen=True, slots=True)
class SshTarget:
    """A device as SSH sees it.

    Attributes:
        key: the object's id; connections are pooled under it.
        host: name or address.
        port: TCP port.
        username: login on the device.
        credential: how to log in.
        host_keys: trusted lines, each an OpenSSH public key, or `@cert-authority KEY`, or
            `@revoked KEY`, without host patterns.
        jump: connect through this one.
    """

    key: str
    host: str
    username: str
    credential: SshCredential
    port: int = 22
    host_keys: tuple[str, ...] = ()
    jump: SshTarget | None = None

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def place(self) -> str:
        """Addresses on the way: two targets with the same are the same device."""
        return self.address if self.jump is None else f"{self.address} via {self.jump.place}"


@dataclass(frozen=True, slots=True)
class HostKey:
    """A host key as a host showed it: the line that would be pinned, and its fingerprint."""

    line: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Trust:
    """The keys on record for one target, from its own lines and the site's files."""

    pinned: tuple[asyncssh.SSHKey, ...]
    authorities: tuple[asyncssh.SSHKey, ...]
    revoked: tuple[asyncssh.SSHKey, ...]

    @property
    def known_hosts(self) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
        """In asyncssh's form: three lists that it matches without patterns; never None."""
        return list(self.pinned), list(self.authorities), list(self.revoked)

    @property
    def host_key_algs(self) -> list[str]:
        """Algorithms to ask for, those of a pinned key first.

        A host with several keys would otherwise show one that is not pinned. They are always
        named: Dropbear 2022.83 with only an ed25519 key dies on asyncssh's own list.
        """
        pinned = {name.decode() for key in self.pinned for name in key.sig_algorithms}
        plain = sorted(HOST_KEY_ALGS, key=lambda name: name not in pinned)
        return [*HOST_CERT_ALGS, *plain] if self.authorities else plain


class TrustStore:
    """The site's known hosts file, joined with each target's own lines; without either its authorities.

    What is on record for one host is narrower than a signature of an authority, so it stands alone.
    """

    def __init__(self, known_hosts_file: Path | None = None, host_authorities: tuple[str, ...] = ()) -> None:
        self._file = known_hosts_file
        self._read: tuple[tuple[int, int], asyncssh.SSHKnownHosts] | None = None
        self._authorities = tuple(_public_key(line) for line in host_authorities)
        self._parsed: dict[tuple[str, ...], Trust] = {}

    def of(self, target: SshTarget) -> Trust:
        """All keys on record for a target.

        Raises:
            HostKeyUnknown: there is none, or a line of the target's cannot be read.
        """
        own = self._own(target.host_keys, target)
        pinned, authorities, revoked = list(own.pinned), list(own.authorities), list(own.revoked)
        site = self._site()
        if site is not None:
            found = site.match(target.host, "", target.port if target.port != 22 else None)
            pinned += found[0]
            authorities += found[1]
            revoked += found[2]
        if not pinned and not authorities:
            authorities += self._authorities
        if not pinned and not authorities:
            raise HostKeyUnknown(
                f"no trusted host key is on record for {target.address}: scan it, compare its fingerprint "
                "with the device's own, and trust it; nothing was sent"
            )
        return Trust(tuple(pinned), tuple(authorities), tuple(revoked))

    def _own(self, lines: tuple[str, ...], target: SshTarget) -> Trust:
        found = self._parsed.get(lines)
        if found is None:
            kinds: dict[str, list[asyncssh.SSHKey]] = {"": [], "@cert-authority": [], "@revoked": []}
            for line in lines:
                marker, _, rest = line.strip().partition(" ") if line.startswith("@") else ("", "", line)
                try:
                    kinds[marker].append(_public_key(rest))
                except (KeyError, asyncssh.KeyImportError) as error:
                    raise HostKeyUnknown(
                        f"a host key on record for {target.address} cannot be read; nothing was sent"
                    ) from error
            if len(self._parsed) > 10_000:
                self._parsed.clear()
            found = self._parsed[lines] = Trust(*(tuple(keys) for keys in kinds.values()))
        return found

    def _site(self) -> asyncssh.SSHKnownHosts | None:
        """The file, read again when its time or size changed."""
        if self._file is None:
            return None
        try:
            state = self._file.stat()
            stamp = (state.st_mtime_ns, state.st_size)
            if self._read is None or self._read[0] != stamp:
                self._read = stamp, asyncssh.read_known_hosts(str(self._file))
        except (OSError, ValueError) as error:
            raise HostKeyUnknown(f"the known hosts file {self._file} cannot be read: {error}") from error
        return self._read[1]


class HostKeyWatch(asyncssh.SSHClient):
    """Remembers what asyncssh asked about a host's key, and never says yes."""

    def __init__(self) -> None:
        self.shown: asyncssh.SSHKey | None = None
        self.authority: asyncssh.SSHKey | None = None
        self.connection: asyncssh.SSHClientConnection | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """The socket is asyncssh's from here on."""
        self.connection = conn

    def validate_host_public_key(self, _host: str, _addr: str, _port: int, key: asyncssh.SSHKey) -> bool:
        """Asked for a key that is not pinned."""
        self.shown = key
        return False

    def validate_host_ca_key(self, _host: str, _addr: str, _port: int, key: asyncssh.SSHKey) -> bool:
        """Asked for a certificate of an authority that is not trusted."""
        self.authority = key
        return False

    @property
    def greeted(self) -> bool:
        """The host told its version: it is an SSH server and took our connection."""
        return bool(self.connection and self.connection.get_extra_info("server_version"))


def host_key_refused(
    error: asyncssh.HostKeyNotVerifiable, target: SshTarget, trust: Trust, watch: HostKeyWatch
) -> HostKeyChanged | HostKeyUnknown:
    """Why a host's key was not believed, with both fingerprints."""
    where = target.address
    known = ", ".join(key.get_fingerprint() for key in trust.pinned)
    if watch.shown is not None:
        shown = watch.shown.get_fingerprint()
        if trust.pinned:
            return HostKeyChanged(
                f"{where} showed the host key {shown}; trusted is {known}. Nothing was sent"
            )
        return HostKeyUnknown(
            f"{where} showed the host key {shown}, which no trusted authority has signed. Nothing was sent"
        )
    if watch.authority is not None:
        signer = watch.authority.get_fingerprint()
        trusted = ", ".join(key.get_fingerprint() for key in trust.authorities)
        return HostKeyChanged(
            f"{where} showed a host certificate signed by {signer}; trusted is {trusted or known}. Nothing was sent"
        )
    if "revoked" in error.reason:
        revoked = ", ".join(key.get_fingerprint() for key in trust.revoked)
        return HostKeyChanged(
            f"{where} showed a revoked host key (revoked: {revoked}; trusted: {known or 'an authority'}). "
            "Nothing was sent"
        )
    return HostKeyChanged(f"the host certificate of {where} is refused: {error.reason}. Nothing was sent")


def host_key(key: asyncssh.SSHKey) -> HostKey:
    """A host's key as a line to pin, without a comment."""
    algorithm, data = key.export_public_key().decode().split()[:2]
    return HostKey(f"{algorithm} {data}", key.get_fingerprint())


def delivery_error(error: Exception, where: str, *, sent: bool) -> DeliveryError:
    """Ours for any error that asyncssh, the socket or the clock raised.

    Args:
        error: what was raised.
        where: the device's address, for the message.
        sent: the command had left, at least in part that could have run.
    """
    reason = _reason(error)
    match error:
        case asyncssh.PermissionDenied() | asyncssh.IllegalUserName() | asyncssh.PasswordChangeRequired():
            return CredentialsRefused(f"{where} refused the login: {reason}", maybe_executed=sent)
        case asyncssh.KeyImportError() | asyncssh.KeyEncryptionError() | asyncssh.KeyExportError():
            return CredentialsRefused(
                f"the private key for {where} cannot be used: {reason}", maybe_executed=sent
            )
        case asyncssh.KeyGenerationError() | asyncssh.ConfigParseError():
            return CredentialsRefused(f"the login for {where} cannot be used: {reason}", maybe_executed=sent)
        case asyncssh.HostKeyNotVerifiable():
            return HostKeyChanged(f"the host key of {where} is refused: {reason}", maybe_executed=sent)
        case (
            asyncssh.KeyExchangeFailed()
            | asyncssh.MACError()
            | asyncssh.CompressionError()
            | asyncssh.ProtocolError()
            | asyncssh.ProtocolNotSupported()
            | asyncssh.ServiceNotAvailable()
        ):
            return BadAnswer(f"{where} does not speak SSH as we do: {reason}", maybe_executed=sent)
        case TimeoutError() if not sent:
            return DeviceUnreachable(f"{where} did not answer in time", maybe_executed=False)
        case socket.gaierror():
            return DeviceUnreachable(f"the address {where} cannot be resolved: {reason}", maybe_executed=sent)
    if sent:
        return LinkLost(f"the connection to {where} ended before the command's end was told: {reason}")
    return DeviceUnreachable(f"{where} cannot be reached: {reason}")


def _reason(error: Exception) -> str:
    text = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    if isinstance(error, OSError) and (number := error.errno or 0) > 0:
        text = os.strerror(number)  # asyncio has its own call in the place of these words
    return " ".join(str(text).split())[:300] or type(error).__name__


def read_authorities(path: Path) -> tuple[str, ...]:
    """The public keys of a file of host authorities: one a line, as `ssh-keygen` wrote it.

    Raises:
        ConfigurationError: it cannot be read, holds none, or a line is something else; tells no line's text.
    """
    name = "IOTJOBS_SSH_HOST_CA_FILE"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{name}: {path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        try:
            _public_key(line)
        except ValueError as error:
            raise ConfigurationError(
                f"{name}: line {number} of {path} is no public key such as `ssh-ed25519 AAAA…`"
            ) from error
        found.append(line.strip())
    if not found:
        raise ConfigurationError(f"{name}: {path} holds no public key")
    return tuple(found)


def _public_key(line: str) -> asyncssh.SSHKey:
    return asyncssh.import_public_key(line.strip())
