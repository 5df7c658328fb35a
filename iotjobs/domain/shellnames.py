"""Names that a device's shell takes: of environment variables and of users.

An operation with another is refused when it is saved, and once more before anything is sent.
"""

from __future__ import annotations

import re

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?\Z")
# Read-only in some shells, or numbers to them (OPTIND in dash 0.5.12): assigning ends the shell. IFS
# is what our own text on the device splits with.
_UNASSIGNABLE = frozenset({
    "IFS", "OPTIND", "PPID", "UID", "EUID", "GROUPS", "SHELLOPTS", "BASHOPTS", "BASH_VERSINFO",
})  # fmt: skip
_OURS = ("IJ_", "IOTJOBS_", "_ij_")
_LIVED_ON = frozenset({"IOTJOBS_RUN", "IOTJOBS_W", "IOTJOBS_LED"})


def variable_problem(name: str) -> str | None:
    """Why an operation cannot have a variable of this name; None when it can."""
    if not _VARIABLE.match(name):
        return "a variable's name has letters, digits and _, and no digit first"
    if name in _UNASSIGNABLE:
        return f"{name} belongs to the shell: some end when it is assigned"
    if name.startswith(_OURS):
        return f"names that begin with {', '.join(_OURS[:-1])} or {_OURS[-1]} are ours"
    return None


def carried(name: str) -> bool:
    """Whether a run can be given a variable of this name: those of operations, and our own."""
    if name.startswith(_OURS) and not name.startswith("_ij_"):
        return _VARIABLE.match(name) is not None and name not in _LIVED_ON
    return variable_problem(name) is None
