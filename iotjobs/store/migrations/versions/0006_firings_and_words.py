"""When triggers fired, as long as they need it; the last word of a device's connection; lists of traces."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# Of each trigger and entity the last; what else is kept begins with the next.
SEED = """
INSERT INTO trigger_firing (trigger_id, entity_id, at)
SELECT trigger_id, owner_id, max(at) FROM trigger_trace
WHERE decision = 'fired' AND trigger_id IN (SELECT id FROM trigger_rule)
GROUP BY trigger_id, owner_id ORDER BY trigger_id, owner_id
"""


def upgrade() -> None:
    """Make them. What a device's status said before, nobody knows."""
    op.add_column("standing", sa.Column("online", sa.Boolean(), nullable=True))
    op.create_table(
        "trigger_firing",
        sa.Column("id", COUNTER, autoincrement=True, nullable=False),
        sa.Column("trigger_id", sa.String(), nullable=False),
        sa.Column("entity_id", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("trigger_firing_at", "trigger_firing", ["trigger_id", "entity_id", "at"])
    op.create_index("ix_trigger_firing_entity_id", "trigger_firing", ["entity_id"])
    op.create_index("trigger_trace_decision", "trigger_trace", ["decision", "id"])
    op.create_index("trigger_trace_trigger", "trigger_trace", ["trigger_id", "id"])
    op.drop_index("trigger_trace_fired", "trigger_trace")  # it told what trigger_firing tells
    op.execute(SEED)
