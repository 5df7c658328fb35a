"""Gives a device its login on our broker."""

from __future__ import annotations

import asyncio
import logging
import secrets as randomness
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.errors import BadRequest, Conflict, IotJobsError, NotFound, NotReady
from iotjobs.store import entities
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from iotjobs.transports.broker import BrokerProcess
from iotjobs.transports.broker_files import Credential, broker_username, hash_password

log = logging.getLogger(__name__)

RETRY_S = 1.0
GATHER_S = 0.2  # an import of a thousand objects is told once


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What a device needs to log in; the password is shown once and kept nowhere."""

    thing: str
    url: str
    username: str
    password: str = field(repr=False)


class Enrolment:
    """Keeps the broker's logins in step with the store.

    Args:
        store: where objects are.
        broker: the broker of ours, or None where there is another one, or none.
    """

    def __init__(self, store: Store, broker: BrokerProcess | None) -> None:
        self._store, self._broker = store, broker
        self._telling: asyncio.Task[None] | None = None
        self._tried: dict[str, str] = {}  # hashes that the broker gets before they are stored, by object
        self._changed = False
        self._publishing = asyncio.Lock()  # the newest list is written last

    async def publish_all(self) -> None:
        """Tell the broker about every enrolled object: at start, and after objects changed."""
        if self._broker is not None:
            async with self._publishing:
                self._broker.write_credentials(
                    await self._store.look(lambda conn: _credentials(conn, self._tried))
                )

    def changed(self) -> None:
        """Objects changed: tell the broker soon, once for many changes."""
        self._changed = True
        if self._broker is not None and (self._telling is None or self._telling.done()):
            self._telling = asyncio.create_task(self._tell(), name="broker logins")

    async def _tell(self) -> None:
        while self._changed:
            self._changed = False
            await clock.sleep(GATHER_S)
            try:
                await self.publish_all()
            except (IotJobsError, OSError) as error:
                log.warning("the broker was not told about changed objects", extra={"why": str(error)})
                self._changed = True  # a device that lost its rights must not keep them
                await clock.sleep(RETRY_S)

    async def enrol(self, object_id: str, found_by: str | None = None) -> Enrolled:
        """Make a new password for an object's thing; an earlier one ends.

        It is stored only when a login with it has succeeded. After any error the earlier one is in
        force again as soon as the broker can be told, also after a crash: the next start tells it.

        Args:
            object_id: which.
            found_by: the name that the caller found this host by, for the URL.

        Raises:
            NotFound: no such object.
            BadRequest: it has no thing name.
            Conflict: the broker is not ours, or the thing's name changed meanwhile.
            NotReady: the broker did not take the login in time.
            StoreUnavailable, StorageFull: it could not be stored.
        """
        broker = self._broker
        if broker is None:
            raise Conflict("the broker is not run by iotjobs: make the login there")
        thing = await self._store.look(lambda conn: _thing_of(conn, object_id))
        password = randomness.token_urlsafe(24)
        hashed = hash_password(password)

        username = broker_username(thing)

        def item(tx: Transaction) -> None:
            if _thing_of(tx.conn, object_id) != thing:
                raise Conflict("the object's thing name was changed meanwhile: enrol it again")
            entities.set_mqtt_password(tx, object_id, hashed)

        self._tried[object_id] = hashed
        stored = False
        try:
            await self.publish_all()
            if not await broker.test_connect(username, password):
                raise NotReady("the broker did not take the login in time; an earlier one stays: try again")
            await self._store.write(item)
            stored = True
        finally:
            if self._tried.get(object_id) == hashed:
                del self._tried[object_id]
            if not stored:
                self.changed()
        return Enrolled(thing, broker.found_by(found_by), username, password)


def _thing_of(conn: Connection, object_id: str) -> str:
    entity = entities.load_entity(conn, OwnerType.OBJECT, object_id)
    if entity is None:
        raise NotFound(f"there is no object {object_id}")
    if entity.thing is None:
        raise BadRequest("the object has no thing name: set thing", field="thing")
    return entity.thing


def _credentials(conn: Connection, tried: Mapping[str, str]) -> list[Credential]:
    return [
        Credential(entry.thing, entry.password_hash, entry.read, entry.write)
        for entry in entities.broker_entries(conn, tried)
    ]
