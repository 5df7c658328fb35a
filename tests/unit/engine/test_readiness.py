from __future__ import annotations

from iotjobs.engine.readiness import Readiness


def test_a_site_is_ready_once_every_part_was_up_and_degraded_when_one_is_down_later() -> None:
    readiness, up = Readiness(), {"broker": False}
    readiness.up("store")
    readiness.watch("broker", lambda: up["broker"])

    assert readiness.report() == (False, {"broker": "the broker was not up yet"})
    up["broker"] = True
    assert readiness.report() == (True, {})
    up["broker"] = False
    assert readiness.report() == (True, {"broker": "the broker is down"})


def test_a_part_that_the_site_does_not_have_is_told_and_holds_nothing_up() -> None:
    readiness = Readiness()
    readiness.up("store")
    readiness.absent("broker", "mosquitto is not installed")

    assert readiness.report() == (True, {"broker": "mosquitto is not installed"})


def test_what_troubles_a_part_is_told_while_it_does() -> None:
    readiness, said = Readiness(), {"events": "held back"}
    readiness.up("store")
    readiness.degraded("events", lambda: said.get("events"))

    assert readiness.report() == (True, {"events": "held back"})
    said.clear()
    assert readiness.report() == (True, {})


def test_a_site_whose_part_is_gone_for_good_is_not_ready_any_more() -> None:
    readiness = Readiness()
    readiness.up("store")
    assert readiness.report() == (True, {})

    readiness.failed("store", "the disk did not keep what was written")

    assert readiness.report() == (False, {"store": "the disk did not keep what was written"})
