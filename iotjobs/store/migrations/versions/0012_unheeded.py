"""How much of what devices said had no effect, and the last that was refused."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; what was before is not counted."""
    op.create_table(
        "unheeded",
        sa.Column("entity_id", sa.String(), nullable=False),
        sa.Column("repeated", sa.BigInteger(), nullable=False),
        sa.Column("refused", sa.BigInteger(), nullable=False),
        sa.Column("refused_at", sa.BigInteger(), nullable=True),
        sa.Column("topic", sa.String(), nullable=True),
        sa.Column("why", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("entity_id"),
    )
