"""What an operator sees is late."""

import itertools

import numpy as np
import pytest

from featherweight.robot.challenge.patient import PatientHand
from featherweight.robot.challenge.remote import RemoteRun, first_free_cube
from featherweight.robot.challenge.score import score_log
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


def test_a_run_goes_on_until_the_cube_counts_in_its_own_log():
    """A cube that leans and slides lies in the bin for longer than a second and a half before it lies still."""
    session = VirtualSession(10_000)
    run = RemoteRun(session, PatientHand, Impairment(), 10_000, first_free_cube)
    world, begin_s = session.world, session.clock()
    place = world.model.jnt_qposadr[world.model.body_jntadr[world.cubes[0]]]

    def slide():
        # To and fro by a millimetre in a tenth of a second: 20 mm/s, until six seconds are over.
        elapsed_s = session.clock() - begin_s
        if elapsed_s < 6:
            shift = 0.001 * abs(elapsed_s * 20 % 2 - 1)
            world.data.qpos[place : place + 3] = [*(world.bin_m[:2] + shift), 0.0115]
            world.data.qvel[world.model.jnt_dofadr[world.model.body_jntadr[world.cubes[0]]]] = 0

    run.leader.work = lambda: itertools.repeat(np.array([0.0, 0, 0, 0, 0, 60]))
    step = run._step
    run._step = lambda: (slide(), step())
    score = score_log(run.run(20.0))
    assert score.placed == 1 and 4.5 < score.time_s < 8
