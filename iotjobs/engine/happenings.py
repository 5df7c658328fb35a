"""What happens to entities: what devices and people say, what the broker tells of connections, and time.

Plain values; what follows from them is `reactions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from iotjobs.domain.entities import OwnerType
from iotjobs.domain.rights import Caller
from iotjobs.domain.states import Forced


@dataclass(frozen=True, slots=True)
class Reported:
    """A device, or who speaks for it, told values of properties.

    Attributes:
        report_id: one that came before has no effect.
        job_ids: of the jobs that led to it, as far as they are known.
        superseded: how much of what the device said it stands for beside itself, that came too quickly.
        earlier_ids: those of reports among that, which have come as well.
        retained: the broker had kept it, nobody knows how long: values, and no sign of life.
        parts: those that it was merged from, as far as no later one has their values; each has its own effect, when
            one of them came before, or is refused.
    """

    values: Mapping[str, Any]
    report_id: str | None = None
    job_ids: tuple[str, ...] = ()
    superseded: int = 0
    earlier_ids: tuple[str, ...] = ()
    retained: bool = False
    parts: tuple[Reported, ...] = field(default=(), compare=False)

    @property
    def ids(self) -> tuple[str, ...]:
        """That of the report, behind those that it stands for."""
        return self.earlier_ids if self.report_id is None else (*self.earlier_ids, self.report_id)


@dataclass(frozen=True, slots=True)
class Written:
    """A person set properties; `job_ids` as of `Reported`."""

    values: Mapping[str, Any]
    caller: Caller
    job_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Redefined:
    """A person changed the definition of an entity, which is written already.

    Attributes:
        before: its own properties.
        job_ids: as of `Reported`.
    """

    before: Mapping[str, Any]
    caller: Caller
    job_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Connection:
    """The broker told that a device came, or went.

    Attributes:
        report_id, superseded, earlier_ids: as of `Reported`.
        retained: the broker had kept it, nobody knows how long.
    """

    online: bool
    superseded: int = 0
    retained: bool = False
    report_id: str | None = None
    earlier_ids: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """That of the word, behind those that it stands for."""
        return self.earlier_ids if self.report_id is None else (*self.earlier_ids, self.report_id)


@dataclass(frozen=True, slots=True)
class Said:
    """A person forces a state, or takes that back; `job_ids` as of `Reported`."""

    forced: Forced | None
    job_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Looked:
    """Time has passed, or what decides was changed."""


What: TypeAlias = Reported | Written | Redefined | Connection | Said | Looked


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened to an entity."""

    owner_type: OwnerType
    entity_id: str
    what: What
