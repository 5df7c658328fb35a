"""Keeps the data directory to ourselves: everything that was said to devices is in the database.

New files are private by the process's umask. These are for what was made otherwise: copied from a
backup, or by an installer that made the directory.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable
from os import geteuid
from pathlib import Path

log = logging.getLogger(__name__)

_FILES = ("iotjobs.db", "iotjobs.db-wal", "iotjobs.db-shm", "iotjobs.db-reserve", "lock")
_OURS = frozenset({*_FILES, "secret.key", "broker", "worker", "iotjobs.db-journal"})


def make_private(directory: Path) -> None:
    """Take the rights of others away from the database and the directory; tells each in the log.

    Only of plain files that belong to this user, and of a directory that holds nothing else: one that
    is shared with other programs is told and left. The secret key is not touched: `load_or_make_key`
    refuses one that others could read, since they may have.

    Args:
        directory: the data directory, locked for this process; no database is open.
    """
    for name in _FILES:
        _tighten(directory / name, stat.S_ISREG, 0o600)
    strangers = sorted({path.name for path in directory.iterdir()} - _OURS)
    if not strangers:
        _tighten(directory, stat.S_ISDIR, 0o700)
    elif directory.stat().st_mode & 0o077:
        log.warning(
            "the data directory is open to others and holds more than ours: make it 0700 or choose another",
            extra={"path": str(directory), "holds": strangers[0]},
        )


def _tighten(path: Path, is_kind: Callable[[int], bool], mode: int) -> None:
    try:
        state = path.lstat()
    except FileNotFoundError:
        return
    if not is_kind(state.st_mode) or state.st_uid != geteuid():
        return
    if state.st_mode & 0o077:
        path.chmod(mode)
        was = f"{stat.S_IMODE(state.st_mode):04o}"
        log.warning("others had rights there: taken away", extra={"path": str(path), "was": was})
