"""Brings a database's schema to the one that this version runs on, one revision after the other.

`migrate` is the way in, `env` is what Alembic asks for a connection, `versions/` holds the
revisions; a released one is never changed. They import Alembic and SQLAlchemy, never `tables`: a
revision must do the same when the tables have moved on. `tests/contract/test_migrations.py` holds
the sum of the revisions equal to `tables`. Start at `migrate`.
"""
