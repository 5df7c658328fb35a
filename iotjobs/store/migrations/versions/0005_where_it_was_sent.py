"""Where a job's newest attempt was sent."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it. Of what was sent before, nobody knows: a kill proves nothing of it unless it finds it."""
    op.add_column("job", sa.Column("sent_to", sa.String(), nullable=True))
