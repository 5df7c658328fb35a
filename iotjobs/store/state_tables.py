"""The tables of properties, states and triggers; as `tables`, of which they are a part."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Index, text
from sqlmodel import Field, SQLModel

from iotjobs.store.tables import Counter, core, json_column, ms_column

# What time alone may change; the literal text that both the partial index and its query must have.
WAKES = "wake_at IS NOT NULL"


class StateRow(SQLModel, table=True):
    """A state of the site's own."""

    __tablename__ = "state"
    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    priority: int
    created_at: int = ms_column(nullable=False)
    version: int = 1


class ConditionListRow(SQLModel, table=True):
    """The state conditions of a class, an object or a link, in their order."""

    __tablename__ = "condition_list"
    owner_id: str = Field(primary_key=True)
    owner_kind: str
    conditions: list[dict[str, Any]] = json_column()
    version: int = 1


class TriggerRow(SQLModel, table=True):
    """A trigger of a class, an object or a link; `broken_at`: its breaker is open since."""

    __tablename__ = "trigger_rule"
    id: str = Field(primary_key=True)
    owner_kind: str
    owner_id: str
    position: int
    name: str
    operation_id: str = Field(index=True)
    settings: dict[str, Any] = json_column()
    broken_at: int | None = ms_column()
    __table_args__ = (Index("trigger_owner", "owner_id", "position"),)


class RuleListRow(SQLModel, table=True):
    """The version of an owner's `conditions` or `triggers` as a whole; it goes on when the list is deleted."""

    __tablename__ = "rule_list"
    owner_id: str = Field(primary_key=True)
    what: str = Field(primary_key=True)
    version: int


class StandingRow(SQLModel, table=True):
    """What is remembered of an entity's state; `domain.states.Standing` says what each means.

    `overruled` is the reason of the state now, if it is not the conditions that decide it; `why` and `change_id` are of the last change; `depth` of its chain of causes, `hold_depths` of those of what
    began the holds, where there was one; `reports` and `superseded` count, `online` is what the device's status said last.
    """

    __tablename__ = "standing"
    entity_id: str = Field(primary_key=True)
    owner_type: int
    state: str
    since: int = ms_column(nullable=False)
    why: dict[str, Any] = json_column()
    overruled: dict[str, Any] | None = json_column(nullable=True)
    change_id: str | None = None
    depth: int = 0
    hold_depths: dict[str, int] | None = json_column(nullable=True)
    holding: dict[str, int] = json_column()
    known_until: int | None = ms_column()
    heard_at: int | None = ms_column()
    offline: bool = False
    forced: dict[str, Any] | None = json_column(nullable=True)
    wake_at: int | None = ms_column()
    reports: int = 0
    superseded: int = 0
    online: bool | None = None
    __table_args__ = (
        Index("standing_wake", "wake_at", sqlite_where=text(WAKES), postgresql_where=text(WAKES)),
    )


class StateChangeRow(SQLModel, table=True):
    """One change of an entity's state, and why; also of the reason alone, where it is not the conditions that decide."""

    __tablename__ = "state_change"
    id: str = Field(primary_key=True)
    entity_id: str
    owner_type: int
    entity_name: str
    from_state: str
    to_state: str
    at: int = ms_column(nullable=False)
    why: dict[str, Any] = json_column()
    depth: int = 0
    __table_args__ = (
        Index("state_change_entity", "entity_id", "id"),
        Index("state_change_at", "at"),
    )


class TraceRow(SQLModel, table=True):
    """What one trigger decided at one change, or at a repeat after it; `cause_key` is its job's too."""

    __tablename__ = "trigger_trace"
    id: int | None = Field(default=None, sa_column=Column(Counter, primary_key=True, autoincrement=True))
    cause_key: str = Field(unique=True)
    trigger_id: str
    trigger_name: str
    owner_id: str
    owner_type: int
    state_change_id: str
    state: str
    decision: str
    reason: str
    job_id: str | None = None
    at: int = ms_column(nullable=False)
    __table_args__ = (
        Index("trigger_trace_owner", "owner_id", "id"),
        Index("trigger_trace_trigger", "trigger_id", "id"),
        Index("trigger_trace_change", "state_change_id"),
        Index("trigger_trace_job", "job_id"),
        Index("trigger_trace_at", "at"),
        Index("trigger_trace_decision", "decision", "id"),
        {"sqlite_autoincrement": True},
    )


class FiringRow(SQLModel, table=True):
    """That a trigger with a cooldown or a rate fired for an entity: the last time, and those within the hour.

    Traces are records of a clock that may be set since, and go after a while; these move with it, and stay.
    """

    __tablename__ = "trigger_firing"
    id: int | None = Field(default=None, sa_column=Column(Counter, primary_key=True, autoincrement=True))
    trigger_id: str
    entity_id: str = Field(index=True)
    at: int = ms_column(nullable=False)
    __table_args__ = (Index("trigger_firing_at", "trigger_id", "entity_id", "at"),)


class TriggerTimerRow(SQLModel, table=True):
    """A hold or a repeat that is due once the entity has stayed in its last change's state until then."""

    __tablename__ = "trigger_timer"
    cause_key: str = Field(primary_key=True)
    trigger_id: str
    entity_id: str = Field(index=True)
    owner_type: int
    state_change_id: str
    number: int
    due_at: int = ms_column(nullable=False)
    __table_args__ = (Index("trigger_timer_due", "due_at"),)


class PropertyRow(SQLModel, table=True):
    """A property that got another value, or is `gone`; `by` is who wrote it, None a report.

    What was changed at once has the same `step`. Rows of one entity have their ids in the order of its changes, also
    where several have one moment; steps tell where among them its changes of state belong (`clock.step_of`).
    """

    __tablename__ = "property_history"
    id: int | None = Field(default=None, sa_column=Column(Counter, primary_key=True, autoincrement=True))
    entity_id: str
    name: str
    value: Any = json_column(nullable=True)
    gone: bool | None = None
    at: int = ms_column(nullable=False)
    by: str | None = None
    step: int = Field(sa_column=Column(Counter, nullable=False))
    __table_args__ = (
        Index("property_history_name", "entity_id", "name", "id"),
        Index("property_history_entity", "entity_id", "at"),
        Index("property_history_at", "at"),
        {"sqlite_autoincrement": True},
    )


class ReportIdRow(SQLModel, table=True):
    """The id of a report that was taken; `number` counts the entity's reports."""

    __tablename__ = "report_id"
    entity_id: str = Field(primary_key=True)
    report_id: str = Field(primary_key=True)
    number: int
    __table_args__ = (Index("report_id_number", "entity_id", "number"),)


class TakenRow(SQLModel, table=True):
    """What devices sent by MQTT that one transaction gave its effects; `taken` says what it is for."""

    __tablename__ = "taken_messages"
    id: int | None = Field(default=None, sa_column=Column(Counter, primary_key=True, autoincrement=True))
    messages: list[list[int]] = json_column()


class UnheededRow(SQLModel, table=True):
    """Of an entity's messages, how many had no effect; the rest is of the last that was refused (`unheeded`)."""

    __tablename__ = "unheeded"
    entity_id: str = Field(primary_key=True)
    repeated: int = ms_column(nullable=False)
    refused: int = ms_column(nullable=False)
    refused_at: int | None = ms_column()
    topic: str | None = None
    why: str | None = None


states, condition_lists, triggers = core(StateRow), core(ConditionListRow), core(TriggerRow)
rule_lists = core(RuleListRow)
standings, state_changes = core(StandingRow), core(StateChangeRow)
traces, trigger_timers, firings = core(TraceRow), core(TriggerTimerRow), core(FiringRow)
property_history, report_ids, taken_messages = core(PropertyRow), core(ReportIdRow), core(TakenRow)
unheeded = core(UnheededRow)
