"""Does: long-running services that take work, run it, and settle it.

Each service has one start/stop contract (`services`). Decisions are asked of `domain`, rows of
`store`, devices of `transports`. Never a web framework, never SQL. Start at `intake` (how a job
comes to be), then `worker`, `execution`, `settle`.
"""
