from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tests.services.postgres import PostgresServer


async def tables_of(url: str) -> list[str]:
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        rows = await connection.execute(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename LIKE 'only_%'")
        )
        names = [str(row[0]) for row in rows]
    await engine.dispose()
    return names


async def test_each_database_is_a_clone_of_its_own(
    postgres_server: PostgresServer, fresh_database: Callable[[], str]
) -> None:
    first, second = fresh_database(), fresh_database()

    postgres_server.execute("CREATE TABLE only_here (id int)", database=first.rpartition("/")[2])

    assert await tables_of(first) == ["only_here"]
    assert await tables_of(second) == []


def test_no_database_of_an_earlier_test_is_left(
    postgres_server: PostgresServer, fresh_database: Callable[[], str]
) -> None:
    fresh_database()

    left = postgres_server.execute("SELECT count(*) FROM pg_database WHERE datname LIKE 'test\\_%'")
    assert left == "1"
