"""Fixtures that start real programs (sshd, Dropbear, Mosquitto, PostgreSQL) on free loopback ports.

Each is ended by its own pid. A program that is missing skips the test at a desk, with the reason,
and fails it when `CI` is set.
"""
