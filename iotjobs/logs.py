"""Structured logging: constant phrases plus fields, one JSON object (or one plain line) each.

Fields are given with `extra=`: `job_id`, `entity_id`, `attempt` and whatever the phrase needs.
Payloads never above debug, secrets never.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from iotjobs import clock

_PLAIN = frozenset(vars(logging.makeLogRecord({})))


class _Lines(logging.Formatter):
    """`time level logger phrase field=value …`, control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the fields hold."""
        fields = " ".join(f"{name}={_visible(value)}" for name, value in _fields(record).items())
        line = f"{clock.rfc3339(int(record.created * 1000))} {record.levelname} {record.name} {_visible(record.getMessage())}"
        if record.exc_info:
            line += f" trace={_visible(self.formatException(record.exc_info))}"
        return f"{line} {fields}".rstrip()


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the fields hold."""
        entry: dict[str, Any] = {
            "at": clock.rfc3339(int(record.created * 1000)),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _PLAIN and name != "message"}


def _visible(value: object) -> str:
    text = str(value)
    return text if text.isprintable() else json.dumps(text)


def _without_trace(record: logging.LogRecord) -> bool:
    """Let a record pass with its error's text only: the database was away, and they try again."""
    if record.exc_info:
        record.why = repr(record.exc_info[1])
        record.exc_info = None
    return True


def configure(level: str, style: str) -> None:
    """Send everything at or above `level` to stderr as `lines` or `json`; may be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # What these tell at INFO is our debug.
    for name in ("asyncssh", "uvicorn", "alembic", "pgqueuer"):
        logging.getLogger(name).setLevel(logging.DEBUG if level.upper() == "DEBUG" else logging.WARNING)
    for name in ("pgqueuer", "asyncpg.pool"):
        logging.getLogger(name).addFilter(_without_trace)
