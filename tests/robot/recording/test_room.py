"""Recording from the operator's side of a room."""

import threading
import time

import numpy as np
import pytest

from featherweight import robot as fwr
from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.network import InprocBroker, Topics
from featherweight.robot.network.follower_side import encode_picture
from featherweight.robot.network.operator_side import OperatorSide
from featherweight.robot.recording.demo_dataset import DemoDataset
from featherweight.robot.recording.layout import robot_features
from featherweight.robot.recording.recorder import EpisodeRecorder
from featherweight.robot.recording.room import RoomView, decode_picture, wait_for_cameras
from featherweight.robot.recording.writer import DemoWriter
from featherweight.robot.safety.mode import Mode

TOPICS = Topics("lab1", "arm1")


def test_an_operator_records_what_was_sent_and_what_came_back(tmp_path):
    pytest.importorskip("PIL")
    broker, stop = InprocBroker("lab1"), threading.Event()
    robot_link = broker.join("arm1", "robot")
    leader = fwr.ScriptedLeader(lambda t: (4.0, 0, 0, 0, 0, 0))
    with fwr.UMIRobot(fwr.UMIRobotConfig(port="sim")) as arm, leader:
        serving = threading.Thread(target=fwr.serve, args=(arm, robot_link, TOPICS), kwargs={"stop": stop})
        serving.start()
        side = OperatorSide(leader, broker.join("alice", "operator"), TOPICS, "alice")
        view = RoomView(side)
        assert view.mode is Mode.IDLE
        robot_link.publish(TOPICS.camera("front"), encode_picture(np.full((32, 48, 3), 90, dtype=np.uint8)))
        cameras = wait_for_cameras(side, ["front"], 2.0)
        features = robot_features({"observation.rtt_ms": {"dtype": "float32", "shape": [1], "names": None}})
        writer = DemoWriter(tmp_path / "demos", 30, "umirobot", features, cameras)
        recorder = EpisodeRecorder(writer, view, view.pictures, view.extra)
        until_s, enough = time.monotonic() + 10, threading.Event()

        def on_step(_):
            robot_link.publish(TOPICS.camera("front"), encode_picture(np.full((32, 48, 3), 90, dtype=np.uint8)))
            recorder.look(view)
            if writer.frames >= 20 or time.monotonic() > until_s:
                enough.set()

        side.run(enough, on_step=on_step)
        stop.set()
        serving.join()
    writer.save("hold")

    data = DemoDataset(tmp_path / "demos")
    assert len(data) == 20 and cameras == {"front": (32, 48)}
    assert data[19]["action"][0] == 4.0 and data[19]["observation.state"][0] == 4.0
    assert abs(255 * float(data[19]["observation.images.front"].mean()) - 90) < 10
    assert 0 <= data[19]["observation.rtt_ms"] < 200


def test_a_camera_that_sends_nothing_and_a_picture_that_is_none_are_one_sentence():
    side = OperatorSide(
        fwr.ScriptedLeader(lambda t: None), InprocBroker("lab1").join("alice", "operator"), TOPICS, "alice"
    )
    with pytest.raises(ConfigError, match="camera=top of the robot sends no pictures"):
        wait_for_cameras(side, ["top"], 0.1)
    with pytest.raises(DeviceError, match="a picture cannot be read"):
        decode_picture(b"no picture")


def test_pictures_that_come_no_more_are_none(monkeypatch):
    pytest.importorskip("PIL")
    broker = InprocBroker("lab1")
    robot_link = broker.join("arm1", "robot")
    side = OperatorSide(fwr.ScriptedLeader(lambda t: None), broker.join("alice", "operator"), TOPICS, "alice")
    view = RoomView(side)
    robot_link.publish(TOPICS.camera("front"), encode_picture(np.full((32, 48, 3), 90, dtype=np.uint8)))
    assert view.pictures()["front"].shape == (32, 48, 3)
    assert view.pictures()["front"] is view.pictures()["front"]  # a slow camera is seen to repeat itself
    side.pictures_ns["front"] -= 1_100_000_000
    assert view.pictures() == {}
