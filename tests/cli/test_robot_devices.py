"""Names on the command line become leaders, followers and rooms, or one sentence."""

import threading

import pytest

from featherweight.cli.robot_devices import CameraWishes, check_room, make_follower, make_leader, timer
from featherweight.errors import ConfigError


def test_names_become_devices():
    from featherweight import robot as fwr

    assert isinstance(make_leader("sine", "auto", None), fwr.ScriptedLeader)
    assert isinstance(make_follower("umirobot", "sim"), fwr.UMIRobot)


def test_unknown_names_and_other_rooms_are_refused_with_what_there_is():
    with pytest.raises(ConfigError, match="leader=pot is unknown; expected one of .*Did you mean 'pots'"):
        make_leader("pot", "auto", None)
    with pytest.raises(ConfigError, match="follower=umi is unknown"):
        make_follower("umi", "auto")
    with pytest.raises(ConfigError, match="leader=expert needs the simulator"):
        make_leader("expert", "auto", None)
    with pytest.raises(ConfigError, match="room=lab2 is not the room of these files; expected lab1"):
        check_room("lab2", "lab1")


def test_a_timer_ends_a_session():
    assert timer(0.01).wait(5)
    assert isinstance(timer(None), threading.Event) and not timer(None).is_set()


def test_cameras_become_those_of_the_simulator_or_of_the_kit():
    wishes = CameraWishes(["wrist", "desk=/dev/video3"], "640x480", 15, "mjpeg")
    robot = make_follower("sim", "auto", wishes)
    assert robot.sim_config.cameras == ("wrist",) and robot.sim_config.width_px == 640
    ((name, camera),) = robot.config.cameras.items()
    assert (name, camera.source, camera.width_px, camera.fps) == ("desk", "/dev/video3", 640, 15)
    robot = make_follower("umirobot", "sim", CameraWishes(["/dev/video0"]))
    assert robot.config.cameras["front"].source == "/dev/video0"
    with pytest.raises(ConfigError, match="camera=front is the simulator's; expected one beside the kit"):
        make_follower("umirobot", "sim", CameraWishes(["front"]))
    with pytest.raises(ConfigError, match="size=640 is none; expected two even numbers"):
        make_follower("umirobot", "sim", CameraWishes(["/dev/video0"], "640"))
    with pytest.raises(ConfigError, match="leader=policy has no policy; expected the folder of a run"):
        make_leader("policy", "auto", robot)
