"""Also of what expired or was stopped it may still have to be found out what it left on its device."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

UNPROVEN = "worker_id IS NOT NULL AND (outcome = 'canceled' OR outcome = 'expired' OR status = 'STOPPED')"


def upgrade() -> None:
    """Let the index hold them."""
    where = sa.text(UNPROVEN)
    op.drop_index("job_unproven", "job")
    op.create_index("job_unproven", "job", ["worker_id"], sqlite_where=where, postgresql_where=where)
