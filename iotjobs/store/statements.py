"""Statements of the way that every job takes: compiled once, and run by the driver itself.

SQLAlchemy's part of an execution costs twenty times what SQLite needs for a row by its key (37 µs to
1.6 µs), and a job takes two dozen of them. So these are written in Core, compiled on their first use,
and then handed to the DBAPI connection: `sqlite3`'s, or SQLAlchemy's adapter of asyncpg's. Values pass
through the same type processors, and errors are SQLAlchemy's.
"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any, cast

from sqlalchemy import (
    ARRAY,
    JSON,
    ColumnElement,
    Connection,
    Dialect,
    Float,
    Insert,
    Table,
    bindparam,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.compiler import SQLCompiler

Parameters = Mapping[str, Any]
_Processor = Callable[[Any], Any]
_NOTHING: Parameters = {}
_PLACE = re.compile(r"\$(\d+)")
_TYPED_PLACE = re.compile(r"\$(\d+)::(\w+)")


class Among(ColumnElement[bool]):
    """A column is one of the values that are bound by a name: unlike `IN`, one text however many they are."""

    inherit_cache = False

    def __init__(self, column: ColumnElement[Any], name: str) -> None:
        self.column, self.name = column, name


@compiles(Among, "postgresql")
def _any(element: Among, compiler: SQLCompiler, **given: Any) -> str:
    values = func.any(bindparam(element.name, type_=ARRAY(element.column.type)))
    return str(compiler.process(element.column == values, **given))


@compiles(Among, "sqlite")
def _in(element: Among, compiler: SQLCompiler, **given: Any) -> str:
    values = func.json_each(bindparam(element.name, type_=JSON)).table_valued("value")
    return str(compiler.process(element.column.in_(select(values.c.value)), **given))


class Prepared:
    """A Core statement; its parameters are its bindparams, for an INSERT its columns. Thread-safe."""

    __slots__ = ("_columns", "_compiled", "_statement")

    def __init__(self, statement: Executable, columns: Sequence[str] | None = None) -> None:
        """Nothing is compiled yet.

        Args:
            statement: SELECT, INSERT, UPDATE or DELETE; no `IN`, whose text changes with its values (`Among`).
            columns: of an INSERT; each row then has all of them.
        """
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, _Compiled] = {}

    def all(self, conn: Connection, parameters: Parameters = _NOTHING) -> Sequence[Any]:
        """All rows, as named tuples."""
        compiled = self._of(conn.dialect)
        return [compiled.row(values) for values in self._run(conn, compiled, parameters).fetchall()]

    def first(self, conn: Connection, parameters: Parameters = _NOTHING) -> Any:
        """The first row as a named tuple, or None."""
        compiled = self._of(conn.dialect)
        cursor = self._run(conn, compiled, parameters)
        values = cursor.fetchone()
        cursor.close()  # a statement that is not read to its end keeps SQLite's snapshot open
        return None if values is None else compiled.row(values)

    def scalar(self, conn: Connection, parameters: Parameters = _NOTHING) -> Any:
        """The first column of the first row, or None."""
        row = self.first(conn, parameters)
        return None if row is None else row[0]

    def run(self, conn: Connection, parameters: Parameters = _NOTHING) -> int:
        """Execute an UPDATE, DELETE or INSERT; how many rows it was."""
        return int(self._run(conn, self._of(conn.dialect), parameters).rowcount)

    def insert(self, conn: Connection, row: Parameters) -> int:
        """Insert a row whose key the database counts; the key."""
        cursor = self._run(conn, self._of(conn.dialect), row)
        return int(cursor.lastrowid if conn.dialect.name == "sqlite" else cursor.fetchone()[0])

    def insert_all(self, conn: Connection, rows: Sequence[Parameters]) -> None:
        """Insert rows in their order."""
        self.run_each(conn, rows)

    def run_each(self, conn: Connection, rows: Sequence[Parameters]) -> None:
        """Execute it with each of these, in their order."""
        compiled = self._of(conn.dialect)
        run(conn, compiled.sql, [compiled.values(row) for row in rows], many=True)

    def of_rows(self, conn: Connection, rows: Sequence[Parameters]) -> tuple[str, Sequence[Any]]:
        """An INSERT of many rows, in their order, as one statement of PostgreSQL; and what is bound."""
        compiled = self._of(conn.dialect)
        return _of_rows(compiled.sql), list(zip(*map(compiled.values, rows), strict=True))

    def run_all(self, conn: Connection, rows: Sequence[Parameters]) -> int:
        """Execute an UPDATE again and again on one way there and back; how many rows it was in all.

        On PostgreSQL not as the first of a transaction, which Core has not begun then.
        """
        compiled = self._of(conn.dialect)
        if conn.dialect.name == "sqlite":
            cursor = run(conn, compiled.sql, [compiled.values(row) for row in rows], many=True)
            return int(cursor.rowcount)
        import asyncpg  # the embedded mode does without

        sql, values = f"{compiled.sql} RETURNING 1", [compiled.values(row) for row in rows]

        async def fetch(driver: Any) -> int:
            assert driver.is_in_transaction()
            return len(await driver.fetchmany(sql, values))

        try:
            return int(cast(Any, conn.connection.dbapi_connection).run_async(fetch))
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DBAPIError(sql, None, error) from error
        except BaseException as error:
            give_up_unanswered(conn, error)
            raise

    def _of(self, dialect: Dialect) -> _Compiled:
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _Compiled(self._statement, dialect, self._columns)
        return compiled

    def _run(self, conn: Connection, compiled: _Compiled, parameters: Parameters) -> Any:
        return run(conn, compiled.sql, compiled.values(parameters))


class _Compiled:
    """A statement in a database's words, with what its values go through on their way in and out."""

    __slots__ = ("_binds", "_fixed", "_given", "_results", "_row", "sql")

    def __init__(self, statement: Executable, dialect: Dialect, columns: Sequence[str] | None) -> None:
        compiled = cast(
            SQLCompiler,
            statement.compile(  # type: ignore[attr-defined]  # every Executable of ours is a ClauseElement
                dialect=dialect,
                column_keys=None if columns is None else list(columns),
            ),
        )
        assert not compiled.post_compile_params, f"its text changes with its values: {compiled}"
        self.sql = str(compiled)
        processors = cast("Mapping[str, _Processor]", compiled._bind_processors)
        names = tuple(compiled.positiontup or ())
        self._binds = tuple((at, processors[name]) for at, name in enumerate(names) if name in processors)
        self._given: Any = (
            itemgetter(*names) if len(names) > 1 else lambda given: [given[name] for name in names]
        )
        # Those of callers are not known yet; what Core made of constants is.
        known = compiled.construct_params(_check=False)
        self._fixed = {name: value for name, value in known.items() if value is not None}
        found = [] if isinstance(statement, Insert) else compiled._result_columns
        converters = [
            None  # both drivers give floats as they are; SQLAlchemy would ask for the column's number
            if isinstance(column.type, Float)
            else column.type._unwrapped_dialect_impl(dialect).result_processor(dialect, None)
            for column in found
        ]
        self._results = tuple((at, how) for at, how in enumerate(converters) if how is not None)
        row: Any = namedtuple("Row", [column.keyname for column in found], rename=True)  # type: ignore[misc]
        self._row = row._make

    def values(self, given: Parameters) -> list[Any]:
        """What is bound, in order."""
        values = list(self._given({**self._fixed, **given} if self._fixed else given))
        for at, process in self._binds:
            values[at] = process(values[at])
        return values

    def row(self, values: Sequence[Any]) -> Any:
        """A row as callers get it."""
        if self._results:
            values = list(values)
            for at, convert in self._results:
                values[at] = convert(values[at])
        return self._row(values)


def insert_if_new(conn: Connection, table: Table, row: Parameters) -> bool:
    """Insert a row unless there is one of its key; whether it was inserted. Waits for who inserts it just now."""
    made = postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert
    return conn.execute(made(table).on_conflict_do_nothing(), row).rowcount == 1


@cache
def _of_rows(sql: str) -> str:
    """An INSERT of one row made one of many: what was bound is an array now."""
    head, given = sql.split(" VALUES (", 1)
    assert given.endswith(")"), f"more follows its values: {sql}"
    kinds = [kind for _, kind in _TYPED_PLACE.findall(given)]
    assert len(kinds) == len(_PLACE.findall(given)), f"what is bound has no type: {sql}"
    names = ", ".join(f"v{at}" for at, _ in enumerate(kinds, 1))
    arrays = ", ".join(f"${at}::{kind}[]" for at, kind in enumerate(kinds, 1))
    taken = _TYPED_PLACE.sub(r"rows.v\1", given[:-1])
    return (
        f"{head} SELECT {taken} FROM unnest({arrays}) WITH ORDINALITY AS rows ({names}, place) ORDER BY place"
    )


@cache
def in_one(statements: tuple[str, ...]) -> str:
    """Statements of PostgreSQL that return nothing and do not see each other, as one; values in their order."""
    *others, last = _numbered_through(statements)
    if not others:
        return last
    return "WITH " + ", ".join(f"part{at} AS ({sql})" for at, sql in enumerate(others)) + " " + last


def _numbered_through(statements: Sequence[str]) -> Iterator[str]:
    before = 0
    for sql in statements:
        yield _PLACE.sub(lambda found, shift=before: f"${int(found[1]) + shift}", sql)  # type: ignore[misc]
        before += max((int(number) for number in _PLACE.findall(sql)), default=0)


def run(conn: Connection, sql: str, values: Sequence[Any] = (), *, many: bool = False) -> Any:
    """Hand a statement to the driver, in the connection's transaction; its cursor.

    Args:
        conn: a connection.
        sql: in the driver's words.
        values: bound in order; with `many`, such a sequence for each time that it is to run.
        many: run it again and again.
    """
    if not conn.in_transaction():
        conn.begin()  # as Core does: BEGIN, or nothing with AUTOCOMMIT
    driver = conn.connection.dbapi_connection
    assert driver is not None
    cursor = driver.cursor()
    try:
        (cursor.executemany if many else cursor.execute)(sql, values)
    except BaseException as error:
        if give_up_unanswered(conn, error):
            raise  # Core's own statements raise it as it is, too
        raise _wrapped(error, conn, sql, values) from error
    return cursor


def give_up_unanswered(conn: Connection, error: BaseException) -> bool:
    """Never use a connection again that was not waited for; whether that is what the error says.

    The server may do later what it was asked, a BEGIN too. The driver would go on inside of that: what it
    then takes for COMMIT is none, and the next writes are promised, and lost.
    """
    unanswered = isinstance(error, OSError) or not isinstance(error, Exception)
    if unanswered:
        conn.invalidate(error)
    return unanswered


def _wrapped(error: BaseException, conn: Connection, sql: str, values: Any) -> BaseException:
    kind = conn.dialect.loaded_dbapi.Error
    return DBAPIError.instance(sql, values, error, kind, hide_parameters=True, dialect=conn.dialect)


def storable(text: str | None) -> str | None:
    """Text that every database keeps: in what devices say may be NUL, and halves of characters."""
    if text is None or (text.isascii() and "\x00" not in text):
        return text
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()
