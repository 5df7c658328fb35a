"""The shapes of operations, by type; every limit on them stands here."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from iotjobs.domain import shellnames
from iotjobs.domain.operations import MESSAGE_LIMIT_BYTES
from iotjobs.inputs.shapes import (
    Interpreter,
    Name,
    QueueName,
    Reference,
    ScriptText,
    Shape,
    Stored,
    formed,
    said_by,
    without_nul,
)
from iotjobs.transports import topics

WEEK_S = 7 * 86_400
NINETY_DAYS_S = 90 * 86_400
MQTT_SECONDS = 2**32 - 1  # the message expiry interval has four bytes
_MACRO = re.compile(r"\{\{.*?\}\}")


def _env_name(name: str) -> str:
    if problem := shellnames.variable_problem(name):
        raise ValueError(problem)
    return name


def _program_path(path: str) -> str:
    if path.startswith("-"):
        raise ValueError("a program's path does not start with -")
    return path


def _message_size(message: Any) -> Any:
    size = len(message.encode() if isinstance(message, str) else msgspec.json.encode(message))
    if size > MESSAGE_LIMIT_BYTES:
        raise ValueError(f"a message has at most {MESSAGE_LIMIT_BYTES} bytes")
    return message


def _topic_with_macros(topic: str) -> str:
    topics.check_topic(_MACRO.sub("x", topic))
    return topic


RunAs = Annotated[str, formed(shellnames.USER.pattern, "the name of a user on the device, and no number")]
Topic = Annotated[str, StringConstraints(max_length=4000), said_by(_topic_with_macros)]
EnvName = Annotated[str, StringConstraints(max_length=200), AfterValidator(_env_name)]
Seconds = Annotated[float, Field(gt=0, le=WEEK_S)]


RetriedEnd = Literal["unreachable", "failed", "timed_out", "lost"]


def _unreachable() -> list[RetriedEnd]:
    return ["unreachable"]


class RetryBody(Shape):
    """When another attempt is made."""

    attempts: Annotated[int, Field(ge=1, le=100)] = 1
    on: Annotated[list[RetriedEnd], Field(max_length=4)] = Field(default_factory=_unreachable)
    backoff_s: Annotated[float, Field(ge=0, le=86_400)] = 2.0
    max_backoff_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0


_NoNul = AfterValidator(without_nul)
Argument = Annotated[str, StringConstraints(max_length=65_536), _NoNul]
Arguments = Annotated[list[Argument], Field(max_length=1000)]
Environment = Annotated[dict[EnvName, Argument], Field(max_length=1000)]


class ScriptParameters(Shape):
    """Exactly one of `text` and `script_id`; an `interpreter` of null is the script's own, else `sh`."""

    text: ScriptText | None = None
    script_id: Reference | None = None
    interpreter: Interpreter | None = None
    args: Arguments = Field(default_factory=list)
    env: Environment = Field(default_factory=dict)

    @model_validator(mode="after")
    def _own_text_is_for_sh(self) -> ScriptParameters:
        if self.text is not None and self.interpreter is None:
            self.interpreter = "sh"
        return self


class ProgramParameters(Shape):
    """A program on the device."""

    path: Annotated[
        str, StringConstraints(min_length=1, max_length=4096), AfterValidator(_program_path), _NoNul
    ]
    args: Arguments = Field(default_factory=list)
    env: Environment = Field(default_factory=dict)
    cwd: Annotated[str, StringConstraints(min_length=1, max_length=4096), _NoNul] | None = None


class AnswerBody(Shape):
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
    answer: AnswerBody | None = None


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
    retry: RetryBody = RetryBody()
    queue: QueueName = "mix"
    run_as: RunAs | None = None
    secret_args: Annotated[list[Name], Field(max_length=100)] = Field(default_factory=list)


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


OperationBody = Annotated[ScriptOperation | ProgramOperation | MqttOperation, Field(discriminator="type")]


class OperationOut(_Operation, Stored):
    """An operation as it is stored, and whose it is."""

    type: Literal["script", "program", "mqtt"]
    parameters: dict[str, Any]
    owner_kind: Literal["class", "object", "link"]
    owner_id: str
    inherited: bool = Field(description="it is the class's of the entity that was asked for")
