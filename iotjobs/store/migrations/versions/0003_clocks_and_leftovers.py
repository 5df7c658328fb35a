"""A job's whole time to live, whose cancel is still to be proven, and which workers have a broker."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them."""
    op.add_column("job", sa.Column("ttl_ms", sa.BigInteger(), nullable=True))
    # Of jobs that wait: what had to be computed so far.
    op.execute("UPDATE job SET ttl_ms = expires_at - timestamp WHERE ended_at IS NULL")
    unproven = sa.text("worker_id IS NOT NULL AND outcome = 'canceled'")
    op.create_index("job_unproven", "job", ["worker_id"], sqlite_where=unproven, postgresql_where=unproven)
    op.add_column("worker", sa.Column("mqtt", sa.Boolean(), nullable=True))
