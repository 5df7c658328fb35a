"""What the routes work with, and who may use them: the dependencies of every route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy import Connection

from iotjobs.domain.errors import NotReady
from iotjobs.domain.rights import Caller, require_admin, require_operator
from iotjobs.engine.control import Control
from iotjobs.engine.enrolment import Enrolment
from iotjobs.engine.feed import Feed
from iotjobs.engine.intake import Intake
from iotjobs.engine.reach import Reach
from iotjobs.engine.reactions import Reactions
from iotjobs.engine.readiness import Readiness
from iotjobs.engine.site import SiteSwitch
from iotjobs.inputs.auth import Authenticator
from iotjobs.store.nodes import WorkerState
from iotjobs.store.secrets import Secrets
from iotjobs.store.session import Store


def _nothing() -> None:
    """Nobody asked to be told."""


@dataclass(frozen=True, slots=True)
class EngineServices:
    """The running engine, as routes use it."""

    intake: Intake
    reactions: Reactions
    feed: Feed
    control: Control
    reach: Reach
    enrolment: Enrolment
    readiness: Readiness
    switch: SiteSwitch
    roster: Callable[[Connection], list[WorkerState]]

    def definitions_changed(self) -> None:
        """Objects or credentials changed: look ways up again, tell the broker."""
        self.reach.forget()
        self.enrolment.changed()


@dataclass(frozen=True, slots=True)
class ApiServices:
    """The parts of the server that routes call.

    Attributes:
        allow_local: operations may run on this host.
        definitions_changed: called in the event loop after a change of objects or credentials is
            committed: ways to devices, and what the broker lets them do, may be different now.
        engine: what runs jobs; None while only definitions are served.
    """

    store: Store
    secrets: Secrets
    authenticator: Authenticator
    allow_local: bool = False
    definitions_changed: Callable[[], None] = _nothing
    engine: EngineServices | None = None


# These take the request and no dependencies of their own: the framework solves the whole tree below
# a dependency before it looks whether it has its value already, at 20 µs for each node.


async def services_of(request: Request) -> ApiServices:
    """The parts of the server."""
    services = request.app.state.services
    assert isinstance(services, ApiServices)
    return services


Services = Annotated[ApiServices, Depends(services_of)]


async def engine_of(request: Request) -> EngineServices:
    """The running engine.

    Raises:
        NotReady: only definitions are served.
    """
    engine = (await services_of(request)).engine
    if engine is None:
        raise NotReady("the engine is not running")
    return engine


Engine = Annotated[EngineServices, Depends(engine_of)]


async def caller_of(request: Request) -> Caller:
    """Who calls; found once a request.

    Raises:
        NotAuthenticated: nobody whom we know.
    """
    known = request.scope["state"].get("caller")
    if isinstance(known, Caller):
        return known
    services = await services_of(request)
    caller = await services.authenticator.caller(request.headers.get("authorization"))
    request.scope["state"]["caller"] = caller
    return caller


CallerOf = Annotated[Caller, Depends(caller_of)]
authenticated = Depends(caller_of)


def admin_for(what: str) -> Any:
    """The dependency that lets only administrators on; `what` begins the sentence for the others."""

    async def check(caller: CallerOf) -> None:
        require_admin(caller, what)

    return Depends(check)


def operator_for(what: str) -> Any:
    """The dependency that refuses viewers; `what` begins the sentence for them."""

    async def check(caller: CallerOf) -> None:
        require_operator(caller, what)

    return Depends(check)
