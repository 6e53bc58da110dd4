"""The inner rules against slow twins and against torch and transformers where the definitions coincide."""

import math

import pytest
import torch
from low_rank_twins import Adafactor as AdafactorTwin
from low_rank_twins import Adam as AdamTwin
from low_rank_twins import gradients, muon, newton_schulz
from torch import nn

from featherweight.optim import AdamW, GaLoreAdafactor, GaLoreAdamW
from featherweight.optim.policies.moments import rotate
from featherweight.optim.policies.rules import AdafactorRule, AdamWRule, MuonRule, SGDRule, orthogonalize, root

SHAPES = [(7, 11), (11, 7), (8, 8), (1, 6), (6, 1)]


def directions(rule, grads, **group):
    """Return the directions that a rule gives for a sequence of gradients, and its moments after them."""
    shape = tuple(grads[0].shape)
    moments = {
        name: torch.zeros(moment.shape, dtype=torch.float64) for name, moment in rule.moments(shape, group).items()
    }
    return [rule.direction(grad, moments, step, group) for step, grad in enumerate(grads, 1)], moments


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)  # float64, ten steps


def orthogonal(size, seed):
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(matrix)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_adamw_equals_the_twin_and_its_official_eps_acts_before_the_bias_correction(shape):
    grads = gradients(shape, 10, sizes=(1.0, 0.01))
    twin = AdamTwin((0.9, 0.99), 1e-3)
    ours, _ = directions(AdamWRule(), grads, betas=(0.9, 0.99), eps=1e-3, eps_mode="torch")
    assert_same(ours, [twin.direction(grad) for grad in grads])
    official, moments = directions(AdamWRule(), grads, betas=(0.9, 0.99), eps=1e-3, eps_mode="official")
    corrections = math.sqrt(1 - 0.99**10) / (1 - 0.9**10)
    expected = corrections * moments["exp_avg"] / (moments["exp_avg_sq"].sqrt() + 1e-3)
    torch.testing.assert_close(official[-1], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_heavy_ball_momentum_without_damping(momentum):
    grads = gradients((4, 5), 8)
    ours, _ = directions(SGDRule(), grads, betas=(momentum, 0.0))
    expected = [sum(momentum ** (t - i) * grads[i] for i in range(t + 1)) for t in range(8)]
    assert_same(ours, expected)


@pytest.mark.parametrize("rule", [AdamWRule(), SGDRule(), AdafactorRule(), MuonRule()])
def test_rules_change_no_gradient_and_return_a_tensor_of_their_own(rule):
    group = {"betas": (0.9, 0.99), "eps": 1e-8, "eps_mode": "torch", "momentum": 0.95}
    grads = gradients((5, 6), 3)
    ours, moments = directions(rule, grads, **group)
    assert all(torch.equal(one, other) for one, other in zip(grads, gradients((5, 6), 3), strict=True))
    kept = [one.clone() for one in moments.values()]
    ours[-1].add_(1.0)
    assert all(torch.equal(one, other) for one, other in zip(moments.values(), kept, strict=True))


@pytest.mark.parametrize("rule", [AdamWRule(), SGDRule(), AdafactorRule(), MuonRule()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_gradient_gives_a_zero_direction(rule, dtype):
    group = {"betas": (0.9, 0.99), "eps": 1e-8, "eps_mode": "torch", "momentum": 0.95}
    for shape in ((5, 6), (6, 5), (4,)):
        if len(shape) == 1 and isinstance(rule, MuonRule):
            continue  # for matrices only
        moments = {name: torch.zeros(moment.shape, dtype=dtype) for name, moment in rule.moments(shape, group).items()}
        for step in (1, 2):
            direction = rule.direction(torch.zeros(shape, dtype=dtype), moments, step, group)
            assert torch.equal(direction, torch.zeros(shape, dtype=dtype))


class TestAdafactor:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("beta1", [0.0, 0.9])
    def test_directions_equal_the_twin(self, shape, beta1):
        # Sizes that jump reach the limit of the root mean square. Mutations: means over the wrong axis, a sum for a
        # mean, a missing root, the limit after the first moment.
        grads = gradients(shape, 10, sizes=(1.0, 5.0, 0.1))
        twin = AdafactorTwin(beta1)
        ours, moments = directions(AdafactorRule(), grads, betas=(beta1, 0.0))
        assert_same(ours, [twin.direction(grad) for grad in grads])
        torch.testing.assert_close(moments["exp_avg_sq_row"], twin.row, rtol=1e-12, atol=0)
        torch.testing.assert_close(moments["exp_avg_sq_col"], twin.column, rtol=1e-12, atol=0)
        assert ("exp_avg" in moments) is (beta1 > 0)

    def test_vectors_keep_a_full_second_moment(self):
        grads = gradients((9,), 6, sizes=(1.0, 3.0))
        ours, moments = directions(AdafactorRule(), grads, betas=(0.0, 0.0))
        second = torch.zeros(9, dtype=torch.float64)
        for step, (grad, direction) in enumerate(zip(grads, ours, strict=True), 1):
            share = step**-0.8
            second = (1 - share) * second + share * (grad**2 + 1e-30)
            expected = grad / second.sqrt()
            expected = expected / max(1.0, expected.square().mean().sqrt().item())
            torch.testing.assert_close(direction, expected, rtol=1e-12, atol=0)
        assert list(moments) == ["exp_avg_sq"]

    @pytest.mark.parametrize("shape", [(7, 11), (11, 7), (8, 8)])
    def test_without_first_moment_a_full_rank_matrix_equals_torch(self, shape):
        # torch multiplies the rate with max(eps2, rms(weight)), here 1, and takes min(lr, 1 / sqrt(step)), here lr.
        lr, start = 0.01, 0.1 * gradients(shape, 1, seed=9)[0]
        ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        optimizer = GaLoreAdafactor([{"params": [ours], "low_rank": False}], lr=lr, beta1=None, weight_decay=0.1)
        reference = torch.optim.Adafactor([theirs], lr=lr, eps=(1e-30, 1.0), weight_decay=0.1, foreach=False)
        for grad in gradients(shape, 10, sizes=(1.0, 5.0, 0.1)):
            for weight, stepped in ((ours, optimizer), (theirs, reference)):
                weight.grad = grad.clone()
                stepped.step()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
        assert (ours - start).norm() > 0.1

    @pytest.mark.parametrize("shape", [(7, 11), (11, 7), (8, 8), (9,)])
    @pytest.mark.parametrize("beta1", [None, 0.9])
    def test_a_full_rank_parameter_equals_transformers(self, shape, beta1):
        optimization = pytest.importorskip("transformers.optimization")
        start = gradients(shape, 1, seed=9)[0]
        ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        optimizer = GaLoreAdafactor([{"params": [ours], "low_rank": False}], lr=0.01, beta1=beta1, weight_decay=0.1)
        reference = optimization.Adafactor(
            [theirs], lr=0.01, beta1=beta1, weight_decay=0.1, scale_parameter=False, relative_step=False
        )
        for grad in gradients(shape, 10, sizes=(1.0, 5.0, 0.1)):
            for weight, stepped in ((ours, optimizer), (theirs, reference)):
                weight.grad = grad.clone()
                stepped.step()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        assert (ours - start).norm() > 0.02

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_new_basis_mixes_the_means_by_squared_overlaps(self, side):
        # row_i = E[(sum_j C_ij g_j)^2] = sum_j C_ij^2 row_j for independent coordinates g_j of mean zero.
        generator = torch.Generator().manual_seed(0)
        moments = {
            "exp_avg": torch.randn(5, 6, generator=generator, dtype=torch.float64),
            "exp_avg_sq_row": torch.rand(5, generator=generator, dtype=torch.float64),
            "exp_avg_sq_col": torch.rand(6, generator=generator, dtype=torch.float64),
        }
        before = {name: moment.clone() for name, moment in moments.items()}
        overlap = orthogonal(5 if side == "left" else 6, 1)
        assert rotate(moments, (overlap, None) if side == "left" else (None, overlap), 3, (0.9, 0.0)) == 3
        turned, fixed = ("row", "col") if side == "left" else ("col", "row")
        size = len(overlap)
        old = before[f"exp_avg_sq_{turned}"]
        expected = torch.tensor(
            [sum(overlap[i, j].item() ** 2 * old[j].item() for j in range(size)) for i in range(size)],
            dtype=torch.float64,
        )
        torch.testing.assert_close(moments[f"exp_avg_sq_{turned}"], expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(moments[f"exp_avg_sq_{fixed}"], before[f"exp_avg_sq_{fixed}"], rtol=1e-12, atol=0)
        first = overlap @ before["exp_avg"] if side == "left" else before["exp_avg"] @ overlap.T
        torch.testing.assert_close(moments["exp_avg"], first, rtol=1e-12, atol=1e-14)
        # Rotations keep the sum of the means, which is the size of the gradient.
        torch.testing.assert_close(moments[f"exp_avg_sq_{turned}"].sum(), old.sum(), rtol=1e-12, atol=0)


class TestMuon:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_directions_equal_the_twin(self, shape):
        grads, buffer = gradients(shape, 8), torch.zeros(shape, dtype=torch.float64)
        ours, _ = directions(MuonRule(), grads, momentum=0.9)
        for grad, direction in zip(grads, ours, strict=True):
            buffer = 0.9 * buffer + grad
            # Small singular values grow up to 480 times, and their rounding with them.
            torch.testing.assert_close(direction, muon(buffer), rtol=0, atol=1e-10)

    @pytest.mark.parametrize("shape", [(7, 11), (11, 7), (8, 8)])
    def test_steps_equal_torch_up_to_its_bfloat16(self, shape):
        # torch's buffer averages, m = b m + (1 - b) g: another length of the same direction.
        grads = gradients(shape, 8)
        weight = nn.Parameter(torch.zeros(shape))
        reference = torch.optim.Muon(
            [weight], lr=1.0, weight_decay=0.0, momentum=0.9, nesterov=False, adjust_lr_fn="match_rms_adamw"
        )
        ours, _ = directions(MuonRule(), grads, momentum=0.9)
        for grad, direction in zip(grads, ours, strict=True):
            before = weight.detach().clone()
            weight.grad = grad.float()
            reference.step()
            theirs = before - weight.detach()
            # bfloat16 has 8 bits, and five steps amplify its rounding: measured 0.011 to 0.027 of the norm. Mutations:
            # min for max differs by 0.2, four steps for five by 0.28 or more, Nesterov's momentum by 0.25 or more.
            assert (theirs.double() - direction).norm() < 0.06 * direction.norm()

    @pytest.mark.parametrize("shape", [(12, 30), (30, 12), (20, 20), (64, 8)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_singular_values_come_near_one_and_directions_stay(self, shape, dtype):
        rows, columns = shape
        size = min(shape)
        left, right = orthogonal(rows, 1)[:, :size], orthogonal(columns, 2)[:, :size]
        values = torch.logspace(0, -1.5, size, dtype=torch.float64)  # the smallest is above 0.01 of the norm for all
        matrix = (1000 * (left * values) @ right.T).to(dtype)
        result = orthogonalize(matrix)
        assert result.dtype == dtype and result.shape == shape
        found = left.T @ result.double() @ right
        inside = torch.linalg.svdvals(result.double())
        assert 0.6 < inside.min() and inside.max() < 1.2
        # It is a polynomial of the matrix: singular vectors stay, and no sign turns.
        torch.testing.assert_close(found, torch.diag(found.diagonal()), rtol=0, atol=1e-4)
        assert (found.diagonal() > 0).all()
        torch.testing.assert_close(result.double(), newton_schulz(matrix.double()), rtol=0, atol=1e-4)

    def test_it_does_not_depend_on_the_size_of_the_matrix(self):
        (matrix,) = gradients((6, 9), 1)
        for size in (1e-30, 1e-3, 1e30):
            torch.testing.assert_close(orthogonalize(size * matrix), orthogonalize(matrix), rtol=0, atol=1e-10)
        tiny = orthogonalize((1e-20 * matrix).float())
        torch.testing.assert_close(tiny, orthogonalize(matrix).float(), rtol=0, atol=1e-3)

    def test_a_direction_is_as_long_as_adams(self):
        # Root mean square 0.2, for a full-rank matrix whose singular values are all about one.
        for shape in ((40, 60), (60, 40), (50, 50)):
            (direction,), _ = directions(MuonRule(), gradients(shape, 1), momentum=0.9)
            assert 0.1 < direction.square().mean().sqrt() < 0.24

    def test_parameters_without_a_subspace_follow_adamw(self):
        ours, theirs = (nn.Parameter(torch.ones(6)) for _ in range(2))
        optimizer = GaLoreAdamW([{"params": [ours]}], rule="muon", weight_decay=0.1)
        reference = AdamW([theirs], weight_decay=0.1)
        for grad in gradients((6,), 4):
            ours.grad = theirs.grad = grad.float()
            optimizer.step()
            reference.step()
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roots_are_those_of_torch_to_rounding_and_exact_for_zero(dtype):
    values = torch.logspace(-30, 30, 4096, dtype=dtype)
    values = torch.cat([values, torch.tensor([0.0, 1.0, 1e-40, float("inf"), float("nan")], dtype=dtype)])
    torch.testing.assert_close(root(values), values.sqrt(), rtol=2 * torch.finfo(dtype).eps, atol=0, equal_nan=True)
    assert root(torch.zeros(3, dtype=dtype)).tolist() == [0.0] * 3
