"""The order in which messages leave, whoever sends them and however long one of them has to wait."""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class Line:
    """Jobs whose messages leave one behind the other. All calls in one loop."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, asyncio.Future[None] | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._turns)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._turns

    def join(self, job_id: str) -> None:
        """Stand behind all others; a `leave` must follow, whatever comes of the message."""
        self._turns[job_id] = None

    async def come(self, job_id: str) -> None:
        """Wait until all before it have left. May be canceled and called again: its place stays."""
        while job_id in self._turns and next(iter(self._turns)) != job_id:
            turn = self._turns[job_id] = asyncio.get_running_loop().create_future()
            await turn

    def leave(self, job_id: str) -> None:
        """Let the next come; a second call, or one for who does not stand here, changes nothing."""
        self._turns.pop(job_id, None)
        turn = next(iter(self._turns.values()), None)
        if turn is not None and not turn.done():
            turn.set_result(None)
