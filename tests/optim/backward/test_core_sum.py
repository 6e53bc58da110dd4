"""Sums of cores and sketches, each against the explicit sum of the gradients."""

import math

import pytest
import torch
from low_rank_twins import gradients
from torch import nn

from featherweight.optim import AdamW, GaLoreAdamW
from featherweight.optim.backward.core_sum import core_sum_bytes
from featherweight.optim.backward.sketch import NORM_COLUMNS
from featherweight.optim.backward.step_sum import Summing
from featherweight.optim.backward.window import sum_of
from featherweight.optim.step.check import sizes_of

SHAPES = [(7, 11), (11, 7), (8, 8)]
SIDES = ["left", "right", "full"]


def build(shape, proj_type, *, dtype=torch.float64, steps=2, rank=3, **options):
    """Return an optimizer whose only weight has made some ordinary steps."""
    weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(dtype))
    group = {"params": [weight], "rank": rank, "proj_type": proj_type}
    options = {"update_proj_gap": 1000, "lr": 0.01, **options}
    optimizer = GaLoreAdamW([group], **options)
    for grad in gradients(shape, steps, seed=100):
        weight.grad = grad.to(dtype)
        optimizer.step()
    return optimizer, weight


def begin(optimizer, weight, grads, *, is_only=False, estimates_norm=True, due=False):
    """Return a sum over micro-batches, and the subspaces that it is in."""
    if due:
        optimizer.state[weight]["next_refresh"].copy_(optimizer.state[weight]["step"])
    member = optimizer.member(weight, optimizer.param_groups[0])
    total = sum_of(optimizer.step_of(weight), member, grads[0], Summing(is_only, estimates_norm))
    for grad in grads:
        total.add(grad.clone())
    return total, total.matrices


def explicit_core(subspace, grad):
    core = grad if subspace.left is None else subspace.left.T @ grad
    return core if subspace.right is None else core @ subspace.right


def explicit_back(subspace, core):
    full = core if subspace.left is None else subspace.left @ core
    return full if subspace.right is None else full @ subspace.right.T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("proj_type", SIDES)
class TestOneMatrix:
    def test_the_core_is_that_of_the_sum(self, shape, proj_type):
        optimizer, weight = build(shape, proj_type)
        grads = gradients(shape, 5, sizes=(1.0, 10.0))
        total, (matrix,) = begin(optimizer, weight, grads)
        expected = explicit_core(matrix.subspace(), sum(grads))
        torch.testing.assert_close(total.sums[0].core, expected, rtol=0, atol=1e-12)
        assert not total.sums[0].sketches  # no refresh is due

    def test_the_update_equals_an_ordinary_step_with_the_sum(self, shape, proj_type):
        grads = gradients(shape, 5)
        optimizer, weight = build(shape, proj_type)
        total, _ = begin(optimizer, weight, grads)
        assert total.update_(0.5) == 0
        other, other_weight = build(shape, proj_type)
        other_weight.grad = 0.5 * sum(grads)
        other.step()
        torch.testing.assert_close(weight, other_weight, rtol=0, atol=1e-12)
        state, other_state = optimizer.state[weight], other.state[other_weight]
        assert state.keys() == other_state.keys()
        for key in state:
            torch.testing.assert_close(state[key], other_state[key], rtol=0, atol=1e-12)

    def test_a_due_refresh_keeps_the_product_of_the_sum_with_its_test_matrix(self, shape, proj_type):
        optimizer, weight = build(shape, proj_type)
        grads = gradients(shape, 4)
        moment = optimizer.state[weight]["exp_avg"].clone()
        total, (matrix,) = begin(optimizer, weight, grads, due=True)
        kept, subspace = total.sums[0], matrix.subspace()
        assert set(kept.sketches) == ({"left", "right"} if proj_type == "full" else {proj_type})
        for side, sketch in kept.sketches.items():
            full = sum(grads) if side == "left" else sum(grads).T
            torch.testing.assert_close(sketch, full @ kept.sketch_matrices[side], rtol=0, atol=1e-11)
            if proj_type == "full":  # the basis of the other side
                span = subspace.right if side == "left" else subspace.left
            else:  # what the first moment remembers
                span = torch.linalg.qr(moment.T if side == "left" else moment)[0]
            cosines = torch.linalg.svdvals(span.T @ kept.sketch_matrices[side])
            torch.testing.assert_close(cosines, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-10)

    def test_the_new_basis_spans_the_sketch_and_holds_from_the_next_step_on(self, shape, proj_type):
        optimizer, weight = build(shape, proj_type)
        grads = gradients(shape, 4)
        before = weight.detach().clone()
        total, (matrix,) = begin(optimizer, weight, grads, due=True)
        old = matrix.subspace()
        sides = [name for name in ("left", "right") if getattr(old, name) is not None]
        old = type(old)(*(None if basis is None else basis.clone() for basis in (old.left, old.right)))
        sketches = {side: sketch.clone() for side, sketch in total.sums[0].sketches.items()}
        total.update_(1.0)
        change = weight.detach() - before
        torch.testing.assert_close(explicit_back(old, explicit_core(old, change)), change, rtol=0, atol=1e-12)
        fresh = matrix.subspace()
        for side in sides:
            basis, expected = getattr(fresh, side), torch.linalg.qr(sketches[side])[0]
            torch.testing.assert_close(basis @ basis.T, expected @ expected.T, rtol=0, atol=1e-10)
        assert int(optimizer.state[weight]["refresh_count"]) == 2
        assert int(optimizer.state[weight]["next_refresh"]) == 1000

    def test_the_moments_follow_into_the_new_basis(self, shape, proj_type):
        optimizer, weight = build(shape, proj_type)
        grads, state = gradients(shape, 4), optimizer.state[weight]
        first = state["exp_avg"].clone()
        total, (matrix,) = begin(optimizer, weight, grads, due=True)
        old = matrix.subspace()
        old = type(old)(*(None if basis is None else basis.clone() for basis in (old.left, old.right)))
        updated = 0.9 * first + 0.1 * explicit_core(old, sum(grads))
        total.update_(1.0)
        expected = explicit_core(matrix.subspace(), explicit_back(old, updated))
        torch.testing.assert_close(state["exp_avg"], expected, rtol=0, atol=1e-12)

    def test_an_only_micro_batch_refreshes_before_its_step_as_an_ordinary_one(self, shape, proj_type):
        (grad,) = gradients(shape, 1)
        optimizer, weight = build(shape, proj_type)
        total, _ = begin(optimizer, weight, [grad], is_only=True, due=True)
        total.update_(1.0)
        other, other_weight = build(shape, proj_type)
        other.state[other_weight]["next_refresh"].copy_(other.state[other_weight]["step"])
        other_weight.grad = grad.clone()
        other.step()
        torch.testing.assert_close(weight, other_weight, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("estimates_norm", [True, False])
    @pytest.mark.parametrize("due", [True, False])
    def test_bytes_of_the_formula_are_those_of_the_tensors(self, shape, proj_type, estimates_norm, due):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            optimizer, weight = build(shape, proj_type, dtype=dtype)
            grads = [grad.to(dtype) for grad in gradients(shape, 3)]
            total, _ = begin(optimizer, weight, grads, estimates_norm=estimates_norm, due=due)
            kept = sum(tensor.nbytes for tensor in total.tensors())
            assert kept == core_sum_bytes(total.layout, is_sketched=due, estimates_norm=estimates_norm)


class TestFirstStep:
    @pytest.mark.parametrize("proj_type", ["left", "right"])
    def test_a_basis_of_the_first_micro_batch_is_followed_by_one_of_the_sum(self, proj_type):
        shape, rank = (30, 40), 3
        optimizer, weight = build(shape, proj_type, steps=0)
        grads = gradients(shape, 4)
        total, (matrix,) = begin(optimizer, weight, grads)
        first, kept = matrix.subspace(), total.sums[0]
        strongest = torch.linalg.svd(grads[0], full_matrices=False)
        exact = (strongest[0] if proj_type == "left" else strongest[2].T)[:, :rank]
        basis = (first.left if proj_type == "left" else first.right).clone()
        # One power iteration finds most of it: the energy, beside the best possible.
        side = grads[0] if proj_type == "left" else grads[0].T
        assert (basis.T @ side).norm() > 0.9 * (exact.T @ side).norm()
        # Nothing is remembered: the sketch is oversampled, with a random test matrix.
        full = sum(grads) if proj_type == "left" else sum(grads).T
        assert kept.sketch_matrices[proj_type].shape == (full.shape[1], rank + 8)
        torch.testing.assert_close(kept.sketches[proj_type], full @ kept.sketch_matrices[proj_type], rtol=0, atol=1e-10)
        sketch = kept.sketches[proj_type].clone()
        total.update_(1.0)
        fresh = matrix.subspace()
        fresh = fresh.left if proj_type == "left" else fresh.right
        leading = torch.linalg.svd(sketch, full_matrices=False)[0][:, :rank]
        torch.testing.assert_close(fresh @ fresh.T, leading @ leading.T, rtol=0, atol=1e-8)
        assert (fresh @ fresh.T - basis @ basis.T).norm() > 0.1
        # Two refreshes in one step: the second one is not on the schedule.
        assert int(optimizer.state[weight]["refresh_count"]) == 1
        assert int(optimizer.state[weight]["next_refresh"]) == 1000

    @pytest.mark.parametrize("proj_type", ["left", "right"])
    def test_oversampling_adds_eight_columns_to_the_formula(self, proj_type):
        shape = (30, 40)
        optimizer, weight = build(shape, proj_type, steps=0)
        total, _ = begin(optimizer, weight, gradients(shape, 2))
        kept = sum(tensor.nbytes for tensor in total.tensors())
        formula = core_sum_bytes(total.layout, is_sketched=True, estimates_norm=True)
        assert kept - formula == 8 * (30 + 40) * 8

    def test_a_zero_first_micro_batch_still_gets_a_subspace(self):
        optimizer, weight = build((7, 11), "left", steps=0)
        grads = [torch.zeros(7, 11, dtype=torch.float64), *gradients((7, 11), 2)]
        total, (matrix,) = begin(optimizer, weight, grads)
        expected = explicit_core(matrix.subspace(), sum(grads))
        torch.testing.assert_close(total.sums[0].core, expected, rtol=0, atol=1e-12)
        total.update_(1.0)
        assert int(optimizer.state[weight]["refresh_count"]) == 1
        assert weight.isfinite().all()


def smoothed(shape, proj_type, rho):
    weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    group = {"params": [weight], "rank": 3, "proj_type": proj_type, "basis_smoothing": rho}
    optimizer = GaLoreAdamW([group], update_proj_gap=1000)
    for grad in gradients(shape, 2, seed=100):
        weight.grad = grad
        optimizer.step()
    return optimizer, weight


class TestSmoothing:
    @pytest.mark.parametrize("proj_type", ["left", "right"])
    def test_the_sketch_of_ldadam_is_that_of_the_smoothed_matrix(self, proj_type):
        # Y = sum(G) Omega + rho / (1 - rho) P mean Omega spans the product of B = rho P mean + (1 - rho) sum(G).
        rho, shape = 0.6, (9, 12)
        optimizer, weight = smoothed(shape, proj_type, rho)
        grads = gradients(shape, 3)
        total, (matrix,) = begin(optimizer, weight, grads, due=True)
        subspace, state = matrix.subspace(), optimizer.state[weight]
        mean = state["exp_avg"] / (1 - 0.9 ** int(state["moment_step"]))
        smoothed_sum = rho * explicit_back(subspace, mean) + (1 - rho) * sum(grads)
        smoothed_sum = smoothed_sum if proj_type == "left" else smoothed_sum.T
        kept = total.sums[0]
        expected = smoothed_sum @ kept.sketch_matrices[proj_type] / (1 - rho)
        torch.testing.assert_close(kept.sketches[proj_type], expected, rtol=0, atol=1e-11)


class TestNorm:
    @pytest.mark.parametrize("proj_type", ["left", "right"])
    @pytest.mark.parametrize("shape", [(7, 11), (11, 7)])
    def test_the_probe_estimates_the_squared_norm_without_bias(self, proj_type, shape):
        optimizer, weight = build(shape, proj_type)
        grads = gradients(shape, 3)
        true = sum(grads).square().sum().item()
        estimates = []
        for seed in range(400):  # the step stays, so every seed has its own probe
            optimizer.param_groups[0]["seed"] = seed
            total, (matrix,) = begin(optimizer, weight, grads)
            estimates.append(total.squared_norm())
        estimates = torch.tensor(estimates, dtype=torch.float64)
        # 4 standard errors. Mutations: a probe that is not divided by its width gives 8 times the outside; one that
        # counts the core twice adds its share.
        error = estimates.std().item() / math.sqrt(len(estimates))
        assert abs(estimates.mean().item() - true) < 4 * error
        inside = explicit_core(matrix.subspace(), sum(grads)).square().sum().item()
        assert error < 0.02 * (true - inside) and (true - inside) > 0.2 * true
        # The inside is exact, so only the outside spreads: relative variance at most 2 / width.
        assert estimates.min() > inside
        assert estimates.std().item() < 1.2 * math.sqrt(2 / NORM_COLUMNS) * (true - inside)

    @pytest.mark.parametrize("proj_type", SIDES)
    def test_without_probe_it_is_the_norm_of_the_core(self, proj_type):
        optimizer, weight = build((7, 11), proj_type)
        grads = gradients((7, 11), 3)
        total, (matrix,) = begin(optimizer, weight, grads, estimates_norm=False)
        core = explicit_core(matrix.subspace(), sum(grads))
        assert total.squared_norm() == pytest.approx(core.square().sum().item(), rel=1e-12)

    def test_a_sum_inside_the_subspace_is_measured_exactly(self):
        optimizer, weight = build((7, 11), "left")
        basis = optimizer.state[weight]["basis_left"]
        grads = [basis @ (basis.T @ grad) for grad in gradients((7, 11), 3)]
        total, _ = begin(optimizer, weight, grads)
        assert total.squared_norm() == pytest.approx(sum(grads).square().sum().item(), rel=1e-12)

    def test_squared_norms_do_not_overflow_the_dtype_of_the_gradient(self):
        huge = torch.full((4, 4), 60000.0, dtype=torch.float16)
        (size,), _ = sizes_of([huge])
        assert size.squared_norm == pytest.approx(16 * 60000.0**2, rel=1e-6)
        weight = nn.Parameter(torch.zeros(3))
        optimizer = AdamW([weight])
        total = sum_of(optimizer.step_of(weight), optimizer.member(weight, {}), None, Summing())
        total.add(torch.ones(3))
        total.add(torch.ones(3))
        assert total.squared_norm() == pytest.approx(12, rel=1e-6)
        assert [tensor.tolist() for tensor in total.tensors()] == [[2.0, 2.0, 2.0]]


class TestBfloat16:
    @pytest.mark.parametrize("proj_type", SIDES)
    def test_gradients_are_summed_in_float32(self, proj_type):
        # Ten sums in bfloat16 would lose 2^-9 each; float32 leaves about 1e-6. The basis is stored in 32 bits here.
        optimizer, weight = build((7, 11), proj_type, dtype=torch.bfloat16, basis_bits=32)
        grads = [grad.bfloat16() for grad in gradients((7, 11), 10, sizes=(1.0, 30.0))]
        total, (matrix,) = begin(optimizer, weight, grads, due=True)
        assert all(tensor.dtype == torch.float32 for tensor in total.tensors())
        exact = sum(grad.double() for grad in grads)
        subspace = matrix.subspace()
        doubled = type(subspace)(*(None if b is None else b.double() for b in (subspace.left, subspace.right)))
        expected = explicit_core(doubled, exact)
        assert (total.sums[0].core - expected).norm() < 1e-5 * expected.norm()
        for side, sketch in total.sums[0].sketches.items():
            product = (exact if side == "left" else exact.T) @ total.sums[0].sketch_matrices[side].double()
            assert (sketch - product).norm() < 1e-5 * product.norm()


class TestSeveralMatrices:
    def test_stacked_blocks_are_summed_apart_and_an_unused_one_is_left_alone(self):
        shape = (3, 7, 11)
        optimizer, weight = build(shape, "left")
        before, step = weight.detach().clone(), optimizer.state[weight]["step"].clone()
        grads = gradients(shape, 4)
        for index, grad in enumerate(grads):
            grad[1] = 0
            if index != 2:
                grad[2] = 0
        total, matrices = begin(optimizer, weight, grads)
        assert sorted(total.sums) == [0, 2]
        for index in (0, 2):
            expected = explicit_core(matrices[index].subspace(), sum(grads)[index])
            torch.testing.assert_close(total.sums[index].core, expected, rtol=0, atol=1e-12)
        total.update_(1.0)
        assert torch.equal(weight[1], before[1])
        assert (optimizer.state[weight]["step"] - step).tolist() == [1, 0, 1]

    def test_bytes_of_stacked_blocks_are_those_of_all(self):
        optimizer, weight = build((3, 7, 11), "right")
        total, _ = begin(optimizer, weight, gradients((3, 7, 11), 2), due=True)
        kept = sum(tensor.nbytes for tensor in total.tensors())
        assert kept == core_sum_bytes(total.layout, is_sketched=True, estimates_norm=True)

    def test_a_sum_that_is_not_finite_is_left_out_and_counted(self):
        optimizer, weight = build((3, 7, 11), "left")
        before = weight.detach().clone()
        grads = gradients((3, 7, 11), 3)
        grads[1][2, 3, 4] = math.nan
        total, _ = begin(optimizer, weight, grads)
        assert total.update_(1.0) == 1
        assert torch.equal(weight[2], before[2])
        assert not torch.equal(weight[0], before[0]) and weight.isfinite().all()


@pytest.mark.parametrize("keeps", [True, False])
def test_min_memory_sums_on_the_side_that_it_settles_on(keeps):
    # The right side is the usual one, the left one cheaper. Where only the row space is fixed, the left one loses
    # the energy of the next batch.
    rows, columns, rank = 60, 40, 4
    generator = torch.Generator().manual_seed(0)
    fixed_left = torch.linalg.qr(torch.randn(rows, rank, generator=generator))[0]
    fixed_right = torch.linalg.qr(torch.randn(columns, rank, generator=generator))[0]

    def grad():
        left = fixed_left if keeps else torch.randn(rows, rank, generator=generator)
        return left @ torch.randn(rank, rank, generator=generator) @ fixed_right.T

    weight = nn.Parameter(torch.zeros(rows, columns))
    optimizer = GaLoreAdamW([{"params": [weight], "rank": rank, "proj_type": "min_memory"}], basis_bits=8)
    weight.grad = grad()
    optimizer.step()
    total, (matrix,) = begin(optimizer, weight, [grad() for _ in range(3)])
    assert total.layout.side == ("left" if keeps else "right")
    assert total.sums[0].core.shape == ((rank, columns) if keeps else (rows, rank))
    kept = sum(tensor.nbytes for tensor in total.tensors())
    # On a new side the state starts anew, so that a sketch is kept as at a first step.
    width = 8 if keeps else 0
    assert kept == core_sum_bytes(total.layout, is_sketched=keeps, estimates_norm=True) + 4 * width * (rows + columns)
    total.update_(1.0)
    assert optimizer.state_bytes() == sum(tensor.nbytes for tensor in optimizer.state[weight].values())
