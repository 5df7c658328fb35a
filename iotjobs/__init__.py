"""iotjobs runs operations on fleets of devices and records what came of every one.

Layers, each importing only what stands below it: `app` (composition root), `inputs` (REST, MQTT
from outside), `engine` (long-running services), `transports` (reach a device) beside `store`
(tables, the one status writer), `domain` (pure decisions), and at the bottom `clock` and `logs`.
`client` (SDK) and `cli` stand alone: they speak REST like anybody else.
Start reading at `domain/statuses.py` and `engine/execution.py`.
"""

__version__ = "0.1.0"
