"""The shapes of definitions as they come in and go out; every limit on them stands here.

Strict: a value of another type is an error, never turned into one that fits, and an unknown member
is an error too. A stored definition is always a whole `…In` with its defaults filled in.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from iotjobs.domain.entities import THING_NAME
from iotjobs.domain.errors import RequestError
from iotjobs.domain.operations import MESSAGE_LIMIT_BYTES
from iotjobs.inputs.keys import host_key_lines
from iotjobs.transports import topics

SCRIPT_BYTES = 256 * 1024
WEEK_S = 7 * 86_400
NINETY_DAYS_S = 90 * 86_400
YEAR_S = 366 * 86_400
MQTT_SECONDS = 2**32 - 1  # the message expiry interval has four bytes

# Line and paragraph separators break lines in logs and terminals as control characters do.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_ENV_RESERVED = ("IJ_", "IOTJOBS_")
_MACRO = re.compile(r"\{\{.*?\}\}")


def _visible(text: str) -> str:
    if _CONTROLS.search(text):
        raise ValueError("control characters and line breaks are not allowed here")
    if not text.strip():
        raise ValueError("blanks alone are not enough")
    return text


def _said_by(check: Callable[[str], object]) -> AfterValidator:
    """A check of ours as one of pydantic's: what it gives back takes the value's place."""

    def run(text: str) -> object:
        try:
            return check(text)
        except RequestError as error:
            raise ValueError(error.detail) from error

    return AfterValidator(run)


def _env_name(name: str) -> str:
    if not _ENV_NAME.match(name):
        raise ValueError("a variable's name has letters, digits and _, and no digit first")
    if name.startswith(_ENV_RESERVED):
        raise ValueError(f"names that begin with {' or '.join(_ENV_RESERVED)} are ours")
    return name


def _script_size(text: str) -> str:
    if len(text) * 4 > SCRIPT_BYTES and len(text.encode()) > SCRIPT_BYTES:
        raise ValueError(f"a script has at most {SCRIPT_BYTES} bytes")
    return text


def _message_size(message: Any) -> Any:
    size = len(message.encode() if isinstance(message, str) else msgspec.json.encode(message))
    if size > MESSAGE_LIMIT_BYTES:
        raise ValueError(f"a message has at most {MESSAGE_LIMIT_BYTES} bytes")
    return message


def _topic_with_macros(topic: str) -> str:
    topics.check_topic(_MACRO.sub("x", topic))
    return topic


def _host_keys(text: str) -> str:
    return host_key_lines(text, field="host_key")


_Plain = AfterValidator(_visible)
Name = Annotated[str, StringConstraints(min_length=1, max_length=200), _Plain]
Reference = Annotated[str, StringConstraints(min_length=1, max_length=64), _Plain]
ThingName = Annotated[str, StringConstraints(pattern=f"^{THING_NAME.pattern.removesuffix(chr(92) + 'Z')}$")]
Login = Annotated[str, StringConstraints(pattern=r"^[^\s\x00-\x20\x7f-\x9f:]{1,100}$")]
RemoteUser = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.][A-Za-z0-9_.@\\-]{0,127}$")]
RunAs = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")]
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:\[\]%][A-Za-z0-9_.:\[\]%-]{0,252}$")]
Filter = Annotated[str, StringConstraints(max_length=1000), _said_by(topics.check_own_filter)]
Topic = Annotated[str, StringConstraints(max_length=4000), _said_by(_topic_with_macros)]
HostKeys = Annotated[str, StringConstraints(max_length=20_000), _said_by(_host_keys)]
EnvName = Annotated[str, StringConstraints(max_length=200), AfterValidator(_env_name)]
ScriptText = Annotated[str, StringConstraints(min_length=1), AfterValidator(_script_size)]
Interpreter = Literal["sh", "bash", "python3", "perl", "node", "raw"]
RoleName = Literal["viewer", "operator", "engineer", "admin"]
Seconds = Annotated[float, Field(gt=0, le=WEEK_S)]
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


class ClassIn(Shape):
    """A template of entities."""

    name: Name
    tags: Tags = []
    properties: Properties = {}
    property_types: PropertyTypes = {}


class MqttIn(Shape):
    """Topics that the object's device may use beside `iotjobs/{thing}/#`."""

    read: Annotated[list[Filter], Field(max_length=100)] = []
    write: Annotated[list[Filter], Field(max_length=100)] = []


class SshIn(Shape):
    """Where and as whom the object is reached over SSH."""

    host: Host
    port: Annotated[int, Field(ge=1, le=65_535)] = 22
    username: RemoteUser | None = None
    credential_id: Reference | None = None
    host_key: HostKeys | None = None
    jump_id: Reference | None = None


class ObjectIn(Shape):
    """A managed thing."""

    name: Name
    class_id: Reference | None = None
    thing: ThingName | None = None
    external_id: Name | None = None
    tags: Tags = []
    properties: Properties = {}
    property_types: PropertyTypes = {}
    no_data_after_s: Annotated[float, Field(gt=0, le=YEAR_S)] | None = None
    mqtt: MqttIn = MqttIn()
    ssh: SshIn | None = None


class LinkIn(Shape):
    """A connection from one object to another."""

    name: Name
    class_id: Reference | None = None
    source: Reference
    target: Reference
    tags: Tags = []
    properties: Properties = {}
    property_types: PropertyTypes = {}


class ScriptIn(Shape):
    """A text of the script repository."""

    name: Name
    interpreter: Interpreter = "sh"
    text: ScriptText


class CredentialIn(Shape):
    """How to log in; the secrets are never given back."""

    name: Name
    kind: Literal["ssh_key", "password", "ssh_agent"]
    username: RemoteUser | None = None
    private_key: Annotated[str, StringConstraints(min_length=1, max_length=65_536)] | None = None
    passphrase: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    password: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None


class HostKeyIn(Shape):
    """The host keys to trust from now on; null trusts none."""

    host_key: HostKeys | None


class RetryIn(Shape):
    """When another attempt is made."""

    attempts: Annotated[int, Field(ge=1, le=100)] = 1
    on: Annotated[list[Literal["unreachable", "failed", "timed_out", "lost"]], Field(max_length=4)] = [
        "unreachable"
    ]
    backoff_s: Annotated[float, Field(ge=0, le=86_400)] = 2.0
    max_backoff_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0


Argument = Annotated[str, StringConstraints(max_length=65_536)]
Arguments = Annotated[list[Argument], Field(max_length=1000)]
Environment = Annotated[dict[EnvName, Argument], Field(max_length=1000)]


class ScriptParameters(Shape):
    """Exactly one of `text` and `script_id`; an `interpreter` of null is the script's own, else `sh`."""

    text: ScriptText | None = None
    script_id: Reference | None = None
    interpreter: Interpreter | None = None
    args: Arguments = []
    env: Environment = {}

    @model_validator(mode="after")
    def _own_text_is_for_sh(self) -> ScriptParameters:
        if self.text is not None and self.interpreter is None:
            self.interpreter = "sh"
        return self


class ProgramParameters(Shape):
    """A program on the device."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)]
    args: Arguments = []
    env: Environment = {}
    cwd: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None


class AnswerIn(Shape):
    """How long to wait for the device's answer."""

    within_s: Seconds = 30.0


class MqttParameters(Shape):
    """A message; `message` is text, or any JSON."""

    topic: Topic
    message: Annotated[Any, AfterValidator(_message_size)]
    qos: Annotated[int, Field(ge=0, le=1)] = 1
    retain: bool = False
    require_subscriber: bool = False
    expiry_s: Annotated[float, Field(gt=0, le=MQTT_SECONDS)] | None = None
    answer: AnswerIn | None = None


class _Operation(Shape):
    name: Name
    description: Annotated[str, StringConstraints(max_length=10_000)] = ""
    popup_result: bool = False
    run_on_property_change: bool = False
    via: Literal["auto", "ssh", "agent", "local"] = "auto"
    run_on: Literal["source", "target"] = "source"
    timeout_s: Seconds | None = None
    stall_s: Seconds | None = None
    kill_after_s: Annotated[float, Field(ge=0, le=3600)] = 5.0
    ttl_s: Annotated[float, Field(gt=0, le=NINETY_DAYS_S)] = 3600.0
    idempotent: bool = False
    concurrent: bool = False
    retry: RetryIn = RetryIn()
    queue: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = "mix"
    run_as: RunAs | None = None
    secret_args: Annotated[list[Name], Field(max_length=100)] = []


class ScriptOperation(_Operation):
    """Runs a script on the device."""

    type: Literal["script"]
    parameters: ScriptParameters


class ProgramOperation(_Operation):
    """Runs a program on the device."""

    type: Literal["program"]
    parameters: ProgramParameters


class MqttOperation(_Operation):
    """Publishes a message."""

    type: Literal["mqtt"]
    parameters: MqttParameters


OperationIn = Annotated[ScriptOperation | ProgramOperation | MqttOperation, Field(discriminator="type")]


class UserIn(Shape):
    """Somebody who may call; without a password only tokens let them in."""

    login: Login
    password: Annotated[str, StringConstraints(min_length=8, max_length=1024)] | None = None
    role: RoleName


class UserPatch(Shape):
    """What can change of a user."""

    password: Annotated[str, StringConstraints(min_length=8, max_length=1024)] | SkipJsonSchema[None] = None
    role: RoleName | SkipJsonSchema[None] = None


class TokenIn(Shape):
    """A new token; `expires_at` is RFC 3339 with a zone, null never expires."""

    name: Name
    expires_at: str | None = None


class ClassOut(ClassIn, Stored):
    """A class as it is stored."""


class ObjectOut(ObjectIn, Stored):
    """An object as it is stored."""


class LinkOut(LinkIn, Stored):
    """A link as it is stored."""


class ScriptOut(ScriptIn, Stored):
    """A script as it is stored."""


class CredentialOut(Stored):
    """A credential as it may be shown."""

    name: str
    kind: str
    username: str | None


class OperationOut(_Operation, Stored):
    """An operation as it is stored, and whose it is."""

    type: Literal["script", "program", "mqtt"]
    parameters: dict[str, Any]
    owner_kind: Literal["class", "object", "link"]
    owner_id: str
    inherited: bool = Field(description="it is the class's of the entity that was asked for")


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
