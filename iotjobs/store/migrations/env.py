"""What Alembic runs for each command: revisions on the connection that `migrate` opened."""

from __future__ import annotations

from alembic import context

# SQLite's DDL is transactional; Alembic assumes that it is not.
context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
