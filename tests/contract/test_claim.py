from __future__ import annotations

import asyncio
from collections.abc import Callable

from iotjobs.store.session import PostgresStore, postgres_url
from tests.services.postgres import PostgresServer


async def test_one_process_has_the_claim_and_takes_it_again_after_a_cut(
    postgres_server: PostgresServer, fresh_database: Callable[[], str]
) -> None:
    url = postgres_url(await asyncio.to_thread(fresh_database))
    first, second = PostgresStore(url), PostgresStore(url)
    try:
        assert await first.claim()
        assert not await second.claim()
        assert await first.claim()

        await asyncio.to_thread(
            postgres_server.execute,
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{url.database}'",
        )
        assert await first.claim()
        assert not await second.claim()

        await first.stop()
        assert await second.claim()
    finally:
        await first.stop()
        await second.stop()
