"""The scene: servos, gripper, grippers of students."""

import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.robot.kinematics import table_top, tool_point
from featherweight.robot.sim.mjcf import build_mjcf, build_model
from featherweight.robot.sim.world import World


def test_a_loaded_arm_droops_as_little_as_its_servos_allow():
    world = World("empty")
    pose = np.array([0.0, 30, 30, 0, 0, 0])
    for _ in range(100):
        world.step(pose, 0.02)

    droop_mm = 1e3 * (tool_point(np.radians(pose[:5]))[2] - world.tool_m[2])

    # Stretched arm, 40 N m/rad: about 3 mm were found in the prototype; twice as soft servos droop 6 mm.
    assert 0.5 < droop_mm < 5


def test_a_squeezed_cube_stops_the_fingers_and_stays_in_them():
    world = World("challenge", cubes=1)
    world.reset(0)
    grasp = np.degrees(table_top([0.17, 0.0, 0.012]))
    start = world.model.jnt_qposadr[world.model.body_jntadr[world.cubes[0]]]
    world.data.qpos[:5] = np.radians(grasp)
    world.data.qpos[5] = np.radians(60)
    world.data.qpos[start : start + 7] = [0.17, 0, 0.011, 1, 0, 0, 0]
    for gripper, seconds in ((60, 0.3), (-90, 1.5)):
        world.step(np.array([*grasp, gripper]), seconds)
    lifted = np.degrees(table_top([0.17, 0.0, 0.08]))
    for share in np.linspace(0, 1, 30):
        world.step(np.array([*(grasp + share * (lifted - grasp)), -90]), 0.03)
    before = world.cube_m()
    world.step(np.array([*lifted, -90]), 5.0)

    assert before[2] > 0.06 and np.linalg.norm(world.cube_m() - before) < 0.002


def test_a_scene_that_does_not_load_is_one_sentence(tmp_path):
    path = tmp_path / "gripper.xml"
    with pytest.raises(ConfigError, match="cannot be read"):
        build_mjcf("student", gripper_file=path)
    path.write_text("<mujoco><worldbody/></mujoco>")
    with pytest.raises(ConfigError, match="no actuator named 'gripper'"):
        build_mjcf("student", gripper_file=path)
    path.write_text(
        '<mujoco><worldbody><body><joint name="claw" type="slide"/></body></worldbody>'
        '<actuator><position name="gripper" joint="claw"/></actuator></mujoco>'
    )
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        build_model("student", gripper_file=path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="Did you mean 'challenge'"):
        build_model("chalenge")
    with pytest.raises(ConfigError, match="needs gripper_file"):
        build_model("student")


def test_a_student_s_gripper_is_moved_by_servo_six(tmp_path):
    path = tmp_path / "gripper.xml"
    path.write_text(
        '<mujoco><worldbody><body pos="0 -0.06 0"><joint name="claw" axis="1 0 0" damping="0.1"/>'
        '<geom type="box" size="0.005 0.02 0.005" mass="0.01"/></body></worldbody>'
        '<actuator><position name="gripper" joint="claw" kp="5"/></actuator></mujoco>'
    )
    world = World("student", gripper_file=path)
    for _ in range(50):
        world.step(np.array([0, 0, 0, 0, 0, 45.0]), 0.02)

    assert np.degrees(world.data.joint("claw").qpos[0]) == pytest.approx(45, abs=2)
