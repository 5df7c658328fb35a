"""Operations: what is refused when one is saved, and what a job of it will do.

`render` turns an operation, its owner and the call's arguments into a `Plan`: everything that an
attempt needs, frozen at submit. Only secrets and addresses are looked up again for each attempt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from iotjobs.domain import macros
from iotjobs.domain.entities import Entity, OwnerType, macro_values
from iotjobs.domain.errors import BadRequest, FieldError
from iotjobs.domain.jobs import Transport
from iotjobs.domain.retries import RetryPolicy

DEFAULT_TIMEOUT_S = 300.0
MESSAGE_LIMIT_BYTES = 64 * 1024  # the payload limit that devices are promised


class OperationType(StrEnum):
    """What kind of action; fixed after creation."""

    SCRIPT = "script"
    PROGRAM = "program"
    MQTT = "mqtt"


class Via(StrEnum):
    """Which way an operation asks to take."""

    AUTO = "auto"
    SSH = "ssh"
    AGENT = "agent"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Operation:
    """A named action as it was saved.

    Attributes:
        parameters: by type; every member present, defaults filled in.
        version: grows with each change; a job records the one it was rendered from.
    """

    id: str
    name: str
    type: OperationType
    parameters: Mapping[str, Any]
    via: Via = Via.AUTO
    run_on: str = "source"
    timeout_s: float | None = None
    stall_s: float | None = None
    kill_after_s: float = 5.0
    ttl_s: float = 3600.0
    idempotent: bool = False
    concurrent: bool = False
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    queue: str = "mix"
    run_as: str | None = None
    secret_args: tuple[str, ...] = ()
    version: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What an attempt will do, macros filled. Kept beside the job; see `render`.

    A plan with secrets is kept twice: as it is, encrypted while the job lives, and masked.

    Attributes:
        stall_s: a command that says nothing for so long is ended as if it had timed out.
        interpreter: of a script; `raw` has no process group.
        message: the payload as text; it is sent as UTF-8.
        message_is_json: the message was given as JSON.
        answer_within_s: how long to wait for the device's answer, or None.
        thing: whose answer topic it is.
    """

    type: OperationType
    timeout_s: float
    stall_s: float | None = None
    kill_after_s: float = 5.0
    idempotent: bool = False
    concurrent: bool = False
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    script: str | None = None
    interpreter: str = "sh"
    argv: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    run_as: str | None = None
    topic: str | None = None
    message: str | None = None
    message_is_json: bool = False
    qos: int = 1
    retain: bool = False
    require_subscriber: bool = False
    expiry_s: float | None = None
    answer_within_s: float | None = None
    thing: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Members that differ from their defaults, for the store."""
        told = {name: getattr(self, name) for name, usual in _PLAN_USUAL if getattr(self, name) != usual}
        if "retry" in told:
            told["retry"] = asdict(self.retry)
        return told

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> Plan:
        """The inverse of `to_json`. Members that only a newer version knows are left out."""
        given = {name: value for name, value in members.items() if name in cls.__dataclass_fields__}
        given["type"] = OperationType(given["type"])
        if "retry" in given:
            given["retry"] = RetryPolicy(**{**given["retry"], "on": tuple(given["retry"]["on"])})
        for name in ("argv", "args"):
            if name in given:
                given[name] = tuple(given[name])
        return cls(**given)


_ABSENT = object()
_PLAN_USUAL = tuple(
    (
        one.name,
        _ABSENT if one.name in ("type", "timeout_s") else getattr(Plan(OperationType.SCRIPT, 0), one.name),
    )
    for one in fields(Plan)
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller gave with an execute.

    Attributes:
        args: values of `{{args.NAME}}`.
        ask: values of `{{ask.NAME}}`, which a person must give.
        default_timeout_s: the site's, where neither the call nor the operation says one.
    """

    args: Mapping[str, Any] = field(default_factory=dict)
    ask: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float | None = None
    default_timeout_s: float = DEFAULT_TIMEOUT_S


def check(operation: Operation, owner_kind: str) -> None:
    """Refuse what can never run, when the operation is saved.

    Args:
        operation: with all defaults filled in.
        owner_kind: `object`, `link` or `class` (a class's entities may be both).

    Raises:
        BadRequest: names each field, with the position for macros.
    """
    problems: list[FieldError] = []
    link = owner_kind != "object"
    for path, text in _texts(operation):
        try:
            macros.check_names(text, link=link)
        except macros.MacroError as error:
            problems.append(FieldError(path, str(error)))
    script = operation.parameters.get("text")
    if operation.type is OperationType.SCRIPT and script is not None and not problems:
        try:
            macros.check_shell(script, operation.parameters["interpreter"] or "sh")
        except macros.MacroError as error:
            problems.append(FieldError("parameters.text", str(error)))
    problems += _contradictions(operation)
    if problems:
        first = problems[0]
        raise BadRequest(f"{first.field}: {first.message}", errors=tuple(problems))


def _contradictions(operation: Operation) -> Iterator[FieldError]:
    parameters = operation.parameters
    if operation.type is OperationType.SCRIPT and (parameters["text"] is None) == (
        parameters["script_id"] is None
    ):
        yield FieldError("parameters", "give exactly one of text and script_id")
    if parameters.get("interpreter") == "raw" and (parameters["args"] or parameters["env"]):
        yield FieldError("parameters.interpreter", "raw sends the text alone: leave args and env out")
    if parameters.get("interpreter") == "raw" and operation.run_as:
        yield FieldError("run_as", "raw sends the text alone: leave run_as out")
    if operation.type is OperationType.MQTT:
        yield from _contradictions_of_message(operation)
    if operation.via is Via.AGENT:
        yield FieldError("via", "this version has no agent: use ssh")
    repeats = set(operation.retry.on) - {"unreachable"}
    if repeats and not operation.idempotent:
        yield FieldError("retry.on", f"{', '.join(sorted(repeats))} may run twice: needs idempotent true")
    if parameters.get("script_id") is None:  # a script of the repository may change
        used = {name for _, text in _texts(operation) for name in macros.names_in(text)}
        for index, name in enumerate(operation.secret_args):
            if f"args.{name}" not in used:
                yield FieldError(
                    f"secret_args[{index}]",
                    f"there is no {{{{args.{name}}}}} here: is it spelt as in its macro?",
                )


def _contradictions_of_message(operation: Operation) -> Iterator[FieldError]:
    if operation.run_as:
        yield FieldError("run_as", "an mqtt operation runs nothing on the device")
    if operation.via is not Via.AUTO:
        yield FieldError("via", "an mqtt operation goes through the broker: leave via out")
    try:
        macros.names_in(operation.parameters["message"])
    except macros.MacroError as error:
        yield FieldError("parameters.message", str(error))
    if operation.stall_s is not None:
        yield FieldError("stall_s", "an mqtt operation has no output that could cease: leave stall_s out")
    if operation.parameters["require_subscriber"] and not operation.parameters["qos"]:
        yield FieldError("parameters.require_subscriber", "nobody tells of subscribers with qos 0: use qos 1")


def resolve_transport(operation: Operation, owner: Entity, *, allow_local: bool) -> Transport:
    """The way a run on this owner takes.

    Raises:
        BadRequest: the operation cannot run on this owner; says what is missing.
    """
    end = owner.end(operation.run_on)
    where = "the object" if owner.owner_type is OwnerType.OBJECT else f"the link's {operation.run_on}"
    if operation.type is OperationType.MQTT:
        if operation.parameters["answer"] is not None and end.thing is None:
            raise BadRequest(
                f"answer needs a thing name, and {where} {end.name} has none", field="parameters.answer"
            )
        return Transport.MQTT
    if operation.via is Via.LOCAL:
        if not allow_local:
            raise BadRequest("via local is switched off on this site (IOTJOBS_ALLOW_LOCAL)", field="via")
        return Transport.LOCAL
    if end.ssh is not None:
        return Transport.SSH
    if operation.via is Via.AUTO and end.thing is not None:
        raise BadRequest(
            f"{where} {end.name} has a thing name and no SSH address, and this version has no agent",
            field="via",
        )
    raise BadRequest(f"{where} {end.name} has no SSH address: set ssh.host", field="via")


def _texts(operation: Operation) -> Iterator[tuple[str, str]]:
    """Every text of an operation that may hold macros, with its path."""
    parameters = operation.parameters
    if operation.type is OperationType.MQTT:
        yield "parameters.topic", parameters["topic"]
        yield from _leaves("parameters.message", parameters["message"])
        return
    for name in ("text", "path", "cwd"):
        if parameters.get(name) is not None:
            yield f"parameters.{name}", parameters[name]
    for index, text in enumerate(parameters["args"]):
        yield f"parameters.args[{index}]", text
    for name, text in parameters["env"].items():
        yield f"parameters.env.{name}", text


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for name, member in value.items():
            yield from _leaves(f"{path}.{name}", member)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(f"{path}[{index}]", item)


def values_for(
    owner: Entity, asked: Asked, *, job_id: str, user: tuple[str, str] | None, state: str | None = None
) -> macros.Values:
    """The values of every macro for one run."""
    known: dict[str, Any] = macro_values(owner)
    known |= {"jobId": job_id, "args": asked.args, "ask": asked.ask}
    if user is not None:
        known["user"] = {"id": user[0], "login": user[1]}
    if state is not None:
        known["state"] = state
    return macros.Values(known)


def render(
    operation: Operation, owner: Entity, values: macros.Values, asked: Asked, script: str | None
) -> Plan:
    """Fill every macro and freeze what the job will do.

    Args:
        operation: as saved.
        owner: the entity that it runs on, a link with both ends.
        values: of `values_for`.
        asked: the call's own timeout wins over the operation's, and that over the site's.
        script: the text, from the operation or from the script repository.

    Raises:
        BadRequest: a macro has no value, or a value cannot stand where it is used; names both.
    """
    texts = list(_texts(operation))
    if script is not None and operation.parameters.get("text") is None:
        texts.append(("parameters.script_id", script))
    _refuse_missing(texts, values)
    common: dict[str, Any] = {
        "type": operation.type,
        "timeout_s": asked.timeout_s or operation.timeout_s or asked.default_timeout_s,
        "stall_s": operation.stall_s,
        "kill_after_s": operation.kill_after_s,
        "idempotent": operation.idempotent,
        "concurrent": operation.concurrent,
        "retry": operation.retry,
        "run_as": operation.run_as,
    }
    try:
        if operation.type is OperationType.MQTT:
            return _render_message(operation, owner, values, common)
        return _render_command(operation, values, common, script)
    except macros.MacroError as error:
        raise BadRequest(str(error), field=error.name) from error


def _refuse_missing(texts: list[tuple[str, str]], values: macros.Values) -> None:
    problems = []
    for path, text in texts:
        problems += [
            FieldError(path, f"{{{{{name}}}}} has no value here")
            for name in macros.missing(macros.names_in(text), values)
        ]
    if problems:
        names = ", ".join(sorted({problem.message.split(" ")[0] for problem in problems}))
        raise BadRequest(f"no value for {names}", errors=tuple(problems))


def _render_command(
    operation: Operation, values: macros.Values, common: dict[str, Any], script: str | None
) -> Plan:
    parameters = operation.parameters
    args = tuple(macros.render_argument(text, values) for text in parameters["args"])
    env = {name: macros.render_argument(text, values) for name, text in parameters["env"].items()}
    if operation.type is OperationType.PROGRAM:
        cwd = parameters["cwd"]
        return Plan(
            **common,
            argv=(macros.render_argument(parameters["path"], values), *args),
            env=env,
            cwd=None if cwd is None else macros.render_argument(cwd, values),
        )
    assert script is not None, "a script operation is rendered with its text"
    interpreter = parameters["interpreter"]
    macros.check_shell(script, interpreter)
    if macros.find(script):
        shell = macros.render_shell(script, values, interpreter)
        script, env = shell.text, {**env, **shell.env}
    return Plan(**common, script=script, interpreter=interpreter, args=args, env=env)


def _render_message(
    operation: Operation, owner: Entity, values: macros.Values, common: dict[str, Any]
) -> Plan:
    parameters = operation.parameters
    answer = parameters["answer"]
    message = macros.render_message(parameters["message"], values)
    if len(message.encode()) > MESSAGE_LIMIT_BYTES:
        raise BadRequest(
            f"the message has {len(message.encode())} bytes, more than {MESSAGE_LIMIT_BYTES}",
            field="parameters.message",
        )
    topic = macros.render_topic(parameters["topic"], values)
    return Plan(
        **common,
        topic=topic,
        message=message,
        message_is_json=not isinstance(parameters["message"], str),
        qos=parameters["qos"],
        retain=parameters["retain"],
        require_subscriber=parameters["require_subscriber"],
        expiry_s=parameters["expiry_s"],
        answer_within_s=None if answer is None else answer["within_s"],
        thing=owner.end(operation.run_on).thing,
    )


MASK = "******"


def masked_args(args: Mapping[str, Any], secret_args: tuple[str, ...]) -> dict[str, Any]:
    """The arguments as people and records may see them."""
    return {name: MASK if name in secret_args else value for name, value in args.items()}
