"""Frames at the rate of the data set, whatever the rate of the loop."""

import pytest
from robot_demos import new_writer

from featherweight.robot.recording.recorder import EpisodeRecorder
from featherweight.robot.safety.mode import Mode


class Steered:
    """A controller and its follower at an instant."""

    mode, goal_deg = Mode.ACTIVE, (1.0,) * 6

    def reported_deg(self):
        return (0.0,) * 6


@pytest.mark.parametrize("loop_hz", [60.0, 47.0, 200.0])
def test_frames_are_taken_at_the_rate_of_the_set(tmp_path, loop_hz):
    now_s = [100.0]
    recorder = EpisodeRecorder(new_writer(tmp_path / "demos"), Steered(), clock=lambda: now_s[0])
    for _ in range(round(2 * loop_hz)):
        recorder.look(Steered())
        now_s[0] += 1 / loop_hz
    assert recorder.writer.frames == pytest.approx(60, abs=1)


def test_nothing_is_recorded_while_the_arm_is_not_active_and_faulty_frames_are_counted(tmp_path):
    recorder, steered = EpisodeRecorder(new_writer(tmp_path / "demos", cameras=True), Steered()), Steered()
    recorder.look(steered)
    assert recorder.writer.frames == 0 and recorder.refused == 1  # no picture
    steered.mode = Mode.SYNC
    recorder.look(steered)
    steered.mode, steered.goal_deg = Mode.ACTIVE, None
    recorder.look(steered)
    assert recorder.refused == 1
