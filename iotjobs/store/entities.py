"""Loads what the engine works on: entities, operations, and the ways to devices.

These reads stand on the way of every job: their statements are built once. `definitions` holds the
reads and writes of people.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, or_, select, update

from iotjobs.domain.entities import Entity, OwnerType, SshAddress, SshCredential
from iotjobs.domain.errors import BadRequest, NotFound
from iotjobs.domain.operations import Operation, OperationType, Via
from iotjobs.domain.retries import RetryPolicy
from iotjobs.store import tables
from iotjobs.store.references import JUMPS
from iotjobs.store.secrets import Secrets
from iotjobs.store.statements import Prepared
from iotjobs.store.writer import Transaction

C, O, L = tables.classes.c, tables.objects.c, tables.links.c  # noqa: E741 - as in the queries
S, P, K = tables.scripts.c, tables.operations.c, tables.credentials.c

_object = Prepared(
    select(O.id, O.name, O.class_id, O.properties, O.thing, O.ssh, C.properties.label("defaults"))
    .join_from(tables.objects, tables.classes, O.class_id == C.id, isouter=True)
    .where(O.id == bindparam("wanted"))
)
_link = Prepared(
    select(L.id, L.name, L.class_id, L.properties, L.source, L.target, C.properties.label("defaults"))
    .join_from(tables.links, tables.classes, L.class_id == C.id, isouter=True)
    .where(L.id == bindparam("wanted"))
)


def load_entity(conn: Connection, owner_type: OwnerType, entity_id: str) -> Entity | None:
    """An object or a link with its class's properties merged under its own; a link with both ends."""
    if owner_type is OwnerType.OBJECT:
        row = _object.first(conn, {"wanted": entity_id})
        return None if row is None else object_of(row)
    row = _link.first(conn, {"wanted": entity_id})
    if row is None:
        return None
    return Entity(
        row.id,
        OwnerType.LINK,
        row.name,
        row.class_id,
        {**(row.defaults or {}), **row.properties},
        source=load_entity(conn, OwnerType.OBJECT, row.source),
        target=load_entity(conn, OwnerType.OBJECT, row.target),
    )


def object_of(row: Any) -> Entity:
    """An object from its own columns and `defaults`, the properties of its class."""
    return Entity(
        row.id,
        OwnerType.OBJECT,
        row.name,
        row.class_id,
        {**(row.defaults or {}), **row.properties},
        thing=row.thing,
        ssh=None if row.ssh is None else SshAddress(**row.ssh),
    )


def objects_of(conn: Connection, named: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Ids of the objects that have these names: (`thing` or `external_id`, the name)."""
    found: dict[tuple[str, str], str] = {}
    for kind in ("thing", "external_id"):
        names = sorted(name for of_kind, name in named if of_kind == kind)
        if names:
            rows = conn.execute(select(O[kind], O.id).where(O[kind].in_(names)))
            found |= {(kind, name): object_id for name, object_id in rows}
    return found


# Members of `operation.settings` that a run does not need: they are for people and for triggers.
_NOT_FOR_RUNS = frozenset({"description", "popup_result", "run_on_property_change"})


class OwnedOperation(NamedTuple):
    """An operation and whose it is; `owner_kind` is `class`, `object` or `link`."""

    operation: Operation
    owner_kind: str
    owner_id: str


def operation_of(
    operation_id: str, name: str, kind: str, settings: Mapping[str, Any], version: int = 1
) -> Operation:
    """The operation that stored columns describe; `settings` has every member (see `inputs/shapes`)."""
    members = {key: value for key, value in settings.items() if key not in _NOT_FOR_RUNS}
    retry = members.pop("retry")
    return Operation(
        id=operation_id,
        name=name,
        type=OperationType(kind),
        via=Via(members.pop("via")),
        retry=RetryPolicy(**{**retry, "on": tuple(retry["on"])}),
        secret_args=tuple(members.pop("secret_args")),
        version=version,
        **members,
    )


_operation = Prepared(
    select(P.id, P.name, P.type, P.settings, P.version, P.owner_kind, P.owner_id).where(
        P.id == bindparam("wanted")
    )
)


def load_operation(conn: Connection, operation_id: str) -> OwnedOperation | None:
    """An operation with its owner.

    One that takes its text from the script repository and names no interpreter has the script's.
    """
    row = _operation.first(conn, {"wanted": operation_id})
    if row is None:
        return None
    operation = operation_of(row.id, row.name, row.type, row.settings, row.version)
    return OwnedOperation(with_interpreter(conn, operation), row.owner_kind, row.owner_id)


def operation_version(conn: Connection, operation_id: str) -> int | None:
    """The version that an operation has now."""
    version: int | None = _version.scalar(conn, {"wanted": operation_id})
    return version


_version = Prepared(select(P.version).where(P.id == bindparam("wanted")))


def with_interpreter(conn: Connection, operation: Operation) -> Operation:
    """The operation with its script's interpreter, where it names none itself."""
    script_id = operation.parameters.get("script_id")
    if script_id is None or operation.parameters["interpreter"] is not None:
        return operation
    script = script_text(conn, script_id)
    interpreter = "sh" if script is None else script[1]
    return dataclasses.replace(operation, parameters={**operation.parameters, "interpreter": interpreter})


def operation_for(conn: Connection, entity: Entity, operation_id: str) -> Operation:
    """An operation of an entity: its own or its class's.

    Raises:
        NotFound: there is none, or it belongs to another owner.
    """
    found = load_operation(conn, operation_id)
    if found is None:
        raise NotFound(f"there is no operation {operation_id}")
    own = (entity.owner_type.name.lower(), entity.id)
    if (found.owner_kind, found.owner_id) not in (own, ("class", entity.class_id)):
        raise NotFound(
            f"operation {operation_id} is not one of {own[0]} {entity.name}: it is an operation of another owner"
        )
    return found.operation


_settings_of = Prepared(
    select(P.id, P.settings)
    .where(or_(P.owner_id == bindparam("own"), P.owner_id == bindparam("of_class")))
    .order_by(P.name)
)


def operations_on_write(conn: Connection, entity: Entity) -> list[str]:
    """Ids of the operations that run when a person writes a readwrite property of the entity."""
    rows = _settings_of.all(conn, {"own": entity.id, "of_class": entity.class_id})
    return [row.id for row in rows if row.settings["run_on_property_change"]]


_script = Prepared(select(S.text, S.interpreter).where(S.id == bindparam("wanted")))


def script_text(conn: Connection, script_id: str) -> tuple[str, str] | None:
    """The text and the interpreter of a script of the repository."""
    row = _script.first(conn, {"wanted": script_id})
    return None if row is None else (row.text, row.interpreter)


@dataclass(frozen=True, slots=True)
class SshAccess:
    """All that a connection to an object needs.

    Attributes:
        address: where; its `username`, when None, is the credential's.
        jump: the way to go through first.
    """

    object_id: str
    object_name: str
    address: SshAddress
    credential: SshCredential | None
    jump: SshAccess | None


_access = Prepared(select(O.id, O.name, O.ssh).where(O.id == bindparam("wanted")))
_credential = Prepared(
    select(K.id, K.version, K.kind, K.username, K.secret).where(K.id == bindparam("wanted"))
)


def ssh_access(conn: Connection, object_id: str, secrets: Secrets) -> SshAccess:
    """The way to an object over SSH, credentials opened.

    Raises:
        NotFound: there is no such object.
        BadRequest: it has no SSH address.
        SecretUnreadable: the site's key does not open a credential.
    """
    return _ssh_access(conn, object_id, secrets, jumps_left=JUMPS)


def _ssh_access(conn: Connection, object_id: str, secrets: Secrets, *, jumps_left: int) -> SshAccess:
    row = _access.first(conn, {"wanted": object_id})
    if row is None:
        raise NotFound(f"there is no object {object_id}")
    if row.ssh is None:
        raise BadRequest(f"the object {row.name} has no SSH address: set ssh.host", field="ssh.host")
    address = SshAddress(**row.ssh)
    credential = jump = None
    if address.credential_id is not None:
        credential = open_credential(conn, address.credential_id, secrets)
    if address.jump_id is not None and jumps_left:
        jump = _ssh_access(conn, address.jump_id, secrets, jumps_left=jumps_left - 1)
    return SshAccess(row.id, row.name, address, credential, jump)


def open_credential(conn: Connection, credential_id: str, secrets: Secrets) -> SshCredential | None:
    """A credential with its secrets."""
    row = _credential.first(conn, {"wanted": credential_id})
    if row is None:
        return None
    opened = msgspec.json.decode(secrets.open(row.secret, credential_context(row.id)))
    return SshCredential(row.id, row.version, row.kind, row.username, **opened)


def seal_credential(secrets: Secrets, credential_id: str, members: Mapping[str, str | None]) -> bytes:
    """What `credential.secret` holds: `private_key`, `passphrase` and `password`, sealed."""
    return secrets.seal(msgspec.json.encode(dict(members)), credential_context(credential_id))


def credential_context(credential_id: str) -> str:
    """What a credential's secret is bound to."""
    return f"credential:{credential_id}"


class BrokerEntry(NamedTuple):
    """What the broker must know of an enrolled object."""

    thing: str
    password_hash: str
    read: tuple[str, ...]
    write: tuple[str, ...]


def broker_entries(conn: Connection, tried: Mapping[str, str] | None = None) -> list[BrokerEntry]:
    """Every enrolled object, by thing name.

    Args:
        conn: a connection.
        tried: hashes, by object id, that stand in for what is stored.
    """
    tried = tried or {}
    enrolled = or_(O.mqtt_password.is_not(None), O.id.in_(list(tried)))
    query = select(O.id, O.thing, O.mqtt_password, O.mqtt).where(O.thing.is_not(None), enrolled)
    return [
        BrokerEntry(
            row.thing,
            tried.get(row.id, row.mqtt_password),
            tuple((row.mqtt or {}).get("read", ())),
            tuple((row.mqtt or {}).get("write", ())),
        )
        for row in conn.execute(query.order_by(O.thing))
    ]


def set_mqtt_password(tx: Transaction, object_id: str, password_hash: str | None) -> None:
    """Keep the broker's hash of an object's new password; None takes its access away.

    Raises:
        NotFound: there is no such object.
    """
    done = tx.conn.execute(
        update(tables.objects).where(O.id == object_id).values(mqtt_password=password_hash)
    )
    if done.rowcount != 1:
        raise NotFound(f"there is no object {object_id}")
