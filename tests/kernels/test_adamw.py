"""AdamW by the kernel has the codes, moments and weights of its twin.

On a CPU the twin takes the inverse of an inverse root, which may be off by 1.5 units in the last place; on CUDA its
root rounds to nearest, as the kernel does. To compare all bits, the twin gets the root that rounds to nearest.
"""

import pytest
import torch

pytest.importorskip("triton", minversion="3.9")  # interpreters before round a fused sum twice

from featherweight import kernels
from featherweight.errors import ShapeError
from featherweight.kernels import adamw as fused
from featherweight.optim.policies import rules
from featherweight.optim.policies.rules import AdamWRule
from featherweight.optim.step.weight_update import Rounding, add_direction_
from featherweight.quant.rounding import key_pairs
from featherweight.quant.storage import DenseStorage, DynamicStorage

if not kernels.is_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1: test_interpreter.py runs this file", allow_module_level=True)

SIZES = [1, 255, 256, 257, 1024, 1025, 4999]
IN_CODES = [DynamicStorage(8, signed=True), DynamicStorage(8, signed=False)]
DENSE = [DenseStorage(), DenseStorage()]
ALPHA, BETA = -0.01, 0.99


@pytest.fixture
def exact_root(monkeypatch):
    """The twin's root, rounded to nearest: a root in float64 has more than twice the bits."""
    monkeypatch.setattr(rules, "root", lambda values: values.double().sqrt().float())


def gradients(count, generator, steps=3):
    """Gradients of all magnitudes, with zeros."""
    for _ in range(steps):
        grad = torch.randn(count, generator=generator)
        grad *= 10.0 ** (torch.randn(count, generator=generator) * 3 - 4)
        grad[::3] = 0
        yield grad


def arguments(storages, parts):
    """The stored moments as the kernel takes them."""
    if storages is DENSE:
        return tuple(part[""] for part in parts)
    tables = [storage.table for storage in storages]
    return tuple(
        fused.Codes(part["codes"], part["block_scale"], table.values, table.first_code, table.next_boundary)
        for part, table in zip(parts, tables, strict=True)
    )


def twin_direction(storages, parts, grad, step, group):
    """Read, rule, write."""
    moments = {
        name: storage.read(part, grad.shape)
        for name, storage, part in zip(("exp_avg", "exp_avg_sq"), storages, parts, strict=True)
    }
    direction = AdamWRule().direction(grad.float(), moments, step, group)
    for storage, part, values in zip(storages, parts, moments.values(), strict=True):
        storage.write_(part, values)
    return direction


def assert_equal(ours, theirs):
    """Bit by bit, where a NaN is a NaN."""
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours[~ours.isnan()], theirs[~theirs.isnan()])


def assert_same_state(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        for name in one:
            assert_equal(one[name], other[name])


def run(storages, grads, group, weight=None):
    """Make the steps by twin and kernel, comparing all bits after each."""
    count = len(grads[0])
    twin, kernel = ([s.zeros((count,), device="cpu") for s in storages] for _ in range(2))
    written = None if weight is None else (weight.clone(), weight.clone())
    for step, grad in enumerate(grads, 1):
        options = fused.Options(*group["betas"], group["eps"], step, group["eps_mode"] == "official")
        direction = twin_direction(storages, twin, grad, step, group)
        if written is None:
            assert_equal(direction, fused.direction(grad, arguments(storages, kernel), options))
        else:
            add_direction_(written[0], direction, alpha=ALPHA, beta=BETA, rounding=Rounding(1, 2, 3), offset=0)
            write = fused.Write(written[1], ALPHA, BETA, key_pairs(1, 2, 3))
            fused.step_(grad, arguments(storages, kernel), options, write)
            assert_equal(*written)
        assert_same_state(twin, kernel)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("storages", [IN_CODES, DENSE], ids=["codes", "dense"])
@pytest.mark.parametrize("eps_mode", ["torch", "official"])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.3, 0.95), (0.0, 0.5)])
def test_codes_moments_and_direction_are_those_of_the_twin(count, storages, eps_mode, betas, generator, exact_root):
    run(storages, list(gradients(count, generator)), {"betas": betas, "eps": 1e-8, "eps_mode": eps_mode})


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("storages", [IN_CODES, DENSE], ids=["codes", "dense"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_those_of_the_twin(count, storages, dtype, generator, exact_root):
    weight = torch.randn(count, generator=generator).to(dtype)
    grads = [grad.to(dtype) for grad in gradients(count, generator)]
    run(storages, grads, {"betas": (0.9, 0.999), "eps": 1e-8, "eps_mode": "torch"}, weight)


@pytest.mark.parametrize("storages", [IN_CODES, DENSE], ids=["codes", "dense"])
def test_gradients_that_are_not_finite_leave_the_same_marks(storages, generator, exact_root):
    grads = list(gradients(1500, generator))
    grads[1][700], grads[1][3], grads[2][1400] = torch.nan, torch.inf, 3e38
    run(storages, grads, {"betas": (0.9, 0.999), "eps": 1e-8, "eps_mode": "torch"})


def test_a_second_moment_that_is_positive_stays_positive():
    parts = [s.zeros((256,), device="cpu") for s in IN_CODES]
    grad = torch.full((256,), 1e-6)
    grad[0] = 1.0
    fused.direction(grad, arguments(IN_CODES, parts), fused.Options(0.9, 0.999, 1e-8, 1))
    assert bool((IN_CODES[1].read(parts[1], (256,)) > 0).all())


@pytest.mark.parametrize("storages", [IN_CODES, DENSE], ids=["codes", "dense"])
def test_beside_the_root_of_a_cpu_only_the_direction_moves_and_by_its_last_bits(storages, generator):
    twin, kernel = ([s.zeros((4999,), device="cpu") for s in storages] for _ in range(2))
    group = {"betas": (0.9, 0.999), "eps": 1e-8, "eps_mode": "torch"}
    for step, grad in enumerate(gradients(4999, generator), 1):
        theirs = twin_direction(storages, twin, grad, step, group)
        ours = fused.direction(grad, arguments(storages, kernel), fused.Options(0.9, 0.999, 1e-8, step))
        # A root off by 1.5 units of 2^-23 and half a unit in ours, then four operations, each of which may round
        # another way by a unit.
        assert bool(((ours - theirs).abs() <= 6 * 2.0**-23 * theirs.abs()).all())
        assert_same_state(twin, kernel)


def test_a_gradient_with_strides_counts_as_its_values(generator, exact_root):
    wide = torch.randn(600, generator=generator)
    run(IN_CODES, [wide[::2], wide[:1].expand(300)], {"betas": (0.9, 0.999), "eps": 1e-8, "eps_mode": "torch"})


@pytest.mark.parametrize("wrong", ["exp_avg", "exp_avg_sq", "grad"])
def test_tensors_of_another_size_are_refused_before_the_kernel(wrong):
    sizes = {"grad": torch.zeros(40), "exp_avg": torch.zeros(40), "exp_avg_sq": torch.zeros(40)}
    sizes[wrong] = torch.zeros(39)
    moments = sizes["exp_avg"], sizes["exp_avg_sq"]
    write = fused.Write(torch.zeros(40), 1.0, 1.0, lambda span: (1, 2))
    with pytest.raises(ShapeError, match=wrong):
        fused.step_(sizes["grad"], moments, fused.Options(0.9, 0.9, 1e-8, 1), write)
    codes = fused.Codes(*(torch.zeros(n, dtype=d) for n, d in CODES))
    with pytest.raises(ShapeError, match="block_scale"):
        fused.direction(torch.zeros(600), (codes, codes), fused.Options(0.9, 0.9, 1e-8, 1))


CODES = [(600, torch.uint8), (2, torch.float32), (256, torch.float32), (1 << 16, torch.uint8), (1 << 16, torch.float32)]
