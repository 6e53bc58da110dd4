"""On a card, kernels give the bits that their twins give on a CPU."""

import pytest
import torch

pytest.importorskip("triton")

from featherweight import kernels
from featherweight.optim.step.weight_update import Rounding, add_direction_
from featherweight.quant.int8_update import add_to_int8_
from featherweight.quant.int8_weight import Int8Weight
from featherweight.quant.rounding import stochastic_round_
from featherweight.quant.storage import DynamicStorage

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def switched_on():
    """Kernels on the card; the twins run under `kernels.use("torch")` on the CPU."""
    with kernels.use("triton"):
        yield


def test_rounding_has_the_bits_of_a_cpu(generator):
    values = torch.randint(-(2**31), 2**31, (300_001,), generator=generator).to(torch.int32).view(torch.float32)
    keys = {"seed": 1, "key": 2, "step": 3, "offset": 2**24 - 1001}
    kernel = stochastic_round_(torch.empty(values.shape, device=DEVICE).bfloat16(), values.to(DEVICE), **keys)
    with kernels.use("torch"):
        twin = stochastic_round_(torch.empty(values.shape).bfloat16(), values, **keys)
    assert torch.equal(kernel.cpu().view(torch.int16), twin.view(torch.int16))


def test_an_update_of_a_bfloat16_weight_has_the_bits_of_a_cpu(generator):
    weight = torch.randn(300_001, generator=generator).bfloat16()
    direction = torch.randn(300_001, generator=generator)
    direction[::2] = weight[::2].float() * 0.999 / 1e-3  # shows whether the sum is fused
    written, how = weight.to(DEVICE), {"alpha": -1e-3, "beta": 0.999, "rounding": Rounding(1, 2, 3), "offset": 1}
    add_direction_(written, direction.to(DEVICE), **how)
    with kernels.use("torch"):
        add_direction_(weight, direction, **how)
    assert torch.equal(written.cpu().view(torch.int16), weight.view(torch.int16))


@pytest.mark.parametrize("size", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("group_size", [64, 256, 300, 4096])
def test_an_update_of_an_int8_weight_has_the_bits_of_a_cpu(size, group_size, generator):
    twin = Int8Weight.quantize(torch.randn(100, 1000, generator=generator), group_size)
    twin.codes[::3].div_(3, rounding_mode="trunc")
    kernel = Int8Weight(twin.codes.to(DEVICE), twin.block_scale.to(DEVICE), group_size)
    update = torch.randn(100, 1000, generator=generator) * size * twin.block_scale.mean()
    update[5, 7] = torch.nan
    how = {"beta": 0.999, "seed": 1, "key": 2, "step": 3, "offset": 2**24 - 50_001}
    add_to_int8_(kernel, update.to(DEVICE), **how)
    with kernels.use("torch"):
        add_to_int8_(twin, update, **how)
    assert torch.equal(kernel.codes.cpu(), twin.codes)
    assert torch.equal(kernel.block_scale.cpu().nan_to_num(-1.0), twin.block_scale.nan_to_num(-1.0))


def test_moments_in_codes_have_the_bits_of_a_cpu(generator):
    storages, shape = [DynamicStorage(8, signed=True), DynamicStorage(8, signed=False)], (100_001,)
    twin, kernel = ([storage.zeros(shape, device=place) for storage in storages] for place in ("cpu", DEVICE))
    for step in (1, 2, 3):
        grad = torch.randn(shape, generator=generator)
        tables = [storage.table.on(torch.device(DEVICE)) for storage in storages]
        moments = tuple(
            kernels.adamw.Codes(part["codes"], part["block_scale"], table.values, table.first_code, table.next_boundary)
            for part, table in zip(kernel, tables, strict=True)
        )
        kernels.adamw.direction(grad.to(DEVICE), moments, kernels.adamw.Options(0.9, 0.999, 1e-8, step))
        exp_avg, exp_avg_sq = (s.read(part, shape) for s, part in zip(storages, twin, strict=True))
        exp_avg.lerp_(grad, 1 - 0.9)
        exp_avg_sq.mul_(0.999).addcmul_(grad, grad, value=1 - 0.999)
        for storage, part, values in zip(storages, twin, (exp_avg, exp_avg_sq), strict=True):
            storage.write_(part, values)
        for one, other in zip(twin, kernel, strict=True):
            assert all(torch.equal(one[name], other[name].cpu()) for name in one)
