"""Objects, links and classes as the deciding code sees them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Literal

# design: a thing's name is its user name and its topic level on the broker.
THING_NAME = re.compile(r"[a-zA-Z0-9:_-]{1,128}\Z")

NAME_CHARACTERS = 200
# Line and paragraph separators break lines in logs and terminals as control characters do.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def unfit_name(text: str) -> str | None:
    """Why this cannot be a name, of a property or anything else; None: it can. How long it is, is not looked at."""
    if _CONTROLS.search(text):
        return "control characters and line breaks are not allowed here"
    return None if text.strip() else "blanks alone are not enough"


class OwnerType(IntEnum):
    """The documented numbers of the job record (seed 002)."""

    OBJECT = 1
    LINK = 2


class PropertyType(StrEnum):
    """What may set a property, and what setting it does."""

    INFO = "info"
    READONLY = "readonly"
    READWRITE = "readwrite"  # a person's write runs the owner's `run_on_property_change` operations


@dataclass(frozen=True, slots=True)
class SshAddress:
    """Where and as whom an object is reached over SSH.

    Attributes:
        host_key: trusted OpenSSH public-key lines, one a line, or None (then known_hosts or a
            host CA of the site must know the host).
        jump_id: the object to go through, or None.
    """

    host: str
    port: int = 22
    username: str | None = None
    credential_id: str | None = None
    host_key: str | None = None
    jump_id: str | None = None


CredentialKind = Literal["ssh_key", "password", "ssh_agent"]


@dataclass(frozen=True, slots=True)
class SshCredential:
    """How to log in, with its secrets, which are in no `repr`.

    Attributes:
        id: with `version` the key under which parsed keys and options are kept.
        version: grows with each change.
        kind: which of the fields below counts.
        username: for addresses that name none.
        private_key: OpenSSH or PEM text.
        passphrase: of the private key.
        password: for `password`.
    """

    id: str
    version: int = 1
    kind: CredentialKind = "ssh_key"
    username: str | None = None
    private_key: str | None = field(default=None, repr=False)
    passphrase: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Entity:
    """An object or a link, its class's properties merged in.

    Attributes:
        properties: effective values: the class's defaults under the entity's own.
        source: a link's first end; None for an object.
        target: a link's second end; None for an object.
    """

    id: str
    owner_type: OwnerType
    name: str
    class_id: str | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)
    thing: str | None = None
    ssh: SshAddress | None = None
    source: Entity | None = None
    target: Entity | None = None

    def end(self, run_on: str) -> Entity:
        """The object that a command runs on: the entity itself, or a link's `run_on` end."""
        if self.owner_type is OwnerType.OBJECT:
            return self
        end = self.source if run_on == "source" else self.target
        assert end is not None, "a link is read with both ends"
        return end


def macro_values(entity: Entity) -> dict[str, Any]:
    """The macros that an entity gives: `id name properties`, for links `source` and `target`."""
    values: dict[str, Any] = {"id": entity.id, "name": entity.name, "properties": entity.properties}
    if entity.source is not None and entity.target is not None:
        for end_name, end in (("source", entity.source), ("target", entity.target)):
            values[end_name] = {"id": end.id, "name": end.name, "properties": end.properties}
    return values
