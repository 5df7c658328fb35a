"""What the routes work with, and who may use them: the dependencies of every route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from iotjobs.domain.rights import Caller, require_admin
from iotjobs.inputs.auth import Authenticator
from iotjobs.store.secrets import Secrets
from iotjobs.store.session import Store


def _nothing() -> None:
    """Nobody asked to be told."""


@dataclass(frozen=True, slots=True)
class ApiServices:
    """The parts of the server that routes call.

    Attributes:
        allow_local: operations may run on this host.
        definitions_changed: called in the event loop after a change of objects or credentials is
            committed: ways to devices, and what the broker lets them do, may be different now.
    """

    store: Store
    secrets: Secrets
    authenticator: Authenticator
    allow_local: bool = False
    definitions_changed: Callable[[], None] = _nothing


async def _services(request: Request) -> ApiServices:
    services = request.app.state.services
    assert isinstance(services, ApiServices)
    return services


Services = Annotated[ApiServices, Depends(_services)]


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
