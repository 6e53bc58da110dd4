"""How a step writes int8 weights: tile by tile, in any tiling the same bits, without large temporaries."""

import pytest
import torch
from torch import nn

from featherweight.memory.tracker import StorageTracker
from featherweight.nn.int8_linear import Int8Linear
from featherweight.optim import AdamW, GaLoreAdamW
from featherweight.quant.int8_weight import Int8Weight

TILES = (
    "optim.step.weight_update.TILE_ELEMENTS",
    "optim.step.weight_update.SLICE_ELEMENTS_CPU",
    "quant.int8_weight._TILE_ELEMENTS_CPU",
    "linalg.subspace.TILE_ELEMENTS",
)


def shrink_tiles(monkeypatch, elements):
    for name in TILES:
        monkeypatch.setattr(f"featherweight.{name}", elements)


def made(rows, columns, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    layer = Int8Linear(columns, rows, bias=False, dtype=dtype)
    layer.weight.grad = torch.randn(rows, columns).to(dtype)
    return layer


def steps(layer, optimizer, count=3):
    for _ in range(count):
        optimizer.step()
    weight = layer.int8_weight()
    return weight.codes.clone(), weight.block_scale.clone()


@pytest.mark.parametrize("state_bits", [32, 16, 8, 4])
@pytest.mark.parametrize("shape", [(1031, 257), (64, 512), (3, 5000), (700, 1)])
def test_a_full_rank_step_gives_the_same_bits_in_any_tiling(state_bits, shape, monkeypatch):
    results = []
    for elements in (1 << 20, 1 << 12):
        shrink_tiles(monkeypatch, elements)
        layer = made(*shape)
        results.append(steps(layer, AdamW([layer.weight], lr=1e-2, weight_decay=0.1, state_bits=state_bits)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("proj_type", ["left", "right"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_projected_step_draws_the_same_random_numbers_in_any_tiling(proj_type, blocks, monkeypatch):
    results = []
    for elements in (1 << 20, 1 << 12):
        shrink_tiles(monkeypatch, elements)
        layer = made(300, 520)
        group = {"params": [("fused", layer.weight)], "split": {"fused": blocks}} if blocks > 1 else {}
        group = group or {"params": [layer.weight]}
        optimizer = GaLoreAdamW([{**group, "rank": 8, "proj_type": proj_type}], lr=1e-2)
        results.append(steps(layer, optimizer, 1)[0])
    # Products of other tiles differ by roundings of float32, which turn one draw in some 10^5; other random numbers
    # would change most codes.
    assert float((results[0] == results[1]).double().mean()) > 0.999


def test_row_blocks_draw_their_own_random_numbers():
    layer = made(512, 256)
    layer.int8_weight().write_(torch.ones(512, 256))
    layer.weight.grad = torch.randn(256, 256).repeat(2, 1)
    group = {"params": [("fused", layer.weight)], "split": {"fused": 2}, "rank": 8, "basis_method": "svd"}
    codes, _ = steps(layer, GaLoreAdamW([group], lr=1e-2), 1)
    upper, lower = codes.double().split(256)
    agreement = float((upper == lower).double().mean())
    assert 0.1 < agreement < 0.97, agreement  # the same direction, rounded apart; measured 0.92


def test_a_full_rank_step_is_that_of_adamw_within_a_code_in_every_slice(monkeypatch):
    # Slices of whole blocks of moments and whole rows: a wrong offset of either would move other elements.
    shrink_tiles(monkeypatch, 1 << 12)
    layer = made(1031, 257)
    plain = nn.Parameter(layer.int8_weight().dequantize())
    plain.grad = layer.weight.grad.clone()
    before = layer.weight_scale.clone()
    for parameter in (layer.weight, plain):
        AdamW([parameter], lr=1e-2, weight_decay=0.1, state_bits=8).step()
    weight = layer.int8_weight()
    scale = torch.maximum(before, weight.block_scale).repeat_interleave(256, 1)[:, :257]  # some groups shrink
    assert bool(((weight.dequantize() - plain.detach()).abs() <= scale * 1.001).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("proj_type", ["left", "right", "full", None])
def test_a_step_makes_no_float_temporary_of_the_weights_size(dtype, proj_type, monkeypatch):
    shrink_tiles(monkeypatch, 1 << 14)
    rows, columns = 1024, 1536
    layer = made(rows, columns, dtype)
    if proj_type is None:
        optimizer = AdamW([layer.weight], lr=1e-3)
    else:
        optimizer = GaLoreAdamW([layer.weight], lr=1e-3, rank=16, update_proj_gap=100, proj_type=proj_type)
    optimizer.step()
    with StorageTracker(layer, optimizer) as tracker:
        before = tracker.live_bytes
        optimizer.step()
    assert tracker.live_bytes == before
    # A tile is 1 % of the weight, and some ten of them live at once. A float copy gives 1.
    assert tracker.peak_bytes - before < 0.3 * 4 * rows * columns


def test_a_gradient_that_is_not_finite_leaves_every_code():
    layer = made(64, 300)
    before = steps(layer, AdamW([layer.weight], lr=1e-2), count=0)
    layer.weight.grad[3, 7] = float("nan")
    optimizer = AdamW([layer.weight], lr=1e-2)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert torch.equal(layer.weight_codes, before[0]) and torch.equal(layer.weight_scale, before[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_handles_of_other_dtypes_are_trained_too(dtype):
    layer = made(90, 300, dtype)
    before = layer.int8_weight().dequantize()
    GaLoreAdamW([layer.weight], lr=1e-2, rank=8).step()
    assert bool(layer.int8_weight().dequantize().isfinite().all())
    assert not torch.equal(before, layer.int8_weight().dequantize())


def test_one_by_one_weights_do_not_reach_torchs_kernel():
    # The only handle that is contiguous: the fused kernel would write into its NaN.
    layer = made(1, 1)
    before = layer.int8_weight().dequantize()
    optimizer = AdamW([layer.weight], lr=0.1)
    for _ in range(5):
        optimizer.step()
    assert bool(layer.weight.isnan().all())
    assert float(layer.int8_weight().dequantize() - before) == pytest.approx(
        -0.5 * float(layer.weight.grad.sign()), rel=0.1
    )
    assert isinstance(layer.int8_weight(), Int8Weight)
