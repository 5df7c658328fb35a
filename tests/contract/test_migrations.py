from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from iotjobs.domain.errors import ConfigurationError, MigrationNeeded, StoreUnavailable
from iotjobs.store import state_tables
from iotjobs.store.migrations import migrate as module
from iotjobs.store.migrations.migrate import HEAD, REVISIONS, migrate, revision_of
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

# Of all tables: those of `tables` come with the others.
METADATA = state_tables.states.metadata


def differences(conn: Connection) -> list[object]:
    options = {"compare_type": True, "compare_server_default": True}
    return list(compare_metadata(MigrationContext.configure(conn, opts=options), METADATA))


async def test_the_revisions_make_the_tables_that_the_code_uses(store: Store) -> None:
    assert await store.read(revision_of) == HEAD
    assert await store.read(differences) == []


async def test_partial_indexes_and_counters_are_the_same_too(store: Store) -> None:
    """What Alembic does not compare: the conditions of indexes, and SQLite's AUTOINCREMENT."""
    made = await store.read(_definitions)

    def by_metadata(tx: Transaction) -> None:
        METADATA.drop_all(tx.conn)
        METADATA.create_all(tx.conn)

    await store.write(by_metadata)

    assert await store.read(_definitions) == made


def _definitions(conn: Connection) -> set[str]:
    if conn.dialect.name == "sqlite":
        query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND tbl_name != 'alembic_version'"
        return {_plain(sql) for sql in conn.execute(text(query)).scalars()}
    query = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename != 'alembic_version'"
    sequences = "SELECT sequencename FROM pg_sequences"
    return {*conn.execute(text(query)).scalars(), *conn.execute(text(sequences)).scalars()}


def _plain(sql: str) -> str:
    """Without what two ways of writing the same differ in: blanks, quotes, the order of members."""
    head, _, body = " ".join(sql.replace('"', "").split()).partition("(")
    return f"{head}({'|'.join(sorted(part.strip() for part in body.rstrip(')').split(',')))}"


async def test_a_second_run_changes_nothing(store: Store, store_url: str) -> None:
    await asyncio.to_thread(migrate, store_url)

    assert await store.read(differences) == []


async def test_values_of_before_are_in_the_order_of_their_moments(store: Store, store_url: str) -> None:
    def as_before(tx: Transaction) -> None:
        for table in ("taken_messages", "unheeded", "rule_list"):  # of later revisions
            tx.conn.execute(text(f"DROP TABLE {table}"))
        for column in ("hold_depths", "overruled", "known_until"):
            tx.conn.execute(text(f"ALTER TABLE standing DROP COLUMN {column}"))
        tx.conn.execute(text("ALTER TABLE property_history DROP COLUMN gone"))
        tx.conn.execute(text("ALTER TABLE property_history RENAME COLUMN step TO report"))
        if tx.conn.dialect.name == "postgresql":
            tx.conn.execute(text("ALTER TABLE property_history ALTER COLUMN report TYPE INTEGER"))
        columns = "entity_id, name, value, at, report"
        for name, at, report in (
            ("a", 2**40, 5000),
            ("b", 2**40, 5000),
            ("a", 2**40, 5001),
            ("a", 2**40 + 9, 1),
        ):
            row = f"'e', '{name}', '1', {at}, {report}"
            tx.conn.execute(text(f"INSERT INTO property_history ({columns}) VALUES ({row})"))
        tx.conn.execute(text("UPDATE alembic_version SET version_num = '0006'"))

    await store.write(as_before)
    await asyncio.to_thread(migrate, store_url)

    assert await store.read(differences) == []
    query = text("SELECT step FROM property_history ORDER BY id")
    steps = await store.read(lambda conn: list(conn.execute(query).scalars()))
    assert steps == [2**52 + 904, 2**52 + 904, 2**52 + 905, (2**40 + 9) * 4096 + 1]


async def test_a_database_of_a_newer_version_is_refused_and_left_alone(store: Store, store_url: str) -> None:
    await store.write(lambda tx: tx.conn.execute(text("UPDATE alembic_version SET version_num = '9999'")))

    with pytest.raises(MigrationNeeded, match="9999"):
        await asyncio.to_thread(migrate, store_url)

    assert await store.read(revision_of) == "9999"


async def test_a_revision_that_fails_leaves_nothing_behind(store: Store, store_url: str) -> None:
    def only_one_table(tx: Transaction) -> None:
        METADATA.drop_all(tx.conn)
        tx.conn.execute(text("DELETE FROM alembic_version"))
        tx.conn.execute(text("CREATE TABLE site (name TEXT)"))

    await store.write(only_one_table)

    with pytest.raises(MigrationNeeded, match="could not be brought"):
        await asyncio.to_thread(migrate, store_url)

    present = await store.read(lambda conn: set(inspect(conn).get_table_names()))
    assert present == {"alembic_version", "site"}


def test_nodes_that_start_together_migrate_once(fresh_empty_database: Callable[[], str]) -> None:
    url = fresh_empty_database()

    with ThreadPoolExecutor(4) as nodes:
        done = [nodes.submit(migrate, url) for _ in range(4)]
        assert [node.result() for node in done] == [None] * 4


@pytest.fixture
def fresh_empty_database(postgres_server, fresh_database) -> Callable[[], str]:
    def make() -> str:
        url = fresh_database()
        name = url.rpartition("/")[2]
        postgres_server.execute("DROP SCHEMA public, iotjobs_q CASCADE; CREATE SCHEMA public", database=name)
        return url

    return make


def test_the_list_of_revisions_is_the_folders() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(module.__file__).parent))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)

    assert tuple(reversed([script.revision for script in scripts.walk_revisions()])) == REVISIONS
    assert scripts.get_heads() == [HEAD]


def test_a_database_at_head_costs_no_import_of_alembic(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/iotjobs.db"
    migrate(url)
    code = (
        "import sys; from iotjobs.store.migrations.migrate import migrate; "
        f"migrate({url!r}); sys.exit('alembic' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_database_that_cannot_be_reached_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        migrate(f"sqlite:///{tmp_path}/missing/iotjobs.db")
    with pytest.raises(StoreUnavailable):
        migrate("postgresql://nobody:secret@127.0.0.1:1/iotjobs")
    with pytest.raises(ConfigurationError, match="mysql"):
        migrate("mysql://localhost/iotjobs")


def test_a_missing_postgres_database_is_said_so(postgres_server) -> None:
    with pytest.raises(StoreUnavailable) as refused:
        migrate(postgres_server.url("there_is_none"))

    assert postgres_server.password not in str(refused.value)
