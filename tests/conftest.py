from __future__ import annotations

pytest_plugins = [
    "tests.services.ssh",
    "tests.services.mosquitto",
    "tests.services.postgres",
    "tests.services.api",
    "tests.services.site",
    "tests.services.rows",
    "tests.services.tls",
]
