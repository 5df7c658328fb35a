"""The shapes that the client gives back: what callers need by name, and the whole record beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

_ENDED = frozenset({"FINISHED", "CANCELED"})


@dataclass(frozen=True, slots=True)
class Named:
    """An object, a link or an operation.

    Attributes:
        record: all that the API says of it.
        folder: where the API has it: `objects`, `links`; empty for an operation.
    """

    id: str
    name: str
    record: dict[str, Any] = field(repr=False, compare=False)
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was when the server answered.

    Attributes:
        outcome: None before its end.
        exit_code: None when there is none (yet), and for MQTT messages.
        record: the whole job record.
    """

    id: str
    label: str
    status: str
    outcome: str | None
    exit_code: int | None
    record: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def of(cls, record: dict[str, Any]) -> Job:
        """Read a job record.

        Raises:
            KeyError: it is none.
        """
        described = record.get("description")
        exit_code = described.get("exitCode") if isinstance(described, dict) else None
        return cls(
            id=str(record["id"]),
            label=str(record["label"]),
            status=str(record["status"]),
            outcome=record["outcome"],
            exit_code=exit_code,
            record=record,
        )

    @property
    def ended(self) -> bool:
        """Whether nothing more will become of it."""
        return self.status in _ENDED

    @property
    def said(self) -> str:
        """What it has to say, as text: its output, or the error, or the topic and message that were sent.

        What has ended without an exit code says why first: that is where the kill's proof stands.
        """
        described = self.record.get("description") or {}
        error = (self.record.get("error") or {}).get("message")
        spoken = (
            error if self.ended and self.exit_code is None else None,
            described.get("stdout"),
            described.get("stderr"),
            error,
            " ".join(
                _text(described[name]) for name in ("topic", "message") if described.get(name) is not None
            ),
        )
        return next((str(text) for text in spoken if text and str(text).strip()), "")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
