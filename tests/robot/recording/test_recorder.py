"""Frames at the rate of the data set, whatever the rate of the loop."""

import numpy as np
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
    recorder = EpisodeRecorder(recorder.writer, steered, lambda: {"front": np.zeros((8, 8, 3), np.uint8)})
    recorder.look(steered)
    assert recorder.writer.frames == 0 and recorder.refused == 1  # a picture of another size
    steered.mode = Mode.SYNC
    recorder.look(steered)
    steered.mode, steered.goal_deg = Mode.ACTIVE, None
    recorder.look(steered)
    assert recorder.refused == 1


def test_no_frame_comes_after_a_gap_in_the_pictures_and_slow_cameras_are_counted(tmp_path):
    now_s, shown = [100.0], {"front": np.zeros((32, 48, 3), np.uint8)}
    writer = new_writer(tmp_path / "demos", cameras=True)
    recorder = EpisodeRecorder(writer, Steered(), lambda: shown, clock=lambda: now_s[0])
    for i in range(10):
        if i % 2 == 0:
            shown["front"] = shown["front"] + 1
        recorder.look(Steered())
        now_s[0] += 1 / 30
    assert writer.frames == 10 and recorder.repeated == {"front": 5} and recorder.missing == ""
    there = shown.pop("front")
    recorder.look(Steered())
    now_s[0] += 1 / 30
    shown["front"] = there
    recorder.look(Steered())
    assert writer.frames == 10 and recorder.missing == "front"
    writer.discard()
