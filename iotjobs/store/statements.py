"""Statements of the way that every job takes: compiled once, and on SQLite run by the driver itself.

SQLAlchemy's part of an execution costs twenty times what SQLite needs for a row by its key (37 µs to
1.6 µs), and a job takes two dozen of them. So these are written in Core, compiled on their first use,
and then handed to the connection of `sqlite3`; on PostgreSQL Core runs them as ever. Values pass
through the same type processors, and errors are SQLAlchemy's.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Connection, Dialect, Insert, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.compiler import SQLCompiler

Parameters = Mapping[str, Any]
_Processor = Callable[[Any], Any]
_NOTHING: Parameters = {}


class Prepared:
    """A Core statement; its parameters are its bindparams, for an INSERT its columns. Thread-safe."""

    __slots__ = ("_columns", "_compiled", "_statement")

    def __init__(self, statement: Executable, columns: Sequence[str] | None = None) -> None:
        """Nothing is compiled yet.

        Args:
            statement: SELECT, INSERT, UPDATE or DELETE; no `IN`, whose text changes with its values.
            columns: of an INSERT; each row then has all of them.
        """
        self._statement = statement
        self._columns = columns
        self._compiled: _Compiled | None = None

    def all(self, conn: Connection, parameters: Parameters = _NOTHING) -> Sequence[Any]:
        """All rows, as named tuples."""
        if conn.dialect.name != "sqlite":
            return conn.execute(self._statement, parameters).all()
        compiled = self._of(conn.dialect)
        return [compiled.row(values) for values in self._run(conn, compiled, parameters).fetchall()]

    def first(self, conn: Connection, parameters: Parameters = _NOTHING) -> Any:
        """The first row as a named tuple, or None."""
        if conn.dialect.name != "sqlite":
            return conn.execute(self._statement, parameters).first()
        compiled = self._of(conn.dialect)
        cursor = self._run(conn, compiled, parameters)
        values = cursor.fetchone()
        cursor.close()  # a statement that is not read to its end keeps its snapshot open
        return None if values is None else compiled.row(values)

    def scalar(self, conn: Connection, parameters: Parameters = _NOTHING) -> Any:
        """The first column of the first row, or None."""
        row = self.first(conn, parameters)
        return None if row is None else row[0]

    def run(self, conn: Connection, parameters: Parameters = _NOTHING) -> int:
        """Execute an UPDATE, DELETE or INSERT; how many rows it was."""
        if conn.dialect.name != "sqlite":
            return conn.execute(self._statement, parameters).rowcount
        return self._run(conn, self._of(conn.dialect), parameters).rowcount

    def insert(self, conn: Connection, row: Parameters) -> int:
        """Insert a row whose key the database counts; the key."""
        if conn.dialect.name != "sqlite":
            key = conn.execute(self._statement, row).inserted_primary_key
            assert key is not None
            return int(key[0])
        number = self._run(conn, self._of(conn.dialect), row).lastrowid
        assert number is not None
        return number

    def insert_all(self, conn: Connection, rows: Sequence[Parameters]) -> None:
        """Insert rows in their order."""
        if conn.dialect.name != "sqlite":
            conn.execute(self._statement, list(rows))
            return
        compiled = self._of(conn.dialect)
        values = [compiled.values(row) for row in rows]
        try:
            _driver(conn).executemany(compiled.sql, values)
        except sqlite3.Error as error:
            raise _wrapped(error, conn, compiled.sql, values) from error

    def _of(self, dialect: Dialect) -> _Compiled:
        if self._compiled is None:
            self._compiled = _Compiled(self._statement, dialect, self._columns)
        return self._compiled

    @staticmethod
    def _run(conn: Connection, compiled: _Compiled, parameters: Parameters) -> sqlite3.Cursor:
        values = compiled.values(parameters)
        try:
            return _driver(conn).execute(compiled.sql, values)
        except sqlite3.Error as error:
            raise _wrapped(error, conn, compiled.sql, values) from error


class _Compiled:
    """A statement in SQLite's words, with what its values go through on their way in and out."""

    __slots__ = ("_binds", "_fixed", "_results", "_row", "sql")

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
        self._binds = tuple((name, processors.get(name)) for name in compiled.positiontup or ())
        # Those of callers are not known yet; what Core made of constants is.
        known = compiled.construct_params(_check=False)
        self._fixed = {name: value for name, value in known.items() if value is not None}
        found = [] if isinstance(statement, Insert) else compiled._result_columns
        converters = [
            column.type._unwrapped_dialect_impl(dialect).result_processor(dialect, None) for column in found
        ]
        self._results = tuple((at, how) for at, how in enumerate(converters) if how is not None)
        row: Any = namedtuple("Row", [column.keyname for column in found], rename=True)  # type: ignore[misc]
        self._row = row._make

    def values(self, given: Parameters) -> list[Any]:
        """What is bound, in order."""
        fixed = self._fixed
        return [
            (given[name] if name in given else fixed[name])
            if process is None
            else process(given[name] if name in given else fixed[name])
            for name, process in self._binds
        ]

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


def command(conn: Connection, sql: str) -> None:
    """Run a statement of SQLite that has neither parameters nor rows, such as SAVEPOINT."""
    try:
        _driver(conn).execute(sql)
    except sqlite3.Error as error:
        raise _wrapped(error, conn, sql, ()) from error


def _driver(conn: Connection) -> sqlite3.Connection:
    if not conn.in_transaction():
        conn.begin()  # as Core does: BEGIN, or nothing with AUTOCOMMIT
    return cast(sqlite3.Connection, conn.connection.dbapi_connection)


def _wrapped(error: sqlite3.Error, conn: Connection, sql: str, values: Any) -> BaseException:
    return DBAPIError.instance(sql, values, error, sqlite3.Error, dialect=conn.dialect)
