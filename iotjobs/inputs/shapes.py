"""The shapes of definitions as they come in and go out; every limit on them stands here.

Strict: a value of another type is an error, never turned into one that fits, and an unknown member
is an error too. A stored definition is always a whole `…In` with its defaults filled in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
)

from iotjobs.domain.entities import NAME_CHARACTERS, THING_NAME, unfit_name
from iotjobs.domain.errors import RequestError
from iotjobs.inputs.keys import host_key_lines
from iotjobs.transports import topics

SCRIPT_BYTES = 256 * 1024
YEAR_S = 366 * 86_400


def _visible(text: str) -> str:
    if (why := unfit_name(text)) is not None:
        raise ValueError(why)
    return text


def said_by(check: Callable[[str], object]) -> AfterValidator:
    """A check of ours as one of pydantic's: what it gives back takes the value's place."""

    def run(text: str) -> object:
        try:
            return check(text)
        except RequestError as error:
            raise ValueError(error.detail) from error

    return AfterValidator(run)


def without_nul(text: str) -> str:
    """Refuse the one character that no argument, variable or script can hold."""
    if "\0" in text:
        raise ValueError("a NUL character cannot be sent to a shell")
    return text


def _script_size(text: str) -> str:
    if len(text) * 4 > SCRIPT_BYTES and len(text.encode()) > SCRIPT_BYTES:
        raise ValueError(f"a script has at most {SCRIPT_BYTES} bytes")
    return text


def _host_keys(text: str) -> str:
    return host_key_lines(text, field="host_key")


# What a text of the wrong form is told to be, by the pattern that it does not match.
FORMS: dict[str, str] = {}


def formed(pattern: str, words: str) -> StringConstraints:
    """A text that matches a pattern as a whole; `words` say so to who sends another."""
    whole = f"^{pattern.removesuffix(chr(92) + 'Z')}$"
    FORMS[whole] = words
    return StringConstraints(pattern=whole)


_Plain = AfterValidator(_visible)
Name = Annotated[str, StringConstraints(min_length=1, max_length=NAME_CHARACTERS), _Plain]
Reference = Annotated[str, StringConstraints(min_length=1, max_length=64), _Plain]
ThingName = Annotated[str, formed(THING_NAME.pattern, "1 to 128 letters, digits, `:`, `_` and `-`")]
Login = Annotated[
    str, formed(r"[^\s\x00-\x20\x7f-\x9f:]{1,100}", "1 to 100 characters without blanks and colons")
]
RemoteUser = Annotated[
    str,
    formed(
        r"[A-Za-z0-9_.][A-Za-z0-9_.@\\-]{0,127}",
        r"1 to 128 letters, digits, `_`, `.`, `@`, `\` and `-`, and no `-` first",
    ),
]
Host = Annotated[
    str,
    formed(
        r"[A-Za-z0-9_.:\[\]%][A-Za-z0-9_.:\[\]%-]{0,252}",
        "a host name or an address alone: the port and the user have members of their own",
    ),
]
QueueName = Annotated[str, formed("[A-Za-z0-9_-]{1,64}", "1 to 64 letters, digits, `_` and `-`")]
Filter = Annotated[str, StringConstraints(max_length=1000), said_by(topics.check_own_filter)]
HostKeys = Annotated[str, StringConstraints(max_length=20_000), said_by(_host_keys)]
ScriptText = Annotated[
    str, StringConstraints(min_length=1), AfterValidator(_script_size), AfterValidator(without_nul)
]
Interpreter = Literal["sh", "bash", "python3", "perl", "node", "raw"]
RoleName = Literal["viewer", "operator", "engineer", "admin"]
Properties = Annotated[dict[Name, Any], Field(max_length=1000)]
PropertyTypes = Annotated[dict[Name, Literal["info", "readonly", "readwrite"]], Field(max_length=1000)]
Tags = Annotated[list[Name], Field(max_length=100)]


class Shape(BaseModel):
    """What all shapes have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True, allow_inf_nan=False)


class Stored(Shape):
    """What every definition is answered with beside its own members."""

    id: str
    version: int = Field(description="the ETag without its quotes; grows with each change")
    created_at: str = Field(description="RFC 3339, UTC")


class ClassBody(Shape):
    """A template of entities."""

    name: Name
    tags: Tags = []
    properties: Properties = {}
    property_types: PropertyTypes = {}
    no_data_after_s: Annotated[float, Field(gt=0, le=YEAR_S)] | None = None


class MqttBody(Shape):
    """Topics that the object's device may use beside `iotjobs/{thing}/#`."""

    read: Annotated[list[Filter], Field(max_length=100)] = []
    write: Annotated[list[Filter], Field(max_length=100)] = []


class SshBody(Shape):
    """Where and as whom the object is reached over SSH."""

    host: Host
    port: Annotated[int, Field(ge=1, le=65_535)] = 22
    username: RemoteUser | None = None
    credential_id: Reference | None = None
    host_key: HostKeys | None = None
    jump_id: Reference | None = None


class ObjectBody(Shape):
    """A managed thing."""

    name: Name
    class_id: Reference | None = None
    thing: ThingName | None = None
    external_id: Name | None = None
    tags: Tags = []
    properties: Properties = {}
    property_types: PropertyTypes = {}
    no_data_after_s: Annotated[float, Field(gt=0, le=YEAR_S)] | None = None
    mqtt: MqttBody = MqttBody()
    ssh: SshBody | None = None


class LinkBody(Shape):
    """A connection from one object to another."""

    name: Name
    class_id: Reference | None = None
    source: Reference
    target: Reference
    tags: Tags = []
    properties: Properties = {}
    property_types: PropertyTypes = {}


class ScriptBody(Shape):
    """A text of the script repository."""

    name: Name
    interpreter: Interpreter = "sh"
    text: ScriptText


class CredentialBody(Shape):
    """How to log in; the secrets are never given back."""

    name: Name
    kind: Literal["ssh_key", "password", "ssh_agent"]
    username: RemoteUser | None = None
    private_key: Annotated[str, StringConstraints(min_length=1, max_length=65_536)] | None = None
    passphrase: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    password: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None


class HostKeyBody(Shape):
    """The host keys to trust from now on; null trusts none."""

    host_key: HostKeys | None


class UserBody(Shape):
    """Somebody who may call; without a password only tokens let them in."""

    login: Login
    password: Annotated[str, StringConstraints(min_length=8, max_length=1024)] | None = None
    role: RoleName


class UserPatch(Shape):
    """What can change of a user; what is absent stays."""

    password: Annotated[str, StringConstraints(min_length=8, max_length=1024)] | None = None
    role: RoleName | None = None

    @field_validator("password", "role")
    @classmethod
    def _given(cls, value: str | None) -> str:
        if value is None:
            raise ValueError("null is not possible: leave it out to keep what is there")
        return value


class TokenBody(Shape):
    """A new token; `expires_at` is RFC 3339 with a zone, null never expires."""

    name: Name
    expires_at: str | None = None


T = TypeVar("T")


class Listed(Shape, Generic[T]):
    """A part of a list; `next` is the `cursor` of the following part, null at the end."""

    items: list[T]
    next: str | None


class FieldProblem(Shape):
    """One thing wrong with one field."""

    field: str
    message: str


class Problem(Shape):
    """What every error is answered with (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    instance: str
    request_id: str
    errors: list[FieldProblem]


class ClassOut(ClassBody, Stored):
    """A class as it is stored."""


class ObjectOut(ObjectBody, Stored):
    """An object as it is stored."""


class LinkOut(LinkBody, Stored):
    """A link as it is stored."""


class ScriptOut(ScriptBody, Stored):
    """A script as it is stored."""


class CredentialOut(Stored):
    """A credential as it may be shown."""

    name: str
    kind: str
    username: str | None


class Who(BaseModel):
    """A user, as records keep them."""

    id: str
    name: str | None = Field(description="the login at that time")


class UserOut(Stored):
    """A user as they may be shown."""

    login: str
    role: RoleName
    has_password: bool


class TokenOut(Shape):
    """A token as it may be shown."""

    number: int
    name: str
    created_at: str
    expires_at: str | None


class NewTokenOut(TokenOut):
    """A token that was just made; its text is shown this once."""

    token: str
