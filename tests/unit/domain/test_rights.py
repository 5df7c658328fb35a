from __future__ import annotations

import pytest

from iotjobs.domain.errors import NotAllowed
from iotjobs.domain.rights import EVERYTHING, Caller, Role, Scope, require_admin, scope_of


@pytest.mark.parametrize("role", list(Role))
def test_only_administrators_see_the_jobs_of_others(role: Role) -> None:
    scope = scope_of(Caller("u1", "anna", role))

    assert scope == (EVERYTHING if role is Role.ADMIN else Scope(jobs_of="u1"))


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR, Role.ENGINEER])
def test_everybody_else_is_told_what_it_needs(role: Role) -> None:
    with pytest.raises(NotAllowed) as refused:
        require_admin(Caller("u1", "anna", role), "making objects")

    assert refused.value.code == "notAllowed"
    assert refused.value.detail == f"making objects needs the role admin; anna is {role}"


def test_an_administrator_may() -> None:
    require_admin(Caller("u1", "anna", Role.ADMIN), "making objects")


def test_everything_is_without_a_limit() -> None:
    assert EVERYTHING.jobs_of is None
