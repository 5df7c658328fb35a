from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iotjobs.domain.errors import LeaseLost, StoreUnavailable
from iotjobs.engine import recorder as module
from iotjobs.engine.recorder import Recorder
from iotjobs.store import jobs, output
from iotjobs.store.session import Store
from tests.services.rows import job_of, running_job
from tests.services.site import eventually

PIECES = st.lists(
    st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=40), st.booleans()),
    max_size=12,
)


async def kept(store: Store, job_id: str, stream: str) -> tuple[list[tuple[int, int]], bytes]:
    """The ranges of a stream that are on disk, and their bytes."""
    ranges = await store.read(lambda conn: output.extent(conn, job_id, 1, stream))
    chunks, start = [], 0
    while page := await store.read(lambda conn: output.page(conn, job_id, 1, stream, start)):  # noqa: B023 - awaited at once
        chunks += page
        start = page[-1].position + len(page[-1].data)
    return ranges, b"".join(chunk.data for chunk in chunks)


async def close(store: Store, recorder: Recorder, job_id: str) -> None:
    """Close, and write what is left as the settling transaction does."""
    left = await recorder.close()
    await store.write(lambda tx: output.append(tx, job_id, 1, left))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=PIECES, half=st.integers(1, 60))
async def test_head_and_tail_are_kept_exactly_and_the_size_is_exact_whatever_comes(
    sqlite_store: Store, pieces: list[tuple[str, bytes, bool]], half: int
) -> None:
    job = await running_job(sqlite_store)
    recorder = Recorder(sqlite_store, job.id, 1, cap_bytes=2 * half)
    written = {"stdout": b"", "stderr": b""}
    for stream, data, flush in pieces:
        await recorder.write(stream, data)
        written[stream] += data
        if flush:
            await recorder.flush()
    await close(sqlite_store, recorder, job.id)

    total = sum(len(data) for data in written.values())
    on_disk = 0
    for stream, data in written.items():
        ranges, found = await kept(sqlite_store, job.id, stream)
        assert found == b"".join(data[start:end] for start, end in ranges)
        on_disk += len(found)
    assert recorder.total_bytes == total
    assert recorder.truncated is (on_disk < total)
    assert on_disk >= min(total, 2 * half)
    if total <= 2 * half:
        assert on_disk == total


async def test_of_one_stream_the_first_half_and_the_last_half_are_there(sqlite_store: Store) -> None:
    job = await running_job(sqlite_store)
    recorder = Recorder(sqlite_store, job.id, 1, cap_bytes=200)
    whole = bytes(range(256)) * 4
    for start in range(0, len(whole), 7):
        await recorder.write("stdout", whole[start : start + 7])
        await recorder.flush()
    await close(sqlite_store, recorder, job.id)

    ranges, data = await kept(sqlite_store, job.id, "stdout")

    [head, tail] = ranges
    assert head == (0, 100)
    assert tail[1] == 1024
    assert 1024 - 107 <= tail[0] <= 1024 - 100
    assert data == whole[:100] + whole[tail[0] :]
    assert (recorder.total_bytes, recorder.truncated) == (1024, True)
    row = await job_of(sqlite_store, job.id)
    assert (row.output_bytes, row.output_truncated) == (1024, True)


class _Unheard:
    """A store whose first answer is lost, and not what was written."""

    def __init__(self, store: Store) -> None:
        self._store, self.lost, self.full = store, False, False

    async def write(self, item: Any, **given: Any) -> Any:
        result = await self._store.write(item, **given)
        if not self.lost:
            self.lost = True
            raise StoreUnavailable("the connection was cut")
        return result


async def test_what_was_written_without_an_answer_is_written_once(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STORE_RETRY_S", 0.01)
    job = await running_job(sqlite_store)
    store = _Unheard(sqlite_store)
    recorder = Recorder(store, job.id, 1, cap_bytes=100)  # type: ignore[arg-type]

    await recorder.write("stdout", b"abc")
    await recorder.flush()
    await recorder.write("stdout", b"def")
    await close(sqlite_store, recorder, job.id)

    assert store.lost
    assert await kept(sqlite_store, job.id, "stdout") == ([(0, 6)], b"abcdef")


async def test_a_short_output_costs_no_write_of_its_own(sqlite_store: Store) -> None:
    job = await running_job(sqlite_store)
    recorder = Recorder(sqlite_store, job.id, 1)
    await recorder.write("stdout", b"out")
    await recorder.write("stderr", b"err")
    await recorder.write("stdout", b"put")

    assert (await kept(sqlite_store, job.id, "stdout"))[1] == b""
    chunks = await recorder.close()
    assert [(chunk.stream, chunk.position, chunk.data) for chunk in chunks] == [
        ("stdout", 0, b"output"),
        ("stderr", 0, b"err"),
    ]
    assert await recorder.close() == []


async def test_output_is_on_disk_after_a_moment_and_after_so_many_bytes(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_AFTER_S", 0.01)
    job = await running_job(sqlite_store)
    recorder = Recorder(sqlite_store, job.id, 1)
    await recorder.write("stdout", b"slow")

    async def written() -> bytes:
        return (await kept(sqlite_store, job.id, "stdout"))[1]

    assert await eventually(written) == b"slow"
    await recorder.write("stdout", b"x" * module.FLUSH_BYTES)
    assert await written() == b"slow" + b"x" * module.FLUSH_BYTES
    assert (await job_of(sqlite_store, job.id)).output_bytes == 4 + module.FLUSH_BYTES
    assert await recorder.close() == []


async def test_an_attempt_that_was_taken_over_keeps_nothing_more(sqlite_store: Store) -> None:
    job = await running_job(sqlite_store)
    recorder = Recorder(sqlite_store, job.id, 1)
    await sqlite_store.write(lambda tx: jobs.note(tx, job.id, 1, process_group=7))
    late = Recorder(sqlite_store, job.id, 2)
    await recorder.write("stdout", b"mine")
    await late.write("stdout", b"not mine")

    await recorder.flush()
    with pytest.raises(LeaseLost):
        await late.flush()
    await recorder.close()
    with pytest.raises(LeaseLost):
        await late.write("stdout", b"x" * module.FLUSH_BYTES)


async def test_on_a_full_disk_the_last_output_is_cut_to_what_an_end_may_take(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await running_job(sqlite_store)
    recorder = Recorder(sqlite_store, job.id, 1)
    await recorder.write("stdout", b"o" * 10_000)
    await recorder.write("stderr", b"why it failed")
    monkeypatch.setattr(type(sqlite_store), "full", True)

    left = await recorder.close()

    assert [(chunk.stream, len(chunk.data)) for chunk in left] == [("stdout", 4096), ("stderr", 13)]
    assert (recorder.total_bytes, recorder.truncated) == (10_013, True)
