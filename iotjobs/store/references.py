"""What definitions refer to: nothing refers to what is not there, nothing goes that is referred to.

Some references stand in JSON columns, where the database cannot hold them: on PostgreSQL the row
that is referred to is locked until the transaction ends, and so is one that is deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, func, select

from iotjobs.domain.errors import BadRequest, Conflict
from iotjobs.store import rules, tables
from iotjobs.store.state_tables import report_ids, standings, triggers, unheeded

O, L, P = tables.objects.c, tables.links.c, tables.operations.c  # noqa: E741 - as in the queries

# A chain of jump hosts: each one costs a handshake, and nobody has been seen with more.
JUMPS = 8

_TABLES = {
    "class": tables.classes,
    "object": tables.objects,
    "script": tables.scripts,
    "credential": tables.credentials,
}


def check(conn: Connection, kind: str, own_id: str, values: Mapping[str, Any]) -> None:
    """Refuse references that lead nowhere.

    Raises:
        BadRequest: names the field.
        Conflict: an address would be gone that others go through.
    """
    if values.get("class_id") is not None:
        _require(conn, "class", values["class_id"], "class_id")
    match kind:
        case "object":
            _check_ssh(conn, own_id, values.get("ssh"))
        case "link":
            for end in ("source", "target"):
                _require(conn, "object", values[end], end)
            if values["source"] == values["target"]:
                raise BadRequest("a link leads from one object to another", field="target")
        case "operation":
            script_id = values["settings"]["parameters"].get("script_id")
            if script_id is not None:
                _require(conn, "script", script_id, "parameters.script_id")


def _require(conn: Connection, kind: str, wanted: str, field: str) -> None:
    table: Table = _TABLES[kind]
    query = select(table.c.id).where(table.c.id == wanted).with_for_update(read=True)
    if conn.execute(query).first() is None:
        raise BadRequest(f"there is no {kind} {wanted}", field=field)


def _check_ssh(conn: Connection, own_id: str, ssh: Mapping[str, Any] | None) -> None:
    if ssh is None:
        through = select(O.name).where(O.ssh["jump_id"].as_string() == own_id).order_by(O.name)
        if name := conn.execute(through.limit(1)).scalar_one_or_none():
            raise Conflict(f"the object {name} is reached through this one: its ssh stays", field="ssh")
        return
    if ssh["credential_id"] is not None:
        _require(conn, "credential", ssh["credential_id"], "ssh.credential_id")
    seen, jump_id = [own_id], ssh["jump_id"]
    while jump_id is not None:
        if jump_id in seen:
            raise BadRequest(f"the way through {jump_id} leads back to itself", field="ssh.jump_id")
        if len(seen) > JUMPS:
            raise BadRequest(f"more than {JUMPS} jump hosts in a row", field="ssh.jump_id")
        seen.append(jump_id)
        row = conn.execute(select(O.ssh).where(O.id == jump_id).with_for_update(read=True)).first()
        if row is None:
            raise BadRequest(f"there is no object {jump_id}", field="ssh.jump_id")
        if row.ssh is None:
            raise BadRequest(f"the object {jump_id} has no SSH address to go through", field="ssh.jump_id")
        jump_id = row.ssh["jump_id"]


def refuse_used(conn: Connection, kind: str, own_id: str, name: str) -> None:
    """Refuse to let go what something else refers to.

    Raises:
        Conflict: says what refers to it.
    """
    for what, table, condition in _uses(kind, own_id):
        count = conn.execute(select(func.count()).select_from(table).where(condition)).scalar_one()
        if count:
            names = conn.execute(
                select(table.c.name).where(condition).order_by(table.c.id).limit(3)
            ).scalars()
            listed = ", ".join(names) + (", …" if count > 3 else "")
            kinds = {"trigger_rule": "trigger"}.get(table.name, table.name)
            raise Conflict(f"the {kind} {name} is {what} {count} {kinds}(s): {listed}")


def forget_rules(conn: Connection, owner_id: str) -> None:
    """Delete the conditions and triggers of an owner that goes, and what waits for it; its records stay."""
    rules.forget(conn, owner_id)
    for column in (standings.c.entity_id, report_ids.c.entity_id, unheeded.c.entity_id):
        conn.execute(column.table.delete().where(column == owner_id))


def _uses(kind: str, own_id: str) -> list[tuple[str, Table, Any]]:
    match kind:
        case "class":
            return [
                ("the class of", tables.objects, O.class_id == own_id),
                ("the class of", tables.links, L.class_id == own_id),
            ]
        case "object":
            return [
                ("an end of", tables.links, (L.source == own_id) | (L.target == own_id)),
                ("the jump host of", tables.objects, O.ssh["jump_id"].as_string() == own_id),
            ]
        case "credential":
            return [("used by", tables.objects, O.ssh["credential_id"].as_string() == own_id)]
        case "operation":
            return [("started by", triggers, triggers.c.operation_id == own_id)]
        case "script":
            script = P.settings[("parameters", "script_id")].as_string()
            return [("used by", tables.operations, script == own_id)]
        case _:
            return []
