"""What an operator sees is late."""

import pytest

from featherweight.robot.challenge.patient import PatientHand
from featherweight.robot.challenge.remote import RemoteRun, first_free_cube
from featherweight.robot.network.impaired import Impairment
from featherweight.robot.safety.mode import Mode
from featherweight.robot.sim.session import VirtualSession

pytest.importorskip("mujoco")


def test_an_operator_sees_the_scene_as_late_as_the_network_is(monkeypatch):
    session, seen = VirtualSession(10_000), []
    run = RemoteRun(session, lambda see, clock: seen.append(see) or PatientHand(see, clock), Impairment(delay_s=0.1), 0)
    with run.leader:
        for _ in range(120):
            session.robot.sleep(1 / 60)
            run._step()
        moved_s = session.clock()
        monkeypatch.setattr(session, "scene", lambda cube: [1.0] * 7)
        while seen[0]()[0] != 1.0:
            session.robot.sleep(1 / 60)
            run._step()
        assert session.clock() - moved_s == pytest.approx(0.1, abs=3 / 60)


def test_a_dead_network_leaves_the_arm_held_and_the_run_ends():
    session = VirtualSession(10_000)
    run = RemoteRun(session, PatientHand, Impairment(delay_s=0.01), 10_000, first_free_cube)
    with run.leader:
        for _ in range(200):
            session.robot.sleep(1 / 60)
            run._step()
        assert run.robot_side.controller.mode is Mode.ACTIVE
        for link in run._links:
            link.deliver = lambda: None
        for _ in range(30):
            session.robot.sleep(1 / 60)
            run._step()
        assert run.robot_side.controller.mode is Mode.HOLD
