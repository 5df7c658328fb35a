"""In which order properties got values and states changed, also within a millisecond."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What told values of two reports apart tells their order too; of old ones by their moments."""
    op.execute("ALTER TABLE property_history RENAME COLUMN report TO step")
    if op.get_bind().dialect.name == "postgresql":
        of = "ALTER COLUMN step TYPE BIGINT USING at * 4096 + step % 4096"
        op.execute(f"ALTER TABLE property_history {of}")
    else:
        op.execute("UPDATE property_history SET step = at * 4096 + step % 4096")
