"""Reaches devices: SSH, MQTT, this host.

`base` is the seam: what a transport is asked, what it answers. Each transport maps every error
of its library to ours. Transports do not know each other, never touch the store, and decide
nothing about a job. Imports `domain`, `clock`, `logs`. Start at `base`, then `shell` (the text
that runs on the device) and `ssh`.
"""
