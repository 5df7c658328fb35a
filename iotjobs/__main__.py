"""`iotjobs` and `python -m iotjobs`: the version at once, everything else through `program`."""

from __future__ import annotations

import sys

from iotjobs import __version__

_VERSION = ["--version"]

# Typer and what it brings take longer to import than a version may take to print.
if sys.argv[1:] != _VERSION:
    from iotjobs.program import app


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    if sys.argv[1:] == _VERSION:
        sys.stdout.write(f"iotjobs {__version__}\n")
        return
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    app(prog_name="iotjobs")


if __name__ == "__main__":
    main()
