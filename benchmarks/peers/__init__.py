"""What we are measured against, each a process of its own that reads `go` and answers a JSON line.

They import nothing of iotjobs: some run in `.benchmark-env/` with libraries that we do not use.
"""
