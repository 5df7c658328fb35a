"""A site without HTTP: submits through the engine, in the process that runs the jobs.

Speaks the line protocol of `peers/fan_out.py`: `python -m benchmarks.harness.in_process DATA FILE`,
where FILE holds the JSON list of the paths that `harness.server.define_fleet` returned.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from benchmarks.harness.server import JobTable, free_port
from iotjobs import logs
from iotjobs.app import Site
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.rights import Caller, Role
from iotjobs.engine.intake import Execute, Intake
from iotjobs.serving import loop_factory
from iotjobs.settings import Settings

CALLER = Caller(user_id="0" * 32, login="benchmark", role=Role.ADMIN)
WITHIN_S = 120.0


def requests_of(paths: list[str]) -> list[Execute]:
    """What the REST paths would ask of the engine."""
    asked = []
    for path in paths:
        _, _, _, kind, owner_id, _, operation_id, _ = path.split("/")
        assert kind == "objects"
        asked.append(Execute(OwnerType.OBJECT, owner_id, operation_id, CALLER))
    return asked


async def fan_out(intake: Intake, asked: list[Execute], table: JobTable) -> None:
    """Submit them all at once and wait until all of them are FINISHED in the store."""
    after = table.newest()
    await asyncio.gather(*(intake.execute(request) for request in asked))
    await table.all_ended(after, len(asked), WITHIN_S)


async def main(asked: list[Execute]) -> None:
    logs.configure("warning", "lines")
    settings = Settings(data_dir=Path(sys.argv[1]), port=0, mqtt_port=free_port())
    site = Site(settings)
    await site.start()
    try:
        assert site.api is not None
        table = JobTable(settings.data_dir)
        intake = site.api.state.services.engine.intake
        print(json.dumps({"ready": True}), flush=True)
        lines = asyncio.get_running_loop()
        while await lines.run_in_executor(None, sys.stdin.readline):
            began, cpu = time.monotonic(), time.process_time()
            await fan_out(intake, asked, table)
            took, used = time.monotonic() - began, time.process_time() - cpu
            print(json.dumps({"seconds": took, "cpu_s": used, "failed": 0}), flush=True)
        table.close()
    finally:
        await site.stop()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(requests_of(json.loads(Path(sys.argv[2]).read_text()))))
