"""Forward kinematics and Jacobian against published vectors, MuJoCo and dqrobotics."""

import numpy as np
import pytest
from robot_postures import PRINTED, random_angles

from featherweight.robot.kinematics import (
    BASE_HEIGHT_M,
    forward,
    forward_urdf,
    jacobian,
    quaternion,
    tool_point,
    wrist_point,
)

# Published model: angles (deg), position (m), quaternion w x y z.
GOLDEN = [
    ((0, 0, 0, 0, 0), (0.165190, 0, 0.105800), (0.5, 0.5, -0.5, 0.5)),
    ((90, 0, 0, 0, 0), (0, 0.165190, 0.105800), (0, -0.707107, 0, -0.707107)),
    ((0, 45, 0, 0, 0), (0.174295, 0, -0.034819), (0.653281, 0.653281, -0.270598, 0.270598)),
    ((0, 0, 45, 0, 0), (0.116807, 0, 0.222607), (0.270598, 0.270598, -0.653281, 0.653281)),
    ((0, 0, 0, 45, 45), (0.165190, 0, 0.105800), (0.146447, 0.353553, -0.853553, 0.353553)),
    ((10, 20, -30, 40, 50), (0.131953, 0.023267, -0.025646), (0.469105, 0.509008, -0.668953, 0.270838)),
    ((-45, 30, 60, -30, 15), (0.129902, -0.129902, 0.177503), (0.659740, -0.091506, -0.524519, 0.530330)),
    ((60, -20, 35, -70, 80), (0.033471, 0.057974, 0.236213), (0.441841, 0.284149, 0.386997, -0.757805)),
]


@pytest.mark.parametrize(("angles", "position", "rotation"), GOLDEN)
def test_the_published_vectors_hold(angles, position, rotation):
    here, turned = forward(np.radians(angles))

    np.testing.assert_allclose(here, position, atol=PRINTED)
    assert abs(abs(quaternion(turned) @ rotation) - 1) < PRINTED


def test_mujoco_gives_the_same_poses_for_both_models():
    pytest.importorskip("mujoco")
    from featherweight.robot.sim.graphics import import_mujoco
    from featherweight.robot.sim.mjcf import build_model

    mujoco, q = import_mujoco(), random_angles(1000)
    for model, expected in (("dh", forward(q)[0] + [0, 0, BASE_HEIGHT_M]), ("urdf", forward_urdf(q)[0])):
        scene = build_model("empty", model=model, gripper=False)
        data = mujoco.MjData(scene)
        found = []
        for angles in q:
            data.qpos[:5] = angles
            mujoco.mj_kinematics(scene, data)
            found.append(data.site("wrist").xpos.copy())
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_dqrobotics_gives_the_same_positions():
    dq = pytest.importorskip("dqrobotics", exc_type=ImportError)
    from dqrobotics.robot_modeling import DQ_SerialManipulatorDH

    from featherweight.robot.kinematics.dh import A_M, ALPHA_RAD, D_M, OFFSETS_RAD

    robot = DQ_SerialManipulatorDH(np.array([OFFSETS_RAD, D_M, A_M, ALPHA_RAD, [0.0] * 5]))
    q = random_angles(1000)
    found = np.array([dq.vec3(dq.translation(robot.fkm(angles))) for angles in q])

    np.testing.assert_allclose(found, forward(q)[0], atol=1e-12)


@pytest.mark.parametrize("tool_m", [0.0, 0.085])
def test_the_jacobian_is_the_derivative(tool_m):
    step = 1e-6
    for q in random_angles(100):
        for i in range(5):
            ahead, behind = q.copy(), q.copy()
            ahead[i] += step
            behind[i] -= step
            slope = (tool_point(ahead, tool_m) - tool_point(behind, tool_m)) / (2 * step)
            np.testing.assert_allclose(jacobian(q, tool_m)[:3, i], slope, atol=1e-6)
            turn = (forward(ahead)[1] - forward(behind)[1]) / (2 * step) @ forward(q)[1].T
            np.testing.assert_allclose(jacobian(q)[3:, i], [turn[2, 1], turn[0, 2], turn[1, 0]], atol=1e-6)


def test_the_planar_form_of_the_wrist_is_the_same_point():
    q = random_angles(1000)

    np.testing.assert_allclose(wrist_point(q), forward(q)[0], atol=1e-15)
