"""Up to when it was known what devices had said, when holds of conditions were looked at."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it. Holds that were over before are, as far as a report or a change of state came later."""
    op.add_column("standing", sa.Column("known_until", sa.BigInteger(), nullable=True))
    op.execute("UPDATE standing SET known_until = CASE WHEN heard_at > since THEN heard_at ELSE since END")
