"""Who may do what, and whose jobs a caller sees.

For now: definitions, users and credentials need `admin`; everybody else executes, and reads and
appends to the jobs that they started.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from iotjobs.domain.errors import NotAllowed


class Role(StrEnum):
    """A user's role, weakest first."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ENGINEER = "engineer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated user of a call."""

    user_id: str
    login: str
    role: Role


@dataclass(frozen=True, slots=True)
class Scope:
    """What a read may return.

    Attributes:
        jobs_of: only jobs that this user started; None means all jobs.
    """

    jobs_of: str | None = None


EVERYTHING = Scope()


def scope_of(caller: Caller) -> Scope:
    """What a caller's reads may return."""
    return EVERYTHING if caller.role is Role.ADMIN else Scope(jobs_of=caller.user_id)


def require_operator(caller: Caller, what: str) -> None:
    """Refuse viewers.

    Raises:
        NotAllowed: the caller only views.
    """
    if caller.role is Role.VIEWER:
        raise NotAllowed(f"{what} needs the role operator; {caller.login} is {caller.role}")


def require_admin(caller: Caller, what: str) -> None:
    """Refuse everybody but administrators.

    Raises:
        NotAllowed: the caller's role is another one.
    """
    if caller.role is not Role.ADMIN:
        raise NotAllowed(f"{what} needs the role admin; {caller.login} is {caller.role}")
