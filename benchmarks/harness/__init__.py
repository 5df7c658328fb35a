"""What the benchmarks share: a fleet of real SSH servers, a running server, and figures.

Nothing here measures. Start reading in `server` and `fleet`.
"""
