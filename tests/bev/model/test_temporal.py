import math

import numpy as np
import pytest
import torch

from featherweight.bev.geometry import ground_motion, planar_pose, pose
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.model.temporal import GroundWarp, TemporalFusion
from featherweight.bev.synthetic.rig import CAMERA_ROTATION

GRID = BEVGridConfig(x_min=-12, x_max=12, z_min=1, z_max=41, resolution=0.5, anchor="center", plane="gravity")


def camera(x: float, y: float, yaw: float) -> np.ndarray:
    return planar_pose(x, y, yaw) @ pose(CAMERA_ROTATION, (0, 0, 1.5))


def motion(past: np.ndarray, now: np.ndarray, dtype=torch.float64) -> torch.Tensor:
    return torch.from_numpy(ground_motion(past, now, "gravity"))[None].to(dtype)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("anchor", ["center", "corner"])
def test_no_motion_changes_nothing(dtype, bound, anchor):
    warp = GroundWarp(GRID.model_copy(update={"anchor": anchor}))
    features = torch.rand(1, 3, *GRID.shape, dtype=dtype)
    still = torch.eye(3, dtype=dtype)[None]
    assert (warp(features, still) - features).abs().max() <= bound


def test_driving_n_cells_shifts_n_rows_bit_for_bit():
    straight = pose([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], (0, 0, 1.5))
    past, now = straight, planar_pose(3.5, 0, 0) @ straight
    features = torch.randn(1, 2, *GRID.shape)
    moved = GroundWarp(GRID)(features, motion(past, now, torch.float32), mode="nearest")
    assert torch.equal(moved[:, :, :-7], features[:, :, 7:])


def test_a_circle_stays_a_circle_on_a_grid_that_is_no_square():
    z, x = np.meshgrid(GRID.depths(), GRID.laterals(), indexing="ij")
    past, now = camera(0, 0, 0.0), camera(0, 0, math.radians(30))
    disc = torch.from_numpy(np.hypot(x + 8, z - 18) < 3).double()[None, None]
    moved = GroundWarp(GRID)(disc, motion(past, now))[0, 0].numpy()
    weight = moved / moved.sum()
    center = (weight * x).sum(), (weight * z).sum()
    spread = [(weight * (axis - middle) ** 2).sum() for axis, middle in zip((x, z), center, strict=True)]
    assert moved.sum() == pytest.approx(float(disc.sum()), rel=0.02)
    assert spread[0] == pytest.approx(spread[1], rel=0.02)


def memory(length: int = 2, batch: int = 1):
    torch.manual_seed(0)
    still = torch.eye(3).repeat(batch, length, 1, 1)
    return {
        "memory": torch.randn(batch, length, 8, *GRID.shape),
        "mask": torch.ones(batch, length, *GRID.shape, dtype=torch.bool),
        "motion": still,
        "age": torch.full((batch, length), 0.5),
        "valid": torch.ones(batch, length, dtype=torch.bool),
    }


def test_at_the_start_a_memory_changes_nothing():
    fusion, now = TemporalFusion(8, 2, GRID), torch.randn(1, 8, *GRID.shape)
    fused, weights = fusion(now, **memory())
    assert torch.equal(fused, now)
    torch.testing.assert_close(weights.sum(1), torch.ones(1, *GRID.shape))


def test_what_was_not_seen_or_does_not_exist_has_no_weight_and_every_parameter_a_gradient():
    fusion, now = TemporalFusion(8, 2, GRID), torch.randn(1, 8, *GRID.shape)
    torch.nn.init.normal_(fusion.output.weight)
    past = memory()
    past["mask"][:, 0, :10] = False
    past["valid"][:, 1] = False
    _, weights = fusion(now, **past)
    assert (weights[:, 1, :10] == 0).all() and (weights[:, 1, 12:] > 0).all() and (weights[:, 2] == 0).all()
    past["valid"][:] = False
    past["memory"][:] = math.nan
    fused, weights = fusion(now, **past)
    assert torch.equal(fused, now) and (weights[:, 0] == 1).all()
    fused.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in fusion.parameters())
