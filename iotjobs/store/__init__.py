"""Keeps everything: tables never leave this folder, callers get dataclasses.

`session` opens SQLite or PostgreSQL, `writer` groups commits, `jobs` holds the only function that
writes a job's status. Every read takes a `scope` (what the caller may see). Imports `domain`,
`clock`, `logs`; never a transport, never a web framework. Start at `tables`, then `jobs`.
"""
