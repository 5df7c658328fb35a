from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.errors import BadRequest, Conflict, NotFound, PreconditionFailed
from iotjobs.domain.operations import OperationType, Via
from iotjobs.domain.rights import EVERYTHING
from iotjobs.store import definitions, entities, rule_lists, states
from iotjobs.store.definitions import Definition, Kind
from iotjobs.store.secrets import Secrets
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

NOW = 1_795_328_126_916
SECRETS = Secrets(b"k" * 32)


def a_class(**given: Any) -> dict[str, Any]:
    return {"name": "press", "tags": [], "properties": {}, "property_types": {}} | given


def an_object(**given: Any) -> dict[str, Any]:
    plain = {"class_id": None, "thing": None, "external_id": None, "no_data_after_s": None, "ssh": None}
    return a_class(name="press-1") | plain | {"mqtt": {"read": [], "write": []}} | given


def a_link(source: Definition, target: Definition, **given: Any) -> dict[str, Any]:
    return a_class(name="line") | {"class_id": None, "source": source.id, "target": target.id} | given


def ssh(**given: Any) -> dict[str, Any]:
    plain = {"host": "127.0.0.1", "port": 22, "username": None, "host_key": None}
    return plain | {"credential_id": None, "jump_id": None} | given


def an_operation(owner: Definition, **given: Any) -> dict[str, Any]:
    parameters = {"text": "true", "script_id": None, "interpreter": "sh", "args": [], "env": {}}
    settings = {
        "description": "",
        "popup_result": False,
        "run_on_property_change": False,
        "via": "auto",
        "run_on": "source",
        "timeout_s": 5,
        "stall_s": None,
        "kill_after_s": 5,
        "ttl_s": 3600,
        "idempotent": False,
        "concurrent": False,
        "queue": "mix",
        "run_as": None,
        "secret_args": ["pin"],
        "retry": {"attempts": 2, "on": ["unreachable"], "backoff_s": 2, "max_backoff_s": 300},
        "parameters": parameters | given.pop("parameters", {}),
    }
    plain = {"owner_kind": owner.kind, "owner_id": owner.id, "name": "restart", "type": "script"}
    return plain | {"settings": settings} | given


@pytest.fixture
def make(store: Store):
    async def create(kind: Kind, values: dict[str, Any]) -> Definition:
        return await store.write(lambda tx: definitions.create(tx, kind, values, NOW))

    return create


@pytest.fixture
def change(store: Store):
    async def update(
        definition: Definition, *, expected: set[int] | None = None, **values: Any
    ) -> Definition:
        versions = None if expected is None else frozenset(expected)
        return await store.write(
            lambda tx: definitions.change(
                tx, definition.kind, definition.id, lambda _: values, expected=versions
            )
        )

    return update


@pytest.fixture
def remove(store: Store):
    async def delete(definition: Definition, expected: set[int] | None = None) -> None:
        versions = None if expected is None else frozenset(expected)
        await store.write(
            lambda tx: definitions.remove(tx, definition.kind, definition.id, expected=versions)
        )

    return delete


async def page(store: Store, kind: Kind, **wanted: Any) -> list[str]:
    found = await store.read(lambda conn: definitions.page(conn, kind, EVERYTHING, **{"limit": 50, **wanted}))
    return [item.values["name"] for item in found.items]


async def test_what_was_made_is_read_as_it_was_given(store: Store, make) -> None:
    values = an_object(properties={"a": [1, 2.5, None, "é", {"b": True}]}, tags=["hall 3"], ssh=ssh())

    made = await make(Kind.OBJECT, values)

    read = await store.read(lambda conn: definitions.get(conn, Kind.OBJECT, made.id, EVERYTHING))
    assert read == made
    assert (read.values, read.version, read.created_at) == (values, 1, NOW)


async def test_json_keeps_the_order_of_its_members_and_its_numbers(store: Store, make) -> None:
    properties = {"zone": 1, "a": {"yy": 1, "x": 2, "b": 3}, "big": 1.5e300, "tiny": 5e-324}

    made = await make(Kind.OBJECT, an_object(properties=properties))

    read = await store.read(lambda conn: definitions.get(conn, Kind.OBJECT, made.id, EVERYTHING))
    assert json.dumps(read.values["properties"]) == json.dumps(properties)


async def test_unknown_ids_are_not_found(store: Store, change, remove) -> None:
    nobody = Definition(Kind.LINK, "0" * 32, 1, NOW, {})
    with pytest.raises(NotFound):
        await store.read(lambda conn: definitions.get(conn, Kind.LINK, nobody.id, EVERYTHING))
    with pytest.raises(NotFound):
        await change(nobody, name="x")
    with pytest.raises(NotFound):
        await remove(nobody)


async def test_a_change_makes_a_version_and_no_change_makes_none(make, change) -> None:
    made = await make(Kind.CLASS, a_class())

    assert (await change(made, name="press")).version == 1
    assert (await change(made, name="crane")).version == 2


async def test_only_the_version_that_was_named_is_changed_or_deleted(
    store: Store, make, change, remove
) -> None:
    made = await make(Kind.CLASS, a_class())
    await change(made, expected={1}, name="crane")

    with pytest.raises(PreconditionFailed, match="version 2"):
        await change(made, expected={1}, name="lathe")
    with pytest.raises(PreconditionFailed):
        await remove(made, expected={1})
    assert await page(store, Kind.CLASS) == ["crane"]

    await remove(made, expected={1, 2})
    assert await page(store, Kind.CLASS) == []


@pytest.mark.parametrize(
    ("kind", "first", "second", "field"),
    [
        (Kind.CLASS, a_class(), a_class(), "name"),
        (Kind.OBJECT, an_object(thing="t-1"), an_object(thing="t-1"), "thing"),
        (Kind.OBJECT, an_object(external_id="7"), an_object(external_id="7"), "external_id"),
    ],
    ids=["class name", "thing", "external id"],
)
async def test_what_must_be_unique_names_its_field(make, change, kind, first, second, field: str) -> None:
    await make(kind, first)

    with pytest.raises(Conflict) as refused:
        await make(kind, second)
    assert refused.value.errors[0].field == field

    free = await make(kind, second | {field: "free"})
    with pytest.raises(Conflict) as refused:
        await change(free, **{field: first[field]})
    assert refused.value.errors[0].field == field


async def test_objects_may_share_a_name(make) -> None:
    await make(Kind.OBJECT, an_object())
    await make(Kind.OBJECT, an_object())


async def test_operations_of_one_owner_have_different_names(make) -> None:
    one, two = await make(Kind.OBJECT, an_object()), await make(Kind.OBJECT, an_object())
    await make(Kind.OPERATION, an_operation(one))
    await make(Kind.OPERATION, an_operation(two))

    with pytest.raises(Conflict) as refused:
        await make(Kind.OPERATION, an_operation(one))
    assert refused.value.errors[0].field == "name"


async def test_one_of_many_that_ask_for_a_name_at_once_gets_it(store: Store, make) -> None:
    answers = await asyncio.gather(*(make(Kind.CLASS, a_class()) for _ in range(10)), return_exceptions=True)

    assert sum(isinstance(answer, Conflict) for answer in answers) == 9
    assert await page(store, Kind.CLASS) == ["press"]


NONE = "0" * 32


@pytest.mark.parametrize(
    ("values", "field"),
    [
        (an_object(class_id=NONE), "class_id"),
        (an_object(ssh=ssh(credential_id=NONE)), "ssh.credential_id"),
        (an_object(ssh=ssh(jump_id=NONE)), "ssh.jump_id"),
    ],
)
async def test_a_reference_that_leads_nowhere_names_its_field(store: Store, make, values, field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        await make(Kind.OBJECT, values)

    assert refused.value.errors[0].field == field
    assert await page(store, Kind.OBJECT) == []


async def test_ends_of_links_and_scripts_of_operations_must_exist(make) -> None:
    known = await make(Kind.OBJECT, an_object())
    unknown = Definition(Kind.OBJECT, NONE, 1, NOW, {})
    wrong = {
        "source": (Kind.LINK, a_link(unknown, known)),
        "target": (Kind.LINK, a_link(known, unknown)),
        "parameters.script_id": (
            Kind.OPERATION,
            an_operation(known, parameters={"text": None, "script_id": NONE}),
        ),
    }
    for field, (kind, values) in wrong.items():
        with pytest.raises(BadRequest) as refused:
            await make(kind, values)
        assert refused.value.errors[0].field == field
    with pytest.raises(BadRequest, match="another"):
        await make(Kind.LINK, a_link(known, known))


async def test_ways_through_jump_hosts_do_not_lead_back(make, change) -> None:
    first = await make(Kind.OBJECT, an_object(ssh=ssh()))
    second = await make(Kind.OBJECT, an_object(ssh=ssh(jump_id=first.id)))
    bare = await make(Kind.OBJECT, an_object())

    for wrong in (first.id, second.id):
        with pytest.raises(BadRequest, match="back to itself"):
            await change(first, ssh=ssh(jump_id=wrong))
    with pytest.raises(BadRequest, match="no SSH address"):
        await change(first, ssh=ssh(jump_id=bare.id))
    with pytest.raises(Conflict, match="reached through"):
        await change(first, ssh=None)


async def test_two_jumps_that_are_set_at_once_make_no_circle(store: Store, make, change) -> None:
    one, two = await make(Kind.OBJECT, an_object(ssh=ssh())), await make(Kind.OBJECT, an_object(ssh=ssh()))

    answers = await asyncio.gather(
        change(one, ssh=ssh(jump_id=two.id)), change(two, ssh=ssh(jump_id=one.id)), return_exceptions=True
    )

    assert [isinstance(answer, BadRequest) for answer in answers].count(True) == 1


async def test_what_is_in_use_stays_and_says_by_what(make, remove) -> None:
    template = await make(Kind.CLASS, a_class())
    script = await make(Kind.SCRIPT, {"name": "s", "interpreter": "sh", "text": "true"})
    credential = await make(
        Kind.CREDENTIAL, {"name": "root", "kind": "password", "username": None, "secret": b"x"}
    )
    jump = await make(Kind.OBJECT, an_object(name="jump", ssh=ssh(credential_id=credential.id)))
    inner = await make(Kind.OBJECT, an_object(name="inner", class_id=template.id, ssh=ssh(jump_id=jump.id)))
    link = await make(Kind.LINK, a_link(jump, inner))
    await make(
        Kind.OPERATION,
        an_operation(inner, parameters={"text": None, "script_id": script.id, "interpreter": None}),
    )

    for used, by in ((template, "inner"), (script, "restart"), (credential, "jump"), (inner, "line")):
        with pytest.raises(Conflict, match=by):
            await remove(used)
    await remove(link)
    with pytest.raises(Conflict, match="jump host of 1 object"):
        await remove(jump)
    for free in (inner, jump, template, script, credential):
        await remove(free)


async def test_own_operations_go_with_their_owner(store: Store, make, remove) -> None:
    gone, kept = await make(Kind.OBJECT, an_object()), await make(Kind.OBJECT, an_object())
    await make(Kind.OPERATION, an_operation(gone))
    await make(Kind.OPERATION, an_operation(kept, name="stays"))

    await remove(gone)

    assert await page(store, Kind.OPERATION) == ["stays"]


async def test_a_credential_cannot_vanish_while_it_comes_into_use(store: Store, make, remove) -> None:
    for _ in range(5):
        credential = await make(
            Kind.CREDENTIAL, {"name": "root", "kind": "password", "username": None, "secret": b"x"}
        )
        answers = await asyncio.gather(
            make(Kind.OBJECT, an_object(ssh=ssh(credential_id=credential.id))),
            remove(credential),
            return_exceptions=True,
        )
        refused = [answer for answer in answers if isinstance(answer, BadRequest | Conflict)]
        assert len(refused) == 1
        if isinstance(answers[0], Definition):
            await remove(answers[0])
            await remove(credential)


async def test_lists_are_read_in_parts_by_key(store: Store, make) -> None:
    names = [f"o{number}" for number in range(7)]
    for name in names:
        await make(Kind.OBJECT, an_object(name=name))
        await asyncio.sleep(0)
    seen, cursor = [], None
    while True:
        part = await store.read(
            lambda conn, after=cursor: definitions.page(conn, Kind.OBJECT, EVERYTHING, limit=3, after=after)
        )
        seen += [item.values["name"] for item in part.items]
        cursor = part.next
        if cursor is None:
            break

    assert sorted(seen) == names
    assert len(seen) == 7


async def test_objects_are_found_by_each_filter(store: Store, make) -> None:
    template = await make(Kind.CLASS, a_class())
    await make(Kind.OBJECT, an_object(name="a", class_id=template.id, tags=["x", "y"]))
    await make(Kind.OBJECT, an_object(name="b", thing="t-b", tags=["xy"]))
    await make(Kind.OBJECT, an_object(name="c", external_id="77"))

    assert await page(store, Kind.OBJECT, class_id=template.id) == ["a"]
    assert await page(store, Kind.OBJECT, tag="x") == ["a"]
    assert await page(store, Kind.OBJECT, tag="xy") == ["b"]
    assert await page(store, Kind.OBJECT, thing="t-b") == ["b"]
    assert await page(store, Kind.OBJECT, external_id="77") == ["c"]
    assert await page(store, Kind.OBJECT, name="c", tag="x") == []
    assert await page(store, Kind.OBJECT, name=None) == ["a", "b", "c"]


async def test_an_entity_has_its_classes_properties_under_its_own(store: Store, make, change) -> None:
    template = await make(Kind.CLASS, a_class(properties={"a": 1, "b": 1}))
    source = await make(Kind.OBJECT, an_object(class_id=template.id, properties={"b": 2}, ssh=ssh(port=2222)))
    target = await make(Kind.OBJECT, an_object(thing="t-2"))
    link = await make(Kind.LINK, a_link(source, target, class_id=template.id))
    await change(template, properties={"a": 9, "b": 1})

    entity = await store.read(lambda conn: entities.load_entity(conn, OwnerType.LINK, link.id))

    assert entity.properties == {"a": 9, "b": 1}
    assert entity.source.properties == {"a": 9, "b": 2}
    assert entity.source.ssh.port == 2222
    assert (entity.target.thing, entity.target.ssh) == ("t-2", None)
    assert await store.read(lambda conn: entities.load_entity(conn, OwnerType.OBJECT, NONE)) is None
    assert await store.read(lambda conn: entities.load_entity(conn, OwnerType.LINK, NONE)) is None


async def test_an_operation_is_loaded_for_its_owner_and_its_classes_entities(store: Store, make) -> None:
    template = await make(Kind.CLASS, a_class())
    one = await make(Kind.OBJECT, an_object(class_id=template.id))
    two = await make(Kind.OBJECT, an_object())
    script = await make(Kind.SCRIPT, {"name": "s", "interpreter": "python3", "text": "pass"})
    own = await make(Kind.OPERATION, an_operation(one))
    inherited = await make(
        Kind.OPERATION,
        an_operation(template, parameters={"text": None, "script_id": script.id, "interpreter": None}),
    )

    async def load(owner: Definition, operation: Definition) -> Any:
        def query(conn):
            entity = entities.load_entity(conn, OwnerType.OBJECT, owner.id)
            return entities.operation_for(conn, entity, operation.id)

        return await store.read(query)

    operation = await load(one, own)
    assert (operation.type, operation.via, operation.version) == (OperationType.SCRIPT, Via.AUTO, 1)
    assert (operation.retry.attempts, operation.secret_args, operation.timeout_s) == (2, ("pin",), 5)
    assert (await load(one, inherited)).parameters["interpreter"] == "python3"
    for wrong in (own, inherited):
        with pytest.raises(NotFound, match="another owner"):
            await load(two, wrong)
    assert await store.read(lambda conn: entities.load_operation(conn, NONE)) is None
    assert await store.read(lambda conn: entities.script_text(conn, script.id)) == ("pass", "python3")


async def test_the_way_to_a_device_is_opened_with_its_jump_hosts(store: Store, make) -> None:
    credential_id = clock.new_id()
    members = {"private_key": None, "passphrase": None, "password": "hidden-7"}
    row = {"name": "root", "kind": "password", "username": "root"}
    row["secret"] = entities.seal_credential(SECRETS, credential_id, members)
    await store.write(lambda tx: definitions.create(tx, Kind.CREDENTIAL, row, NOW, new_id=credential_id))
    jump = await make(Kind.OBJECT, an_object(name="jump", ssh=ssh(credential_id=credential_id)))
    inner = await make(Kind.OBJECT, an_object(name="inner", ssh=ssh(host="10.0.0.7", jump_id=jump.id)))
    bare = await make(Kind.OBJECT, an_object(name="bare"))

    access = await store.read(lambda conn: entities.ssh_access(conn, inner.id, SECRETS))

    assert (access.object_name, access.address.host, access.credential) == ("inner", "10.0.0.7", None)
    assert (access.jump.credential.password, access.jump.credential.username) == ("hidden-7", "root")
    assert "hidden-7" not in repr(access)
    with pytest.raises(BadRequest, match="no SSH address"):
        await store.read(lambda conn: entities.ssh_access(conn, bare.id, SECRETS))
    with pytest.raises(NotFound):
        await store.read(lambda conn: entities.ssh_access(conn, NONE, SECRETS))


async def test_the_broker_is_told_about_enrolled_objects_only(store: Store, make) -> None:
    enrolled = await make(Kind.OBJECT, an_object(thing="t-1", mqtt={"read": ["a/#"], "write": ["b"]}))
    other = await make(Kind.OBJECT, an_object(thing="t-2"))
    await store.write(lambda tx: entities.set_mqtt_password(tx, enrolled.id, "$7$hash"))

    assert await store.read(entities.broker_entries) == [("t-1", "$7$hash", ("a/#",), ("b",))]
    tried = {enrolled.id: "$7$new", other.id: "$7$first"}
    assert await store.read(lambda conn: entities.broker_entries(conn, tried)) == [
        ("t-1", "$7$new", ("a/#",), ("b",)),
        ("t-2", "$7$first", (), ()),
    ]
    named = {("thing", "t-2"), ("thing", "t-3"), ("external_id", "t-2")}
    assert list(await store.read(lambda conn: entities.objects_of(conn, named))) == [("thing", "t-2")]
    with pytest.raises(NotFound):
        await store.write(lambda tx: entities.set_mqtt_password(tx, NONE, "x"))


async def test_of_many_that_change_a_list_or_state_as_it_was_one_does(store: Store, make) -> None:
    owner = await make(Kind.OBJECT, an_object())
    state = await store.write(lambda tx: states.create(tx, "worn-out", 5, NOW))

    def put(tx: Transaction, what: str) -> None:
        definitions.lock(tx, Kind.OBJECT, owner.id, None)
        rule_lists.next_version(tx, owner.id, what, frozenset({1}))

    for item in (
        lambda tx: put(tx, rule_lists.CONDITIONS),
        lambda tx: put(tx, rule_lists.TRIGGERS),
        lambda tx: states.change(tx, state["id"], 7, frozenset({1})),
    ):
        answers = await asyncio.gather(*(store.write(item) for _ in range(10)), return_exceptions=True)
        assert [type(answer) for answer in answers].count(PreconditionFailed) == 9
    assert (await store.read(lambda conn: states.get(conn, state["id"])))["version"] == 2
    await store.write(lambda tx: definitions.remove(tx, Kind.OBJECT, owner.id))
    assert await store.read(lambda conn: rule_lists.version_of(conn, owner.id, rule_lists.CONDITIONS)) == 1
