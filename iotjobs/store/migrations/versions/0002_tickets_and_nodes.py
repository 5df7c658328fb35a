"""Several nodes: workers, leases, and the tables of PgQueuer 1.6 (PostgreSQL only)."""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True)

# What `pgq sql install` of 1.6.0 prints for this schema and prefix; frozen there.
PGQUEUER = Path(__file__).with_name("0002_pgqueuer.sql")


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "worker",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("queues", JSON, nullable=False),
        sa.Column("at_once", sa.Integer(), nullable=False),
        sa.Column("running", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.Column("gone_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "lease",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    bind = op.get_bind()
    if bind.dialect.name == "postgresql":
        statements = PGQUEUER.read_text(encoding="utf-8")
        # Several statements: asyncpg takes them by the simple protocol only, in the same transaction.
        bind.connection.dbapi_connection.run_async(lambda driver: driver.execute(statements))
