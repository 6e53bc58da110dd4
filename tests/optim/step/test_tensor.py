"""The step of tensors: formulas, refreshes, edge cases, sums."""

import math

import pytest
import torch
from tensor_steps import KINDS, SHAPE, Product, build, gradients, train, weight_of
from torch import nn

from featherweight.linalg.tucker import squared_norm
from featherweight.linalg.tucker_fit import fit_tucker
from featherweight.optim import AdamW, TensorGaLoreAdamW, layerwise
from featherweight.optim.step.tensor import ProjectedTensor


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_full_rank_is_adamw_bit_for_bit(kind, dtype):
    one, two = weight_of(dtype=dtype), weight_of(dtype=dtype)
    grads = gradients(20, dtype=dtype)
    train(build(one, rank=1.0, proj_type=kind, weight_decay=0.1), one, grads)
    train(AdamW([two], lr=1e-2, weight_decay=0.1), two, grads)
    assert torch.equal(one, two)


def test_pairs_at_full_rank_are_adamw_of_torch():
    one, two = weight_of(), weight_of()
    grads = gradients(20)
    train(build(one, rank=1.0, complex_mode="real_pair", weight_decay=0.1), one, grads)
    train(torch.optim.AdamW([two], lr=1e-2, weight_decay=0.1), two, grads)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_a_step_by_modulus_has_modulus_one_and_by_pairs_the_root_of_two():
    for mode, expected in (("modulus", 1.0), ("real_pair", math.sqrt(2))):
        weight = nn.Parameter(torch.zeros(4, 3, 3, dtype=torch.complex128))
        grad = torch.full((4, 3, 3), 1 + 1j, dtype=torch.complex128)
        train(build(weight, rank=1.0, lr=1.0, eps=0.0, complex_mode=mode), weight, [grad])
        assert float(weight.abs().mean().detach()) == pytest.approx(expected, rel=1e-12)


# ---- the formula


@pytest.mark.parametrize("order", ["before", "after"])
def test_update_is_the_formula_written_in_full(order):
    weight, grads = weight_of(), gradients(6)
    expected, m, v, subspace = weight.detach().clone(), 0.0, 0.0, None
    optimizer = build(weight, rank=(3, 3, 2, 3), scale=2.0, weight_decay=0.1, moment_policy="keep", decay_order=order)
    train(optimizer, weight, grads)
    for t, grad in enumerate(grads):
        if t % 4 == 0:
            subspace = fit_tucker(grad, (3, 3, 2, 3)).subspace
        factors = [
            torch.eye(n, dtype=grad.dtype) if u is None else u for n, u in zip(SHAPE, subspace.factors, strict=True)
        ]
        core = torch.einsum("abcd,ai,bj,ck,dl->ijkl", grad, *(u.conj() for u in factors))
        m, v = 0.9 * m + 0.1 * core, 0.999 * v + 0.001 * core.abs() ** 2
        direction = (m / (1 - 0.9 ** (t + 1))) / ((v / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
        step = 2.0 * 1e-2 * torch.einsum("ijkl,ai,bj,ck,dl->abcd", direction, *factors)
        kept = 1 - 1e-2 * 0.1
        expected = expected * kept - step if order == "before" else (expected - step) * kept
    # 1e-10: float64 sums in another order. A transpose without conjugation fails at the first digit.
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_sgd_without_momentum_moves_along_the_projected_gradient(kind):
    weight, (grad,) = weight_of(), gradients(1)
    before = weight.detach().clone()
    optimizer = build(weight, rule="sgd", betas=(0.0, 0.0), proj_type=kind, lr=0.5)
    train(optimizer, weight, [grad])
    layout = optimizer.layouts[weight]
    subspace = ProjectedTensor(layout, optimizer.state[weight], optimizer.param_groups[0], (0, 1)).subspace()
    view = grad.reshape(layout.plan.shape)
    projected = subspace.project_back(subspace.project(view)).reshape(SHAPE)
    assert 0.1 < squared_norm(projected) / squared_norm(grad) < 0.999
    torch.testing.assert_close(before - weight.detach(), 0.5 * projected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_turning_all_gradients_by_a_phase_turns_the_update(kind):
    turn = torch.exp(torch.tensor(0.9j, dtype=torch.complex128))
    updates = []
    for factor in (1, turn):
        weight = weight_of()
        before = weight.detach().clone()
        train(build(weight, proj_type=kind), weight, [factor * grad for grad in gradients(9)])
        updates.append(weight.detach() - before)
    torch.testing.assert_close(updates[0] * turn, updates[1], rtol=1e-9, atol=1e-9)


def test_auto_scale_gives_the_size_of_a_full_step():
    sizes = []
    for rank in (1.0, 0.25, 0.05):
        weight = nn.Parameter(torch.zeros(12, 12, 8, 6, dtype=torch.complex128))
        train(build(weight, rank=rank, lr=1.0, scale="auto"), weight, gradients(1, (12, 12, 8, 6)))
        sizes.append(squared_norm(weight.detach()))
    # The first step has modulus one in each coordinate of the core, so that its norm is known exactly (up to eps).
    assert sizes == pytest.approx([sizes[0]] * 3, rel=1e-6)


# ---- refreshes and moments


@pytest.mark.parametrize(("stagger", "expected"), [(False, [0, 4, 8]), (True, [0, 3, 7])])
def test_refreshes_happen_when_they_are_due(monkeypatch, stagger, expected):
    weights = [weight_of(), weight_of()]
    optimizer = TensorGaLoreAdamW(weights, lr=1e-2, rank=0.3, min_numel=1, update_proj_gap=4, stagger=stagger)
    steps: dict[int, list[int]] = {0: [], 1: []}
    real = ProjectedTensor._fit

    def counting(self, numbers, old, step):
        steps[self.layout.index].append(step)
        return real(self, numbers, old, step)

    monkeypatch.setattr(ProjectedTensor, "_fit", counting)
    for grad in gradients(10):
        for weight in weights:
            weight.grad = grad.clone()
        optimizer.step()
    assert steps == {0: [0, 4, 8], 1: [0, 2, 6] if stagger else expected}


def test_a_refresh_is_left_out_while_the_captured_energy_stays():
    weight, (grad,) = weight_of(), gradients(1)
    optimizer = build(weight, skip_tol=0.01, update_proj_gap=2)
    kept = []
    for factor in (1, 2, 3, 4, 5):
        train(optimizer, weight, [factor * grad])
        kept.append(optimizer.state[weight]["basis_0"].clone())
    assert all(torch.equal(kept[0], each) for each in kept)
    train(optimizer, weight, [grad.flip(0), grad.flip(0)])
    assert not torch.equal(kept[0], optimizer.state[weight]["basis_0"])


def test_axes_of_one_strides_and_real_convolutions():
    for shape, dtype in (((8, 8, 2), torch.float32), ((1, 7, 5, 3), torch.complex64), ((16, 16, 3, 3), torch.float32)):
        weight, twin = weight_of(shape, dtype), weight_of(shape, dtype)
        order = tuple(reversed(range(len(shape))))
        grads = gradients(6, shape, dtype)
        strided = [grad.permute(order).contiguous().permute(order) for grad in grads]
        train(build(weight), weight, grads)
        train(build(twin), twin, strided)
        torch.testing.assert_close(weight, twin, rtol=1e-5, atol=1e-5)
    image = weight_of((16, 16, 3, 3), torch.float32)
    channels_last = nn.Parameter(image.detach().to(memory_format=torch.channels_last))
    for each in (image, channels_last):
        train(build(each), each, gradients(6, (16, 16, 3, 3), torch.float32))
    torch.testing.assert_close(image.detach(), channels_last.detach().contiguous(), rtol=1e-5, atol=1e-5)


def test_conjugated_views_are_gradients_too():
    weight, twin = weight_of(), weight_of()
    (grad,) = gradients(1)
    for each, kind in ((weight, grad), (twin, grad.conj().resolve_conj().conj())):
        optimizer = build(each)
        each.grad = kind
        optimizer.step()
    assert torch.equal(weight, twin)


def test_zero_gradients_change_nothing_and_leave_the_refresh_due():
    weight = weight_of()
    before = weight.detach().clone()
    optimizer = build(weight)
    train(optimizer, weight, [torch.zeros(SHAPE, dtype=torch.complex128)])
    assert torch.equal(weight, before) and int(optimizer.state[weight]["refresh_count"]) == 0
    train(optimizer, weight, gradients(1))
    assert not torch.equal(weight, before) and int(optimizer.state[weight]["refresh_count"]) == 1


def test_a_gradient_that_is_not_finite_is_left_out_and_counted():
    weight = weight_of()
    optimizer = build(weight)
    train(optimizer, weight, gradients(2))
    before, state = weight.detach().clone(), {k: v.clone() for k, v in optimizer.state[weight].items()}
    bad = gradients(1)[0]
    bad[0, 0, 0, 0] = complex(0, math.inf)
    train(optimizer, weight, [bad])
    assert optimizer.skipped_steps == 1 and torch.equal(weight, before)
    assert all(torch.equal(value, state[key]) for key, value in optimizer.state[weight].items())


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_sixteen_bit_weights_follow_the_wide_ones():
    shape = (12, 12, 6, 4)
    wide = weight_of(shape, torch.complex64)
    half = nn.Parameter(wide.detach().to(torch.complex32))
    real, narrow = weight_of(shape, torch.float32), nn.Parameter(weight_of(shape, torch.float32).detach().bfloat16())
    for each, grads in (
        (wide, gradients(20, shape, torch.complex64)),
        (half, [g.to(torch.complex32) for g in gradients(20, shape, torch.complex64)]),
        (real, gradients(20, shape, torch.float32)),
        (narrow, [g.bfloat16() for g in gradients(20, shape, torch.float32)]),
    ):
        train(build(each, lr=1e-3), each, grads)
    for one, two, unit in ((torch.view_as_real(wide), torch.view_as_real(half), 2**-11), (real, narrow, 2**-8)):
        # The weights are about 1; 20 roundings, and gradients that are rounded, too.
        assert float((one - two.float()).abs().mean().detach()) < 3 * unit
    assert narrow.dtype == torch.bfloat16 and half.dtype == torch.complex32


@pytest.mark.parametrize("options", [{}, {"sparse_ratio": 0.1}, {"proj_type": "slices"}])
def test_sums_of_cores_are_the_core_of_the_sum(options):
    weight, grads = weight_of(), gradients(3)
    optimizer = build(weight, **options)
    train(optimizer, weight, grads[:1])
    tensor = ProjectedTensor(optimizer.layouts[weight], optimizer.state[weight], optimizer.param_groups[0], (0, 1))
    parts = [tensor.project(grad) for grad in grads]
    whole = tensor.project(sum(grads[1:], grads[0]))
    for index in range(2 if "sparse_ratio" in options else 1):
        torch.testing.assert_close(sum(p[index] for p in parts), whole[index], rtol=1e-12, atol=1e-12)


def test_accumulation_in_the_core_equals_a_large_batch_between_refreshes():
    inputs = [torch.randn(SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(i)) for i in range(13)]
    one, two = Product(), Product()
    options = {"update_proj_gap": 100}
    large, small = build(one.weight, **options), build(two.weight, **options)
    one(inputs[0]).backward()
    two(inputs[0]).backward()
    large.step()
    small.step()  # the common first basis
    large.zero_grad()
    small.zero_grad()
    with layerwise(two, small, accumulation_steps=3):
        for start in range(1, 13, 3):
            for x in inputs[start : start + 3]:
                two(x).backward()
                (one(x)).backward()
            assert two.weight.grad is None
            large.step()
            large.zero_grad()
    torch.testing.assert_close(one.weight, two.weight, rtol=1e-10, atol=1e-10)


def test_layerwise_steps_are_those_of_the_loop_bit_for_bit():
    one, two = Product(), Product()
    plain, inside = build(one.weight), build(two.weight)
    with layerwise(two, inside) as handle:
        for seed in range(9):
            x = torch.randn(SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))
            one(x).backward()
            plain.step()
            plain.zero_grad()
            two(x).backward()
            assert two.weight.grad is None
        assert handle.grad_norm > 0
    assert torch.equal(one.weight, two.weight)


# ---- names of others
