"""Output of scripts and programs: numbered chunks per attempt, each of one stream.

A chunk's `position` is its first byte within its stream, so that a gap (the cap was reached) is
seen, and told, by whoever reads.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, LargeBinary, bindparam, delete, func, select, tuple_

from iotjobs.store import tables
from iotjobs.store.writer import Transaction

O = tables.output.c  # noqa: E741 - the table's columns, as J is the job's


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some bytes of one stream."""

    number: int
    stream: str
    position: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Text:
    """The beginning of a stream as text; bytes that are not UTF-8 are replaced."""

    text: str
    whole: bool


def append(tx: Transaction, job_id: str, attempt: int, chunks: Iterable[Chunk]) -> None:
    """Add chunks of the attempt under way; the caller has made sure that it is."""
    for chunk in chunks:
        tx.append(
            tables.output,
            {
                "job_id": job_id,
                "attempt": attempt,
                "number": chunk.number,
                "stream": chunk.stream,
                "position": chunk.position,
                "data": chunk.data,
            },
        )


def drop(tx: Transaction, job_id: str, attempt: int, numbers: list[int]) -> None:
    """Remove chunks that fell out of the middle."""
    if numbers:
        tx.conn.execute(
            delete(tables.output).where(O.job_id == job_id, O.attempt == attempt, O.number.in_(numbers))
        )


_beginnings = (
    select(
        O.job_id,
        O.stream,
        O.position,
        func.substr(O.data, 1, bindparam("limit", literal_execute=True), type_=LargeBinary),
        func.length(O.data),
    )
    .where(
        tuple_(O.job_id, O.attempt).in_(bindparam("attempts", expanding=True)),
        O.position < bindparam("limit", literal_execute=True),
    )
    .order_by(O.job_id, O.number)
)


def beginnings(conn: Connection, attempts: list[tuple[str, int]], limit: int) -> dict[tuple[str, str], Text]:
    """The first `limit` bytes of both streams of each (job id, attempt), by (job id, stream)."""
    if not attempts:
        return {}
    found: dict[tuple[str, str], bytearray] = {}
    lengths: dict[tuple[str, str], int] = {}
    rows = conn.execute(_beginnings, {"attempts": attempts, "limit": limit})
    for job_id, stream, position, data, length in rows:
        kept = found.setdefault((job_id, stream), bytearray())
        lengths[job_id, stream] = position + length
        if position == len(kept):  # behind a gap nothing belongs to the beginning
            kept += data
    return {key: _text(bytes(kept[:limit]), lengths[key] <= len(kept[:limit])) for key, kept in found.items()}


def _text(data: bytes, whole: bool) -> Text:
    # A cut may fall inside a character: that is left out, not shown as broken.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return Text(decoder.decode(data, final=whole), whole)


def page(conn: Connection, job_id: str, attempt: int, stream: str, from_byte: int) -> list[Chunk]:
    """Up to 16 chunks of a stream that hold bytes at or after `from_byte`, in order."""
    query = (
        select(O.number, O.stream, O.position, O.data)
        .where(O.job_id == job_id, O.attempt == attempt, O.stream == stream)
        .where(O.position + func.length(O.data) > from_byte)
        .order_by(O.number)
        .limit(16)
    )
    return [Chunk(*row) for row in conn.execute(query)]


def extent(conn: Connection, job_id: str, attempt: int, stream: str) -> list[tuple[int, int]]:
    """The kept ranges of a stream as (from, to) bytes, neighbours joined, in order."""
    query = (
        select(O.position, func.length(O.data))
        .where(O.job_id == job_id, O.attempt == attempt, O.stream == stream)
        .order_by(O.number)
    )
    ranges: list[Any] = []
    for position, length in conn.execute(query):
        if ranges and ranges[-1][1] == position:
            ranges[-1] = (ranges[-1][0], position + length)
        else:
            ranges.append((position, position + length))
    return ranges
