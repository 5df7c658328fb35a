"""Pretend devices for tests, the demo and benchmarks: real SSH servers on loopback.

Standard library only, and nothing of iotjobs: a device knows no server code. Start reading in
`sshd`.
"""
