"""Takes what comes from outside to the engine: REST calls and what devices send over MQTT.

Parses, authenticates, names the caller, and nothing else: pydantic and FastAPI live here only.
Imports everything below but `settings`. Start at `rest/__init__` and `problems`.
"""
