import itertools

import pytest
import torch

from featherweight.errors import ShapeError
from featherweight.linalg import subspace as subspace_module
from featherweight.linalg.random import keyed_generator, random_orthonormal
from featherweight.linalg.subspace import MatrixSubspace, Subspace

SIDES = ["left", "right", "both"]
BATCHES = [(), (3,), (2, 3)]


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make(side, batch=(), rows=13, columns=9, ranks=(4, 4), dtype=torch.float32, seed=0):
    left = random_orthonormal(rows, ranks[0], batch=batch, generator=keyed_generator(seed, 1)).to(dtype)
    right = random_orthonormal(columns, ranks[1], batch=batch, generator=keyed_generator(seed, 2)).to(dtype)
    return MatrixSubspace(left if side != "right" else None, right if side != "left" else None)


def reference_projection(subspace, grad):
    """The definition, in double precision, one matrix at a time."""
    cores = []
    for index in itertools.product(*map(range, grad.shape[:-2])):
        core = grad[index].double()
        if subspace.left is not None:
            core = subspace.left[index].double().t().contiguous() @ core
        if subspace.right is not None:
            core = core @ subspace.right[index].double()
        cores.append(core)
    return torch.stack(cores).reshape(*grad.shape[:-2], *cores[0].shape)


def reference_back(subspace, core):
    full = core.double()
    if subspace.left is not None:
        full = subspace.left.double() @ full
    if subspace.right is not None:
        full = full @ subspace.right.double().mT
    return full


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("ranks", [(4, 4), (1, 9), (13, 1)])  # unequal ranks try both orders of the two products
def test_projection_follows_its_definition(side, batch, ranks):
    subspace = make(side, batch, ranks=ranks)
    grad = randn(*batch, 13, 9, dtype=torch.float64)
    core = subspace.project(grad)
    assert core.dtype == torch.float64
    assert tuple(core.shape) == subspace.core_shape(grad.shape)
    torch.testing.assert_close(core, reference_projection(subspace, grad), rtol=0, atol=1e-13)  # double rounding
    torch.testing.assert_close(subspace.project_back(core), reference_back(subspace, core), rtol=0, atol=1e-13)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("tile", [1, 20, 1 << 22])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_summed_in_float32_in_any_tiling(monkeypatch, side, batch, tile, dtype):
    monkeypatch.setattr(subspace_module, "TILE_ELEMENTS", tile)
    for ranks in ((4, 4), (2, 7), (7, 2)):
        subspace = make(side, batch, ranks=ranks)
        grad = randn(*batch, 13, 9).to(dtype)
        core = subspace.project(grad)
        assert core.dtype == torch.float32
        # Sums of up to 117 products in float32. Mutation: a product in bf16 is off by 1e-2.
        torch.testing.assert_close(core.double(), reference_projection(subspace, grad), rtol=0, atol=3e-6)


def test_a_half_precision_gradient_is_never_copied_whole(monkeypatch):
    monkeypatch.setattr(subspace_module, "TILE_ELEMENTS", 64 * 8)
    sizes = []
    to = torch.Tensor.to

    def spy(tensor, *arguments, **options):
        if tensor.dtype == torch.bfloat16:
            sizes.append(tensor.numel())
        return to(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", spy)
    make("both", rows=100, columns=64).project(randn(100, 64).bfloat16())
    assert max(sizes) == 64 * 8
    assert sum(sizes) == 100 * 64


@pytest.mark.parametrize("side", SIDES)
def test_two_bf16_sides_multiply_in_bf16_and_return_float32(side):
    subspace, grad = make(side, dtype=torch.bfloat16), randn(13, 9).bfloat16()
    core = subspace.project(grad)
    assert core.dtype == torch.float32
    # One rounding to bf16 (2**-8 relative) per product of numbers of order 3; two products for "both".
    torch.testing.assert_close(core.double(), reference_projection(subspace, grad), rtol=0, atol=0.05)
    assert torch.equal(core, core.bfloat16().float())


@pytest.mark.parametrize("side", SIDES)
def test_any_strides_give_the_same_core(side):
    subspace = make(side)
    grad = randn(9, 26).t()[::2]
    assert not grad.is_contiguous()
    # Only the kernel differs: float32 rounding of 13-term sums.
    torch.testing.assert_close(subspace.project(grad), subspace.project(grad.contiguous()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (-0.3, 0.9), (2.0, 0.0)])
def test_add_back_equals_the_sum_of_weight_and_update(side, batch, alpha, beta):
    for ranks in ((4, 4), (2, 7), (7, 2)):
        subspace = make(side, batch, ranks=ranks)
        core = subspace.project(randn(*batch, 13, 9))
        weight = randn(*batch, 13, 9, seed=5)
        expected = beta * weight.double() + alpha * reference_back(subspace, core)
        assert subspace.add_back_(weight, core, alpha=alpha, beta=beta) is weight
        torch.testing.assert_close(weight.double(), expected, rtol=0, atol=1e-5)  # float32 sums of order 5


@pytest.mark.parametrize("side", SIDES)
def test_add_back_writes_a_strided_view_of_a_parameter_and_nothing_else(side):
    subspace = make(side)
    core = subspace.project(randn(13, 9))
    parameter = torch.nn.Parameter(randn(9, 39, seed=5))
    before = parameter.detach().clone()
    view = parameter.detach()[:, :13].t()
    subspace.add_back_(view, core, alpha=-1.0)
    expected = before[:, :13].t().double() - reference_back(subspace, core)
    torch.testing.assert_close(view.double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(parameter[:, 13:], before[:, 13:])


@pytest.mark.parametrize("side", SIDES)
def test_add_back_allocates_no_matrix_of_the_weights_size(side):
    subspace = make(side, rows=64, columns=64, ranks=(2, 2))
    weight, core = randn(64, 64), torch.ones(subspace.core_shape((64, 64)))
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.data_ptr() != weight.data_ptr():
                sizes.append(result.numel())
            return result

    with Sizes():
        subspace.add_back_(weight, core)
    # The largest thing beside the weight is one factor of 64 x 2. Mutation: weight += project_back(core) makes 4096.
    assert max(sizes, default=0) <= 128


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("batch", BATCHES)
def test_projecting_back_and_forth_is_the_identity_on_cores(side, batch):
    subspace = make(side, batch)
    core = randn(*subspace.core_shape((*batch, 13, 9)))
    torch.testing.assert_close(subspace.project(subspace.project_back(core)), core, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", BATCHES)
def test_overlap_carries_old_coordinates_to_new_ones(batch):
    new, old = make("both", batch, seed=1, ranks=(4, 3)), make("both", batch, seed=2, ranks=(2, 5))
    left, right = new.overlap(old)
    assert left.shape == (*batch, 4, 2) and right.shape == (*batch, 3, 5)
    core = randn(*batch, 2, 5)
    # The definition: coordinates in the new subspace of what the old coordinates stand for.
    torch.testing.assert_close(left @ core @ right.mT, new.project(old.project_back(core)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("side", "has"), [("left", (True, False)), ("right", (False, True))])
def test_overlap_of_a_subspace_with_itself_is_the_identity_on_its_side(side, has):
    subspace = make(side)
    overlaps = subspace.overlap(subspace)
    assert tuple(each is not None for each in overlaps) == has
    torch.testing.assert_close(next(each for each in overlaps if each is not None), torch.eye(4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("side", SIDES)
def test_energy_is_the_captured_share_at_any_scale(side, scale):
    subspace = make(side)
    inside = subspace.project_back(randn(*subspace.core_shape((13, 9))))
    outside = randn(13, 9, seed=8)
    outside = outside - subspace.project_back(subspace.project(outside))
    outside *= inside.norm() / outside.norm()
    # Equal squared norms inside and outside: half. Float32 rounding of the parts.
    assert float(subspace.energy((inside + outside) * scale)) == pytest.approx(0.5, abs=1e-5)
    assert float(subspace.energy(inside * scale)) == pytest.approx(1.0, abs=1e-5)
    assert float(subspace.energy(torch.zeros(13, 9))) == 0.0


def test_energy_of_a_batch_is_one_number_for_each_matrix():
    subspace, grad = make("left", (2, 3)), randn(2, 3, 13, 9).bfloat16()
    shares = subspace.energy(grad)
    single = MatrixSubspace(left=subspace.left[1, 2]).energy(grad[1, 2])
    assert shares.shape == (2, 3)
    torch.testing.assert_close(shares[1, 2], single, rtol=1e-6, atol=0)  # batched and single GEMM kernels


def test_rank_is_the_number_of_columns():
    assert make("left", ranks=(3, 5)).rank == 3
    assert make("both", ranks=(3, 5)).rank == 5


def test_a_matrix_subspace_is_a_subspace():
    subspace: Subspace = make("left")
    assert callable(subspace.project) and callable(subspace.project_back) and callable(subspace.overlap)


@pytest.mark.parametrize(
    ("side", "shape", "message"),
    [
        ("left", (9, 13), r"project: grad=\(9, 13\) does not fit the left basis \(13, 4\)"),
        ("right", (9, 13), r"project: grad=\(9, 13\) does not fit the right basis \(9, 4\)"),
        ("both", (13, 8), r"project: grad=\(13, 8\) does not fit the right basis \(9, 4\)"),
        ("left", (2, 13, 9), r"project: grad=\(2, 13, 9\) does not fit the left basis \(13, 4\)"),
        ("left", (13,), r"project: grad=\(13,\) does not fit the left basis \(13, 4\)"),
    ],
)
def test_a_gradient_that_does_not_fit_is_refused_naming_both_shapes(side, shape, message):
    with pytest.raises(ShapeError, match=message):
        make(side).project(torch.ones(shape))


def test_other_misfits_are_refused_naming_both_shapes():
    left = make("left")
    with pytest.raises(ShapeError, match=r"core=\(5, 9\) does not fit the left basis \(13, 4\)"):
        left.project_back(torch.ones(5, 9))
    with pytest.raises(ShapeError, match=r"core=\(4, 8\) does not fit weight=\(13, 9\); expected core=\(4, 9\)"):
        left.add_back_(torch.ones(13, 9), torch.ones(4, 8))
    with pytest.raises(ShapeError, match=r"left basis \(13, 4\) does not fit the old one \(12, 4\)"):
        left.overlap(make("left", rows=12))
    with pytest.raises(ShapeError, match=r"left basis \(13, 4\) does not fit the old one None"):
        left.overlap(make("right"))
    with pytest.raises(ShapeError, match="leaves no basis"):
        MatrixSubspace()
    with pytest.raises(ShapeError, match=r"left=\(13,\) is no matrix"):
        MatrixSubspace(left=torch.ones(13))
    with pytest.raises(ShapeError, match="batch dimensions"):
        MatrixSubspace(left=torch.ones(2, 13, 4), right=torch.ones(9, 4))
