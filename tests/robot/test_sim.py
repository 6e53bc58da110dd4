import os
import subprocess
import sys
import time

import numpy as np
import pytest

from featherweight import robot as fwr
from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.kit import JOINT_KEYS

mujoco = pytest.importorskip("mujoco")

from featherweight.robot.kinematics import table_top, tool_point  # noqa: E402
from featherweight.robot.sim.expert import pick_and_place  # noqa: E402
from featherweight.robot.sim.mjcf import build_mjcf, build_model  # noqa: E402
from featherweight.robot.sim.world import World  # noqa: E402


def run_expert(world, seed):
    """Follow the expert with whole degrees at the firmware's speed; return whether the cube is in the bin."""
    world.reset(seed)
    servo = np.zeros(6)
    for target in pick_and_place(world.cube_m(), world.bin_m):
        for _ in range(3):
            servo += np.clip(np.round(target) - servo, -1, 1)
            world.step(servo, 1 / 90)
    world.step(servo, 1.0)
    return world.is_placed()


@pytest.mark.parametrize("count", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_the_expert_places_every_cube(count):
    world = World("challenge", cubes=1)

    assert [run_expert(world, seed) for seed in range(count)] == [True] * count


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


def test_layouts_follow_the_seed_and_keep_their_distances():
    world = World("challenge", cubes=6)
    world.reset(3)
    first = [world.cube_m(i) for i in range(6)]
    world.reset(4)
    other = [world.cube_m(i) for i in range(6)]
    world.reset(3)

    np.testing.assert_array_equal(first, [world.cube_m(i) for i in range(6)])
    assert not np.allclose(first, other)
    for i, cube in enumerate(first):
        assert 0.12 <= np.hypot(*cube[:2]) <= 0.22 and np.linalg.norm(cube[:2] - world.bin_m[:2]) > 0.085
        assert all(np.linalg.norm(cube - other) > 0.05 for other in first[:i])


def test_pictures_show_the_scene_from_three_sides(graphics):
    from featherweight.robot.sim.cameras import Cameras

    world = World("challenge")
    cameras = Cameras(world, ("front", "top", "wrist"), 160, 120)
    pictures = cameras.render()
    cameras.close()

    for picture in pictures.values():
        assert picture.shape == (120, 160, 3) and picture.std() > 10
    reds = [np.mean((p[..., 0] > 120) & (p[..., 1] < 90) & (p[..., 2] < 90)) for p in pictures.values()]
    assert reds[0] > 0.0005 and reds[1] > 0.0005  # the red cube


def test_a_simulated_robot_is_driven_through_the_real_driver_and_gives_pictures(graphics):
    config = fwr.SimRobotConfig(cameras=("front",), width_px=160, height_px=120)
    with fwr.SimRobot(config) as robot:
        assert robot.observation_features["front"] == (120, 160, 3)
        robot.send_action(dict(zip(JOINT_KEYS, [15, 10, 0, 0, -40, 30], strict=True)))
        deadline = time.monotonic() + 6
        while robot.reported_deg() != (15, 10, 0, 0, -40, 30) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        observation = robot.get_observation()
        np.testing.assert_allclose(np.degrees(robot.world.joints_rad), [15, 10, 0, 0, -40], atol=1.5)
    assert observation["front"].shape == (120, 160, 3)
    assert set(observation) == {*JOINT_KEYS, "front"}


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


def test_without_graphics_the_reason_and_the_install_line_are_told_and_angles_still_work():
    program = (
        "from featherweight import robot as fwr\n"
        "from featherweight.errors import DeviceError\n"
        "try:\n"
        "    fwr.SimRobot(fwr.SimRobotConfig(cameras=('front',))).connect()\n"
        "except DeviceError as error:\n"
        "    print(error)\n"
        "with fwr.SimRobot() as robot:\n"
        "    print(robot.get_observation()['gripper.pos'])\n"
    )
    environment = {**os.environ, "MUJOCO_GL": "disable"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)

    assert done.returncode == 0, done.stderr
    assert "apt-get install -y libosmesa6" in done.stdout and done.stdout.strip().endswith("0.0")


def test_environments_follow_gymnasium_s_rules_and_can_be_solved():
    gymnasium = pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    assert fwr.register_environments() == ["fw/UMIRobotReach-v0", "fw/UMIRobotPick-v0", "fw/UMIRobotChallenge-v0"]
    check_env(gymnasium.make("fw/UMIRobotReach-v0").unwrapped, skip_render_check=True)
    environment = gymnasium.make("fw/UMIRobotReach-v0")
    for seed in range(3):
        observation, _ = environment.reset(seed=seed)
        joints = np.degrees(table_top(observation["goal_m"]))
        action = dict(zip(JOINT_KEYS, map(np.float64, [*joints, 0]), strict=True))
        for _ in range(150):
            observation, reward, is_done, _, _ = environment.step(action)
            if is_done:
                break
        assert is_done and reward > -0.01


def test_pick_and_challenge_reward_what_they_say():
    gymnasium = pytest.importorskip("gymnasium")
    fwr.register_environments()
    environment = gymnasium.make("fw/UMIRobotChallenge-v0", cubes=1)
    observation, _ = environment.reset(seed=1)
    total, is_done = 0.0, False
    for target in pick_and_place(observation["cube_m"][0], observation["bin_m"]):
        _, reward, is_done, _, _ = environment.step(dict(zip(JOINT_KEYS, map(np.float64, target), strict=True)))
        total += reward
        if is_done:
            break
    assert total == 1.0 and is_done


def test_an_unknown_camera_is_one_sentence(graphics):
    from featherweight.robot.sim.cameras import Cameras

    with pytest.raises(ConfigError, match="Did you mean 'front'"):
        Cameras(World("empty"), ("frnt",))


def test_an_expert_says_which_point_is_out_of_reach():
    with pytest.raises(ConfigError, match="is out of reach"):
        list(pick_and_place(np.array([0.5, 0, 0.011]), np.array([0.17, 0.1, 0])))


def test_a_sim_robot_that_is_not_connected_says_so():
    with pytest.raises(DeviceError, match="is not connected"):
        fwr.SimRobot().get_observation()


def test_pictures_can_be_drawn_where_somebody_has_imported_mujoco_before(graphics):
    program = (
        "import mujoco\n"
        "from featherweight.robot.sim.cameras import Cameras\n"
        "from featherweight.robot.sim.graphics import import_mujoco\n"
        "import_mujoco()\n"
        "print(mujoco.rendering.classic.gl_context.GLContext.__module__)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "DISPLAY")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == f"mujoco.{graphics}"
