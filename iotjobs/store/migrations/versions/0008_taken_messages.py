"""What devices sent that was taken, and that the broker may bring again."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the table. What was taken before may come again once."""
    op.create_table(
        "taken_messages",
        sa.Column("id", COUNTER, autoincrement=True, nullable=False),
        sa.Column("messages", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
