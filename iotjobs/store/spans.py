"""Records of a span of moments, the newest first."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import ColumnCollection, Select, and_, or_, select


class Between(NamedTuple):
    """From a moment to another, both included, in milliseconds; None is no bound."""

    since: int | None = None
    until: int | None = None


ALWAYS = Between()


def newest(
    query: Select[Any],
    of: ColumnCollection[str, Any],
    span: Between,
    *,
    limit: int,
    before: str | int | None,
    narrow: bool,
) -> Select[Any]:
    """The newest rows of a query within a span, behind the row of an id.

    Args:
        query: of one table.
        of: its columns; it has an index on `at`.
        span: of their moments.
        limit: how many.
        before: None: from the newest on.
        narrow: something that has an index with `id` behind it is asked for; else a span is read by its moments.
    """
    if span.since is not None:
        query = query.where(of.at >= span.since)
    if span.until is not None:
        query = query.where(of.at <= span.until)
    if narrow or span == ALWAYS:
        if before is not None:
            query = query.where(of.id < before)
        return query.order_by(of.id.desc()).limit(limit)
    if before is not None:
        at = select(of.at).where(of.id == before).correlate(None).scalar_subquery()
        query = query.where(of.at <= at, or_(of.at < at, and_(of.at == at, of.id < before)))
    return query.order_by(of.at.desc(), of.id.desc()).limit(limit)
