"""To which chain of causes the holds of conditions belong, and what decides a state beside conditions."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them. Of what holds already, nobody knows; what decides is known after the next look."""
    for name in ("hold_depths", "overruled"):
        op.add_column("standing", sa.Column(name, sa.JSON(none_as_null=True), nullable=True))
