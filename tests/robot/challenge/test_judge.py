"""The judge sees collisions and not the touching of cubes."""

import numpy as np
import pytest

from featherweight.robot.challenge.judge import Judge
from featherweight.robot.safety.controller import Controller
from featherweight.robot.sim.session import VirtualSession

pytest.importorskip("mujoco")


def test_pressing_into_the_table_is_a_collision_and_hovering_is_not():
    session = VirtualSession(10_000)
    judge, controller = Judge(session.world, 10_000), Controller(session.robot)
    session.world.step(np.array([0.0, 20, 0, 0, -60, 0]), 1.0)
    judge.look(0.0, controller, 0.0)
    assert judge.records[-1]["hits"] == []
    session.world.step(np.array([90.0, 75, 0, 0, -60, 0]), 1.5)
    judge.look(1.0, controller, 0.0)
    assert any("world" in pair for pair in judge.records[-1]["hits"])
    log = judge.finish(controller, 12.34)
    assert log[0]["seed"] == 10_000 and log[-1] == {"kind": "end", "guard_trips": 0, "round_trip_ms": 12.34}


def test_guard_trips_are_counted_once_for_each_time_that_it_begins_to_refuse():
    session = VirtualSession(10_000)
    controller = Controller(session.robot)
    for wish in ((0, 10, 0, 0, -60, 0), (0, 80, 0, 0, -70, 0), (0, 81, 0, 0, -70, 0), (0, 10, 0, 0, -60, 0)):
        for _ in range(30):
            session.robot.sleep(1 / 60)
            controller.command(wish, session.clock())
            controller.tick(session.clock())
    assert controller.counters["guard trips"] == 1 and controller.counters["guard"] > 10
