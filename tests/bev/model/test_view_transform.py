import numpy as np
import pytest
import torch
from torch.nn.functional import gelu

from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.model.camera import Camera
from featherweight.bev.model.view_transform import ColumnTransform, FlatGround, FlattenedMlp, ToGround, UprightGround

GRID = BEVGridConfig(x_min=-8, x_max=8, z_min=1, z_max=17, resolution=1.0, anchor="center")
DEPTHS = np.arange(16) + 1.5


def cameras(batch: int = 2, width: float = 20) -> Camera:
    intrinsics = torch.tensor([[[18.0, 0, width / 2 - 0.7], [0, 19.0, 6.2], [0, 0, 1]]]).repeat(batch, 1, 1)
    return Camera.of(intrinsics, None, 1.4)


def transform(**options) -> ColumnTransform:
    torch.manual_seed(0)
    return ColumnTransform(16, 4, 2, DEPTHS, **options).double()


@pytest.mark.parametrize("chunk", [1, 7, 20])
@pytest.mark.parametrize("recompute", [False, True])
def test_columns_a_few_at_a_time_give_the_same_numbers_and_gradients(chunk, recompute):
    torch.manual_seed(1)
    features = torch.randn(2, 16, 12, 20, dtype=torch.float64)
    whole, parts = transform(), transform(column_chunk=chunk)
    parts.use_checkpoint = recompute
    results = []
    for module in (whole, parts):
        given = features.clone().requires_grad_()
        out = module(given, cameras())
        out.square().sum().backward()
        results.append((out, given.grad, *(parameter.grad for parameter in module.parameters())))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_column_sees_no_other_one_but_its_neighbours():
    module = transform()
    features = torch.randn(1, 16, 12, 20, dtype=torch.float64, requires_grad=True)
    module(features, cameras(1))[:, :, :, 10].square().sum().backward()
    touched = features.grad.abs().sum((0, 1, 2)) > 0
    assert touched.nonzero().flatten().tolist() == [9, 10, 11]


def test_the_ground_token_is_the_feature_where_flat_ground_is_seen():
    module, camera = transform(), cameras(1)
    rows = (torch.arange(12, dtype=torch.float64) + 0.5)[None, None, :, None].expand(1, 16, 12, 20)
    tokens = module.ground_tokens(rows, camera)
    expected = camera.ground_row(torch.from_numpy(module.depths)).clamp(0.5, 11.5)
    torch.testing.assert_close(tokens[0, 0, :, 0].float(), expected[0], rtol=1e-5, atol=1e-5)


def test_the_prior_is_largest_where_flat_ground_is_seen():
    module, camera = transform(), cameras(1)
    bias = module.ground_bias(camera, 12)[0, 0]
    expected = (camera.ground_row(torch.from_numpy(module.depths))[0] - 0.5).round().clamp(0, 11)
    assert bias.argmax(-1).float().sub(expected).abs().max() <= 1


def test_mirrored_pictures_give_mirrored_ground():
    """With the kernel across columns symmetric, the transform knows no left and right."""
    module = transform()
    with torch.no_grad():
        kernel = module.across.weight
        kernel.copy_((kernel + kernel.flip(3)) / 2)
    to_ground = ToGround(GRID, 1.5, 1.0, 16).double()
    features = torch.randn(1, 16, 12, 20, dtype=torch.float64)
    camera = cameras(1)
    flipped = Camera(camera.focal_x, camera.focal_y, 20 - camera.center_x, camera.center_y, camera.height, camera.pitch)
    ground = to_ground(module(features, camera), camera)
    mirrored = to_ground(module(features.flip(3), flipped), flipped)
    torch.testing.assert_close(mirrored.flip(3), ground, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["column", "ipm"])
def test_ground_beside_the_picture_is_zero(kind):
    camera = cameras(1)
    features = torch.ones(1, 16, 12, 20)
    if kind == "ipm":
        ground = FlatGround(GRID)(features, camera)
    else:
        ground = ToGround(GRID, 1.5, 1.0, 16)(torch.ones(1, 16, 16, 20), camera)
    points = torch.from_numpy(GRID.points()).float()
    u = camera.column(points[..., 0], points[..., 1])[0]
    assert (ground[0, 0][(u > 0.5) & (u < 19.5)] > 0.99).all()
    assert (ground[0, 0][(u < -0.5) | (u > 20.5)] == 0).all()


def test_the_matrix_of_older_work_maps_any_pixel_to_any_cell():
    module = FlattenedMlp((12, 20), GRID)
    assert module(torch.randn(2, 16, 12, 20), cameras()).shape == (2, 16, 16, 16)


def silent_upright(channels: int, heights: tuple[float, ...]) -> UprightGround:
    """Return an upright transform that reads nothing and passes on what it reads."""
    module = UprightGround(GRID, channels, heights)
    with torch.no_grad():
        for weight in (module.read.weight, module.read.bias, module.place.weight, module.project.weight):
            weight.zero_()
        module.project.weight[:, :, 0, 0] = torch.eye(channels)
    return module


def test_upright_ground_begins_as_flat_ground_and_reads_what_stands_above_a_cell():
    """A wall at 8 m that is 1.2 m high: seen 1 m above its foot, not 2.5 m above."""
    camera, rows = cameras(1), 200
    camera = Camera(
        camera.focal_x, camera.focal_y * 20, camera.center_x, camera.center_y * 20, camera.height, camera.pitch
    )
    seen = camera.ground_row(torch.tensor([8.5]))[0], camera.ground_row(torch.tensor([8.5]), 1.2)[0]
    v = torch.arange(rows)[:, None] + 0.5
    wall = ((v <= seen[0]) & (v >= seen[1])).float().expand(1, 4, rows, 20).contiguous()
    flat = FlatGround(GRID)(wall, camera)
    assert torch.equal(UprightGround(GRID, 4, (1.0, 2.5))(wall, camera), flat)

    module, middle = silent_upright(4, (1.0, 2.5)), (0, 0, 7, 8)
    for height, expected in ((1, 1.0), (2, 0.0)):
        with torch.no_grad():
            module.read.weight.zero_()[:, 4 * height : 4 * height + 4] = 1 / 4  # of the ground, then of each height
            read = module(wall, camera) - flat
        torch.testing.assert_close(read[middle], gelu(torch.tensor(expected)))


def test_upright_ground_knows_between_which_rows_a_cell_is_seen_and_how_far_it_is():
    features, camera = torch.zeros(1, 16, 12, 20), cameras(1)
    module = silent_upright(16, (1.0,))
    with torch.no_grad():
        module.place.weight.copy_(torch.eye(16))
        read, lower = module(features, camera), module(features, camera.pitched(torch.tensor([0.05])))
    assert torch.pdist(read[0, :, :, 0].T).min() > 0.1  # no two distances are alike
    assert (read - read[..., :1]).abs().max() == 0
    moved = (read - lower).abs().amax((0, 2, 3)) > 0.1
    assert moved[[*range(8)]].all() and not moved[8:].any()  # phases of rows follow the camera, metres do not
