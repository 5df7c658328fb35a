"""Measures what the design promises: one file per claim.

Each prints a table and one JSON line; `run.sh` runs them all, `README.md` holds the latest figures
and how to repeat them. May import everything of iotjobs and of `agents/sim`; nothing imports it.
Everything runs on loopback, and every loop is bounded in count and in time.
"""
