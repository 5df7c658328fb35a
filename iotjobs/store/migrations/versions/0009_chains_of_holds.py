"""To which chain of causes the holds of conditions belong."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it. Of what holds already, nobody knows."""
    hold_depths = sa.Column("hold_depths", sa.JSON(none_as_null=True), nullable=True)
    op.add_column("standing", hold_depths)
