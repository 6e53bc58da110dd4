"""The same in torch."""

import numpy as np
import pytest
from robot_postures import random_angles

from featherweight.robot.kinematics import forward, jacobian


def test_torch_gives_the_same_poses_and_jacobians():
    torch = pytest.importorskip("torch")
    from featherweight.robot.kinematics import differentiable

    q = random_angles(50)

    position, rotation = differentiable.forward(torch.tensor(q))
    rates = differentiable.jacobian(torch.tensor(q))

    np.testing.assert_allclose(position.numpy(), forward(q)[0], atol=1e-14)
    np.testing.assert_allclose(rotation.numpy(), forward(q)[1], atol=1e-14)
    np.testing.assert_allclose(rates.numpy(), jacobian(q)[:, :3], atol=1e-14)
