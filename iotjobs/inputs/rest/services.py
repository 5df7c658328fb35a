"""What the routes work with, and who may use them: the dependencies of every route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from iotjobs.domain.errors import NotReady
from iotjobs.domain.rights import Caller, require_admin
from iotjobs.engine.enrolment import Enrolment
from iotjobs.engine.feed import Feed
from iotjobs.engine.intake import Intake
from iotjobs.engine.reach import Reach
from iotjobs.engine.readiness import Readiness
from iotjobs.inputs.auth import Authenticator
from iotjobs.store.secrets import Secrets
from iotjobs.store.session import Store


def _nothing() -> None:
    """Nobody asked to be told."""


@dataclass(frozen=True, slots=True)
class EngineServices:
    """The running engine, as routes use it."""

    intake: Intake
    feed: Feed
    reach: Reach
    enrolment: Enrolment
    readiness: Readiness

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


async def _services(request: Request) -> ApiServices:
    services = request.app.state.services
    assert isinstance(services, ApiServices)
    return services


Services = Annotated[ApiServices, Depends(_services)]


async def _engine(services: Services) -> EngineServices:
    if services.engine is None:
        raise NotReady("the engine is not running")
    return services.engine


Engine = Annotated[EngineServices, Depends(_engine)]


async def _caller(request: Request, services: Services) -> Caller:
    caller = await services.authenticator.caller(request.headers.get("authorization"))
    request.scope["state"]["caller"] = caller
    return caller


CallerOf = Annotated[Caller, Depends(_caller)]
authenticated = Depends(_caller)


def admin_for(what: str) -> Any:
    """The dependency that lets only administrators on; `what` begins the sentence for the others."""

    async def check(caller: CallerOf) -> None:
        require_admin(caller, what)

    return Depends(check)
