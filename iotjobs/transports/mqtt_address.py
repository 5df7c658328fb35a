"""Where a broker is, how we introduce ourselves to it, and why there is no connection."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import unquote, urlsplit

from iotjobs.domain.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is and how to log in; prints without the password."""

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: Path | None = None

    @classmethod
    def parse(cls, url: str, *, ca_file: Path | None = None) -> BrokerAddress:
        """Read `mqtt://user:pass@host:port` or `mqtts://…`.

        Raises:
            ConfigurationError: another scheme or shape; its message has no part of the URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError("the broker's URL has a port or host that cannot be read") from error
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise ConfigurationError("the broker's URL is mqtt://host:port or mqtts://host:port")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ConfigurationError(
                "the broker's URL ends after the port (is a / or ? in the password %-coded?)"
            )
        tls = parts.scheme == "mqtts"
        return cls(
            host=parts.hostname,
            port=port or (8883 if tls else 1883),
            username=_unquoted(parts.username),
            password=_unquoted(parts.password),
            tls=tls,
            ca_file=ca_file,
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def _unquoted(part: str | None) -> str | None:
    return None if part is None else unquote(part)


@dataclass(frozen=True, slots=True)
class Session:
    """How we introduce ourselves in CONNECT.

    Without a Maximum Packet Size: Mosquitto 2.0.11 counts what it then throws away as unacknowledged
    for ever, so a few large messages would end all delivery (tried).

    Attributes:
        client_id: never logged: who knows it can take the session over.
        clean_start: forget what the broker kept for the id.
        expiry_s: how long the broker keeps the session after the connection's end.
        receive_maximum: unacknowledged QoS 1 messages that the broker may send us at once.
    """

    client_id: str = field(repr=False)
    clean_start: bool = True
    expiry_s: int = 0
    receive_maximum: int = 256


class Refusal(StrEnum):
    """Why there is no connection."""

    UNREACHABLE = "unreachable"
    CREDENTIALS = "credentials"
    TAKEN_OVER = "taken over"  # another client came with our client id


class ConnectionEnded(Exception):
    """The connection could not be made, or has ended.

    Attributes:
        refusal: what it means for the next try.
    """

    def __init__(self, why: str, refusal: Refusal = Refusal.UNREACHABLE) -> None:
        super().__init__(why)
        self.refusal = refusal
