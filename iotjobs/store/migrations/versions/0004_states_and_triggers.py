"""Properties' history, states, conditions and triggers."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True)
COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make them. An entity without a standing is `created`."""
    op.create_table(
        "state",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "condition_list",
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("owner_kind", sa.String(), nullable=False),
        sa.Column("conditions", JSON, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("owner_id"),
    )
    op.create_table(
        "trigger_rule",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("owner_kind", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("operation_id", sa.String(), nullable=False),
        sa.Column("settings", JSON, nullable=False),
        sa.Column("broken_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_trigger_rule_operation_id", "trigger_rule", ["operation_id"])
    op.create_index("trigger_owner", "trigger_rule", ["owner_id", "position"])
    _standings()
    _traces()
    _properties()


def _standings() -> None:
    op.create_table(
        "standing",
        sa.Column("entity_id", sa.String(), nullable=False),
        sa.Column("owner_type", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("why", JSON, nullable=False),
        sa.Column("change_id", sa.String(), nullable=True),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.Column("holding", JSON, nullable=False),
        sa.Column("heard_at", sa.BigInteger(), nullable=True),
        sa.Column("offline", sa.Boolean(), nullable=False),
        sa.Column("forced", JSON, nullable=True),
        sa.Column("wake_at", sa.BigInteger(), nullable=True),
        sa.Column("reports", sa.Integer(), nullable=False),
        sa.Column("superseded", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("entity_id"),
    )
    wakes = sa.text("wake_at IS NOT NULL")
    op.create_index("standing_wake", "standing", ["wake_at"], sqlite_where=wakes, postgresql_where=wakes)
    op.create_table(
        "state_change",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("entity_id", sa.String(), nullable=False),
        sa.Column("owner_type", sa.Integer(), nullable=False),
        sa.Column("entity_name", sa.String(), nullable=False),
        sa.Column("from_state", sa.String(), nullable=False),
        sa.Column("to_state", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("why", JSON, nullable=False),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("state_change_entity", "state_change", ["entity_id", "id"])
    op.create_index("state_change_at", "state_change", ["at"])


def _traces() -> None:
    op.create_table(
        "trigger_trace",
        sa.Column("id", COUNTER, autoincrement=True, nullable=False),
        sa.Column("cause_key", sa.String(), nullable=False),
        sa.Column("trigger_id", sa.String(), nullable=False),
        sa.Column("trigger_name", sa.String(), nullable=False),
        sa.Column("owner_id", sa.String(), nullable=False),
        sa.Column("owner_type", sa.Integer(), nullable=False),
        sa.Column("state_change_id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("cause_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("trigger_trace_owner", "trigger_trace", ["owner_id", "id"])
    op.create_index("trigger_trace_fired", "trigger_trace", ["trigger_id", "owner_id", "decision", "at"])
    op.create_index("trigger_trace_change", "trigger_trace", ["state_change_id"])
    op.create_index("trigger_trace_job", "trigger_trace", ["job_id"])
    op.create_index("trigger_trace_at", "trigger_trace", ["at"])
    op.create_table(
        "trigger_timer",
        sa.Column("cause_key", sa.String(), nullable=False),
        sa.Column("trigger_id", sa.String(), nullable=False),
        sa.Column("entity_id", sa.String(), nullable=False),
        sa.Column("owner_type", sa.Integer(), nullable=False),
        sa.Column("state_change_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("cause_key"),
    )
    op.create_index("ix_trigger_timer_entity_id", "trigger_timer", ["entity_id"])
    op.create_index("trigger_timer_due", "trigger_timer", ["due_at"])


def _properties() -> None:
    op.create_table(
        "property_history",
        sa.Column("id", COUNTER, autoincrement=True, nullable=False),
        sa.Column("entity_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", JSON, nullable=True),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("by", sa.String(), nullable=True),
        sa.Column("report", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("property_history_name", "property_history", ["entity_id", "name", "id"])
    op.create_index("property_history_entity", "property_history", ["entity_id", "at"])
    op.create_index("property_history_at", "property_history", ["at"])
    op.create_table(
        "report_id",
        sa.Column("entity_id", sa.String(), nullable=False),
        sa.Column("report_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("entity_id", "report_id"),
    )
    op.create_index("report_id_number", "report_id", ["entity_id", "number"])
