import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from featherweight.errors import ConfigError, ShapeError
from featherweight.nn.low_rank_linear import (
    LowRankLinear,
    PivotedLinear,
    smallest_storage,
    storage_bytes,
    storage_numel,
)


def linear_of(rows, columns, bias=True, dtype=torch.float64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(columns, rows, bias=bias, dtype=dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 11), (11, 7), (13, 13), (1, 5), (5, 1)])
def test_factors_pivots_and_merged_layer_compute_the_same(shape, bias, generator):
    linear = linear_of(*shape, bias).eval()
    x = torch.randn(2, 3, shape[1], generator=generator, dtype=torch.float64)
    for rank in range(1, min(shape) + 1):
        factored = LowRankLinear.from_linear(linear, rank)
        pivoted = PivotedLinear.from_low_rank(factored)
        expected = F.linear(x, factored.weight, linear.bias)
        for layer in (factored, pivoted, factored.to_linear(), pivoted.to_linear()):
            torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-9)
            assert not layer.training
        assert (pivoted.bias is linear.bias) and (factored.bias is linear.bias)
        bias_numel = shape[0] if bias else 0
        count = sum(p.numel() for p in pivoted.parameters()) - bias_numel
        assert count == rank * (sum(shape) - rank) == storage_numel(*shape, rank, "pivoted")
        assert count < shape[0] * shape[1] or rank == min(shape)
        assert sum(p.numel() for p in factored.parameters()) - bias_numel == rank * sum(shape)
    torch.testing.assert_close(LowRankLinear.from_linear(linear, min(shape)).weight, linear.weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_pivots_in_narrow_dtypes(dtype, tolerance, generator):
    linear = linear_of(96, 64, dtype=dtype)
    x = torch.randn(50, 64, generator=generator, dtype=dtype)
    for rank in (1, 16, 63):
        exact = LowRankLinear.from_linear(copy.deepcopy(linear).double(), rank)
        pivoted = PivotedLinear.from_factors(linear, exact.U.weight.detach(), exact.V.weight.detach())
        expected = exact(x.double()).detach()
        assert pivoted.P.dtype == pivoted(x).dtype == dtype
        error = (pivoted(x).detach().double() - expected).norm() / expected.norm()
        assert float(error) <= tolerance


def test_gradients_of_the_factors_are_projections_of_the_gradient_of_the_matrix(generator):
    layer = LowRankLinear.from_linear(linear_of(6, 9), 4)
    x = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    weight = layer.weight.detach().requires_grad_()
    target = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    ((F.linear(x, weight, layer.bias) - target) ** 2).sum().backward()
    full = weight.grad
    layer.zero_grad()
    ((layer(x) - target) ** 2).sum().backward()
    torch.testing.assert_close(layer.U.weight.grad, full @ layer.V.weight.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.V.weight.grad, layer.U.weight.mT @ full, rtol=0, atol=1e-12)


def test_gradients_of_pivots_are_right(generator):
    layer = PivotedLinear.from_low_rank(LowRankLinear.from_linear(linear_of(6, 5), 3))
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)

    def run(x, rows, coefficients):
        return torch.func.functional_call(layer, {"P": rows, "C": coefficients}, (x,))

    assert torch.autograd.gradcheck(run, (x, layer.P, layer.C))


def test_conv1d_is_a_transposed_linear_layer(generator):
    conv = Conv1D(7, 5).double()
    torch.nn.init.normal_(conv.bias)
    linear = nn.Linear(5, 7, dtype=torch.float64)
    linear.weight.data, linear.bias.data = conv.weight.data.mT.contiguous(), conv.bias.data
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    layer, same = LowRankLinear.from_linear(conv, 3), LowRankLinear.from_linear(linear, 3)
    torch.testing.assert_close(layer(x), same(x), rtol=0, atol=1e-12)
    for low_rank in (layer, PivotedLinear.from_low_rank(layer)):
        merged = low_rank.to_linear()
        assert type(merged) is Conv1D and merged.weight.shape == conv.weight.shape
        torch.testing.assert_close(merged(x), layer(x), rtol=0, atol=1e-12)
    assert (layer.in_features, layer.out_features, layer.rank) == (5, 7, 3)


def test_truncation_is_the_factorization_of_the_lower_rank():
    linear = linear_of(12, 20)
    layer = LowRankLinear.from_linear(linear, 10)
    kept = list(layer.parameters())
    for rank in (10, 7, 1):
        layer.truncate_(rank)
        torch.testing.assert_close(layer.weight, LowRankLinear.from_linear(linear, rank).weight, rtol=0, atol=1e-10)
    assert layer.V.out_features == layer.U.in_features == 1
    assert all(one is other for one, other in zip(kept, layer.parameters(), strict=True))
    with pytest.raises(ShapeError, match="expected 1 <= rank <= 1"):
        layer.truncate_(2)


def test_rebalance_makes_trained_factors_truncatable_again(generator):
    layer = LowRankLinear.from_linear(linear_of(12, 20), 6)
    layer.U.weight.data += torch.randn(12, 6, generator=generator, dtype=torch.float64)
    product = layer.weight.detach()
    layer.rebalance_()
    torch.testing.assert_close(layer.weight, product, rtol=0, atol=1e-10)
    values = torch.linalg.svdvals(product)
    layer.truncate_(2)
    error = float((layer.weight.detach() - product).square().sum())
    assert error == pytest.approx(float(values[2:].square().sum()), rel=1e-9)


def test_a_state_dict_of_another_rank_resizes_the_layer(generator):
    saved = LowRankLinear.from_linear(linear_of(12, 20), 6)
    layer = LowRankLinear.from_linear(linear_of(12, 20, seed=1), 2)
    parameters = list(layer.parameters())
    layer.load_state_dict(saved.state_dict())
    x = torch.randn(3, 20, generator=generator, dtype=torch.float64)
    assert torch.equal(layer(x), saved(x)) and layer.rank == 6
    assert all(one is other for one, other in zip(parameters, layer.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict({"V.weight": torch.zeros(3, 19), "U.weight": torch.zeros(12, 3), "U.bias": layer.bias})


def test_a_base_is_added_and_merged(generator):
    linear = linear_of(12, 20, dtype=torch.float32)
    layer = LowRankLinear.from_linear(linear, 3)
    layer.base = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
    layer.U.weight.data.zero_()
    x = torch.randn(7, 20, generator=generator)
    assert torch.equal(layer(x), linear(x))  # bit by bit
    layer.U.weight.data.normal_(generator=generator)
    torch.testing.assert_close(layer.to_linear()(x), layer(x))
    torch.testing.assert_close(layer.weight, linear.weight + layer.U.weight @ layer.V.weight)


def test_an_activation_between_the_factors_cannot_be_merged(generator):
    layer = LowRankLinear(20, 12, 3, activation="silu")
    x = torch.randn(7, 20, generator=generator)
    torch.testing.assert_close(layer(x), layer.U(F.silu(layer.V(x))))
    for use in (layer.to_linear, layer.rebalance_, lambda: PivotedLinear.from_low_rank(layer)):
        with pytest.raises(ConfigError, match="activation"):
            use()


def test_mode_dtype_and_trainability_are_kept():
    linear = linear_of(12, 20, dtype=torch.bfloat16).eval()
    linear.weight.requires_grad_(False)
    layer = LowRankLinear.from_linear(linear, 3)
    for one in (layer, PivotedLinear.from_low_rank(layer)):
        assert not one.training
        assert all(p.dtype == torch.bfloat16 for p in one.parameters())
        assert {n for n, p in one.named_parameters() if p.requires_grad} <= {"U.bias", "bias"}
    assert not layer.U.training and layer.weight.dtype == torch.bfloat16


def test_the_smallest_storage_is_never_larger_than_the_matrix():
    for rows, columns in [(64, 64), (3, 50), (50, 3), (1, 1), (7, 7)]:
        for rank in range(1, min(rows, columns) + 1):
            for itemsize in (1, 2, 4):
                storage = smallest_storage(rows, columns, rank, itemsize)
                assert storage_bytes(rows, columns, rank, storage, itemsize) <= rows * columns * itemsize
    # Where two factors pay: below 50 % of a square, 72.9 % of 4096 x 11008, 80 % of 1024 x 4096.
    for rows, columns, even in [(4096, 4096, 2048), (4096, 11008, 2985), (1024, 4096, 819), (128, 352, 93)]:
        assert storage_numel(rows, columns, even, "factored") <= rows * columns
        assert storage_numel(rows, columns, even + 1, "factored") > rows * columns


def test_wrong_ranks_are_refused():
    with pytest.raises(ShapeError, match="rank=13"):
        LowRankLinear.from_linear(linear_of(12, 20), 13)
    with pytest.raises(ConfigError, match="rank=0"):
        LowRankLinear(3, 4, 0)
    with pytest.raises(ConfigError, match="rank=5"):
        PivotedLinear(3, 4, 5)
    with pytest.raises(ConfigError, match="silu, gelu"):
        LowRankLinear(3, 4, 2, activation="relu6")
