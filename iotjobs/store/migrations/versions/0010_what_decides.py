"""To which chain of causes holds belong; what decides a state beside conditions; which properties were taken away."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them. Of what was before, nobody knows; what decides is known after the next look."""
    for name in ("hold_depths", "overruled"):
        op.add_column("standing", sa.Column(name, sa.JSON(none_as_null=True), nullable=True))
    op.add_column("property_history", sa.Column("gone", sa.Boolean(), nullable=True))
