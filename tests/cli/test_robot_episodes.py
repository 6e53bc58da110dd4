"""Episodes of `fw robot record`, one after the other."""

import pytest
from robot_demos import frame, new_writer

from featherweight import robot as fwr
from featherweight.cli.robot_episodes import Length, record_episodes, record_in_room
from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.recording.recorder import EpisodeRecorder


def test_an_episode_that_is_broken_off_is_forgotten_and_ends_the_recording(tmp_path, capsys):
    writer, leader = new_writer(tmp_path / "demos"), fwr.ScriptedLeader(lambda t: (0,) * 6)
    lengths = iter([15, 15, 7])

    def run_episode(is_going_on):
        recorder = EpisodeRecorder(writer, leader)
        for i in range(next(lengths)):
            assert is_going_on(recorder)
            writer.add(frame(i, 0)[0])
        return recorder

    told = record_episodes(writer, leader, Length(5, 0.5, 30, "wave"), run_episode)
    assert told == {"saved": 2, "tried": 3, "total": 2} and writer.frames == 0
    assert "Episode 3 of 5" in capsys.readouterr().out


def test_the_files_of_another_room_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    from featherweight.robot.network.certificates import create_room

    folder = create_room(tmp_path / "class", "lab2", {"alice": "operator"})
    with pytest.raises(ConfigError, match="room=lab1 is not the room of these files; expected lab2"):
        record_in_room(
            "lab1", "wss://127.0.0.1:1", folder, None, "arm1", "sine", "sim", tmp_path / "d", [], Length(1, 1, 30, "x")
        )


def test_an_episode_that_lost_its_camera_is_repeated_when_that_is_back(tmp_path, capsys, monkeypatch):
    writer, leader = new_writer(tmp_path / "demos"), fwr.ScriptedLeader(lambda t: (0,) * 6)
    lengths, words = iter([15, 7, 15]), iter(["it is silent", "it is silent", ""])

    def run_episode(is_going_on):
        recorder, length = EpisodeRecorder(writer, leader), next(lengths)
        for i in range(length):
            assert is_going_on(recorder)
            writer.add(frame(i, 0)[0])
        recorder.missing = "" if length == 15 else "front"
        assert length == 15 or not is_going_on(recorder)
        return recorder

    told = record_episodes(writer, leader, Length(2, 0.5, 30, "wave"), run_episode, lambda name: next(words))
    assert told == {"saved": 2, "tried": 3, "total": 2}
    assert "This episode is given up, the arm is held: it is silent" in capsys.readouterr().out
    lengths = iter([7])
    monkeypatch.setattr("featherweight.cli.robot_episodes.BACK_S", 0.2)
    with pytest.raises(DeviceError, match="camera=front has not come back.*The 0 finished episodes are kept"):
        record_episodes(writer, leader, Length(1, 0.5, 30, "wave"), run_episode, lambda name: "it is gone")
    assert writer.frames == 0 and len(writer.rows) == 2
