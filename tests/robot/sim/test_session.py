"""Sessions in virtual time."""

import numpy as np

from featherweight import robot as fwr
from featherweight.robot.safety.mode import Mode
from featherweight.robot.sim.session import SCENE_NAMES, VirtualSession


def test_a_session_runs_the_same_each_time_and_moves_the_physics():
    tracks = []
    for _ in range(2):
        session, track = VirtualSession(seed=3), []
        leader = fwr.ScriptedLeader(lambda t: (20 * np.sin(2 * t), 10, 0, 0, -30, 0), clock=session.clock)
        result = session.run(
            leader,
            3.0,
            lambda controller, session=session, track=track: track.append(
                (controller.mode, session.robot.reported_deg(), tuple(session.world.joints_rad))
            ),
        )
        assert result.mode is Mode.ACTIVE and result.late_steps == 0 and result.steps > 170
        # The arm lags, droops and has servos, and still does what it is told.
        assert np.abs(np.degrees(session.world.joints_rad) - session.robot.reported_deg()[:5]).max() < 3
        tracks.append(track)
    assert tracks[0] == tracks[1]


def test_the_scene_is_told_in_numbers():
    session = VirtualSession(seed=1)
    told = dict(zip(SCENE_NAMES, session.scene(), strict=True))
    assert 0.12 <= np.hypot(told["cube_x"], told["cube_y"]) <= 0.22 and abs(told["cube_z"] - 0.011) < 0.002
    assert abs(np.hypot(told["cube_cos4"], told["cube_sin4"]) - 1) < 1e-12
    before = session.scene()
    session.reset(2)
    assert (session.scene() != before).any()
