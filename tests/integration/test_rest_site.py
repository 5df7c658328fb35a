"""Running the site over REST: drains and queues."""

from __future__ import annotations

from iotjobs_sim.sshd import SshServer

from tests.services.site import Rest, eventually, new_name


async def test_a_drained_site_takes_jobs_and_begins_none_until_it_is_opened(
    rest: Rest, openssh: SshServer
) -> None:
    owner = await rest.device(openssh)
    operation = await rest.script(owner, "echo ran")
    drained = await rest.call("PUT", "/site", {"dispatch": "drained"})
    assert (drained.status, drained.body["dispatch"]) == (200, "drained")
    try:
        waits = await rest.execute(owner, operation)

        async def told() -> bool:
            return (await rest.get(f"/jobs/{waits['id']}"))["pending_reason"] == "drained"

        await eventually(told, 10)
        drain = await rest.get(f"/jobs/{drained.body['job_id']}")
        assert (drain["type"], drain["owner_type"], drain["label"]) == ("STOP_APP", 0, "drain the site")
        ready = await rest.get("/readyz")
        assert (ready["status"], list(ready["reasons"])) == ("degraded", ["dispatch"])
        site = await rest.get("/site")
        assert (site["drained"]["by"], site["drained"]["since"]) == (drain["run_by"], drain["created_at"])
        again = await rest.call("PUT", "/site", {"dispatch": "drained"})
        assert again.body["drained"] == site["drained"]
        assert site == {
            "dispatch": "drained",
            "drained": site["drained"],
            "triggers": "open",
            "paused": None,
            "running": 0,
            "waiting": 1,
            "job_id": None,
        }

        async def over() -> bool:
            return (await rest.get(f"/jobs/{again.body['job_id']}"))["outcome"] == "succeeded"

        await eventually(over, 10)
    finally:
        opened = await rest.call("PUT", "/site", {"dispatch": "open"})
    assert opened.body["drained"] is None
    assert (await rest.get(f"/jobs/{opened.body['job_id']}"))["type"] == "START_APP"
    done = await rest.ended(waits["id"])
    assert (done["outcome"], done["description"]["stdout"]) == ("succeeded", "ran\n")
    assert (await rest.get("/readyz"))["status"] == "ready"


async def test_queues_are_made_listed_changed_and_deleted(rest: Rest, openssh: SshServer) -> None:
    name = new_name("queue")
    made = await rest.call("PUT", f"/queues/{name}", {"concurrency": 3})
    assert (made.status, made.body) == (
        201,
        {"name": name, "concurrency": 3, "built_in": False, "running": 0, "waiting": 0},
    )
    changed = await rest.call("PUT", f"/queues/{name}", {"concurrency": None})
    assert (changed.status, changed.body["concurrency"]) == (200, None)
    listed = [queue["name"] for queue in (await rest.get("/queues"))["items"]]
    assert listed[:4] == ["mix", "light", "heavy", "system"]
    assert name in listed
    assert (await rest.get("/queues/default"))["name"] == "mix"

    owner = await rest.device(openssh)
    operation = await rest.script(owner, "true", queue=name)
    assert (await rest.run(owner, operation))["queue"] == name
    problem = await rest.refused("DELETE", f"/queues/{name}", status=409, code="conflict")
    assert operation["name"] in problem["detail"]
    await rest.call("DELETE", f"/objects/{owner['id']}/operations/{operation['id']}")
    assert (await rest.call("DELETE", f"/queues/{name}")).status == 204


async def test_what_does_not_fit_is_refused(rest: Rest, openssh: SshServer) -> None:
    owner = await rest.device(openssh)
    body = {"name": "x", "type": "script", "parameters": {"text": "true"}, "queue": "nowhere"}
    path = f"/objects/{owner['id']}/operations"
    problem = await rest.refused("POST", path, body, status=400, code="badRequest")
    assert problem["errors"][0]["field"] == "queue"
    assert (await rest.make(path, **{**body, "queue": "default"}))["queue"] == "mix"
    for path, given in (
        ("/queues/press", {"concurrency": 0}),
        ("/queues/press", {"limit": 1}),
        ("/site", {"dispatch": "closed"}),
        ("/site", {}),
    ):
        await rest.refused("PUT", path, given, status=400, code="badRequest")
    await rest.refused("DELETE", "/queues/mix", status=409, code="conflict")
    for method, given in (("PUT", {"concurrency": 1}), ("DELETE", None)):
        problem = await rest.refused(method, "/queues/default", given, status=400, code="badRequest")
        assert problem["detail"] == "default is another name of mix"
    await rest.refused("GET", "/queues/press", status=404, code="notFound")
    _, token = await rest.user()
    async with Rest(rest.serve, token) as operator:
        await operator.refused("PUT", "/site", {"dispatch": "drained"}, status=403, code="notAllowed")
        await operator.refused("PUT", "/queues/a", {"concurrency": 1}, status=403, code="notAllowed")
        assert (await operator.get("/site"))["dispatch"] == "open"


async def test_the_job_of_a_switch_is_no_run_that_could_be_asked_for_anything(rest: Rest) -> None:
    opened = await rest.call("PUT", "/site", {"dispatch": "open"})

    for what in ("cancel", "stop", "resume", "retry"):
        path = f"/jobs/{opened.body['job_id']}/{what}"
        await rest.refused("POST", path, {}, status=409, code="conflict")


async def test_an_unknown_parameter_is_refused_on_each_path_of_the_site(rest: Rest) -> None:
    for method, path, given in (
        ("GET", "/site", None),
        ("PUT", "/site", {"dispatch": "open"}),
        ("GET", "/queues", None),
        ("GET", "/queues/mix", None),
        ("PUT", "/queues/press", {"concurrency": 1}),
        ("DELETE", "/queues/press", None),
        ("GET", "/workers", None),
    ):
        problem = await rest.refused(method, f"{path}?limits=5", given, status=400, code="badRequest")
        assert problem["errors"][0]["field"] == "limits"


async def test_a_worker_names_the_queues_that_it_takes_from(rest: Rest) -> None:
    name = new_name("queue")
    await rest.call("PUT", f"/queues/{name}", {"concurrency": 3})
    [worker] = (await rest.get("/workers"))["items"]
    assert worker["queues"][:4] == ["mix", "light", "heavy", "system"]
    assert name in worker["queues"]
    await rest.call("DELETE", f"/queues/{name}")
