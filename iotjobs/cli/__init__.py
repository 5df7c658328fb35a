"""The command line against a running server.

Imports `client` only. Data goes to stdout, everything else to stderr; exit codes are documented
and stable. `serve` and `doctor` are added by `iotjobs.__main__`, which may wire the server.
Start at `commands`.
"""
