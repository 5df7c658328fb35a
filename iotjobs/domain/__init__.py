"""Decides: what may follow what, what a job will do, what an end means.

Pure functions and frozen dataclasses. No I/O, no clock, no randomness, no framework: the moment
and the identifiers are arguments. Imports nothing of iotjobs but its own modules. Start at
`statuses` (the life of a job), then `operations` and `macros` (what a job will do).
"""
