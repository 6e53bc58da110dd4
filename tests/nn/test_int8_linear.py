"""Layers with int8 weights: the numbers of a float layer, no float copy, and every way to move, copy and save them."""

import copy

import pytest
import torch
from int8_layers import layers
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from featherweight.errors import ConfigError, NumericsError
from featherweight.memory.tracker import StorageTracker
from featherweight.nn.int8_linear import Int8Conv1D, Int8Embedding, Int8Linear, to_float_, to_int8_
from featherweight.quant.int8_weight import int8_weight_of
from featherweight.selection import select_matrices


def float_twin(layer):
    """An ordinary layer with the dequantised weight."""
    return to_float_(copy.deepcopy(layer))


def run(layer, x):
    """Result, and the gradients of input, weight and bias."""
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    y = layer(x)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))
    bias = getattr(layer, "bias", None)
    return [y.detach(), x.grad, layer.weight.grad, None if bias is None else bias.grad]


def assert_close(found, expected, rtol):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape
            assert float((a.double() - b.double()).norm()) <= rtol * float(b.double().norm())


@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (7, 1), (13, 300), (64, 256), (31, 600)])
@pytest.mark.parametrize("leading", [(5,), (2, 3), (1, 1, 1), (0,)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_a_float_layer_with_the_same_values_does(shape, leading, bias):
    torch.manual_seed(0)
    layer = Int8Linear(shape[1], shape[0], bias=bias, dtype=torch.float64)
    x = torch.randn(*leading, shape[1], dtype=torch.float64)
    # float64 holds the values exactly; what differs is the order of sums.
    assert_close(run(layer, x), run(float_twin(layer), x), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_in_the_dtype_of_the_activations(dtype):
    torch.manual_seed(0)
    layer, x = Int8Linear(300, 40, dtype=dtype), torch.randn(6, 300, dtype=dtype)
    # Same operands and kernels: bit for bit.
    for a, b in zip(run(layer, x), run(float_twin(layer), x), strict=True):
        assert torch.equal(a, b)


def test_under_autocast_it_computes_as_a_float_layer_does_there():
    torch.manual_seed(0)
    layer, x = Int8Linear(300, 40), torch.randn(6, 300)

    def cast(module):
        def call(x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return module(x)

        call.weight, call.bias = module.weight, module.bias
        return call

    twin = float_twin(layer)
    found, expected = run(cast(layer), x), run(cast(twin), x)
    assert found[0].dtype == torch.bfloat16 and found[2].dtype == torch.float32
    assert_close(found, expected, 1e-2)  # sums in bfloat16
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("shape", [(1, 1), (300, 17), (5, 512)])
def test_the_transposed_layer_of_gpt2_is_the_same(shape):
    torch.manual_seed(0)
    layer = Conv1D(shape[1], shape[0]).double()
    x = torch.randn(4, shape[0], dtype=torch.float64)
    to_int8_(layer)
    assert type(layer) is Int8Conv1D
    twin = float_twin(layer)
    assert type(twin) is Conv1D
    assert_close(run(layer, x), run(twin, x), 1e-13)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 3}, {"scale_grad_by_freq": True}])
def test_an_embedding_reads_its_rows_and_leaves_a_dense_gradient(options):
    torch.manual_seed(0)
    layer = nn.Embedding(11, 300, dtype=torch.float64, **options)
    to_int8_(layer)
    assert type(layer) is Int8Embedding
    index = torch.tensor([[1, 3, 3], [10, 0, 1]])
    assert_close(run(layer, index), run(float_twin(layer), index), 1e-14)
    assert not layer.weight.grad.is_sparse


def test_an_embedding_dequantises_only_the_rows_that_it_looks_up():
    layer = Int8Embedding(1000, 512)
    index = torch.arange(4)
    with StorageTracker(layer) as tracker:
        layer(index)
    # 4 rows as codes, scales, floats and a tile of them: less than ten rows in float32
    assert tracker.peak_bytes - tracker.live_by_category["weights"] < 10 * 512 * 4


def test_no_float_copy_of_the_weight_outlives_forward_or_backward():
    layer = nn.Sequential(Int8Linear(512, 1024, bias=False), nn.Tanh(), Int8Linear(1024, 512, bias=False))
    x = torch.randn(2, 512, requires_grad=True)
    float_bytes = 4 * 512 * 1024
    with StorageTracker(layer) as tracker:
        loss = layer(x).sum()
        kept = tracker.live_bytes - tracker.live_by_category["weights"]
        forward_peak = tracker.peak_bytes
        loss.backward()
    codes = sum(module.int8_weight().nbytes for module in layer if isinstance(module, Int8Linear))
    assert tracker.live_by_category["weights"] == codes + 2 * 4
    assert tracker.live_by_category.get("buffers", 0) == 0
    assert kept < 0.05 * float_bytes  # activations alone
    assert forward_peak < codes + 1.1 * float_bytes  # one dequantised weight at a time
    assert tracker.live_by_category["gradients"] == 2 * float_bytes


def test_a_frozen_weight_gets_no_gradient_and_keeps_no_input():
    layer = Int8Linear(300, 20)
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    x = torch.randn(5, 300, requires_grad=True)
    y = layer(x)
    saved = [tensor for tensor in y.grad_fn.saved_tensors if tensor is not None]
    assert saved == []
    y.sum().backward()
    assert layer.weight.grad is None and x.grad is not None
    layer.weight.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert layer.weight.grad.shape == (20, 300)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpoints_give_the_same_gradients(use_reentrant):
    torch.manual_seed(0)
    model = nn.Sequential(Int8Linear(64, 300), nn.Tanh(), Int8Linear(300, 8))
    x = torch.randn(5, 64, requires_grad=True)
    model(x).square().sum().backward()
    plain = [p.grad for p in model.parameters()]
    model.zero_grad()
    checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
    for parameter, grad in zip(model.parameters(), plain, strict=True):
        assert torch.equal(parameter.grad, grad)


def test_gradients_of_gradients_and_changed_weights_are_refused():
    layer, x = Int8Linear(30, 20), torch.randn(5, 30, requires_grad=True)
    with pytest.raises(ConfigError, match="first-order"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    y = layer(x)
    layer.int8_weight().rows(0, 1).write_(torch.ones(1, 30))
    with pytest.raises(NumericsError, match="between the forward and the backward"):
        y.sum().backward()


def test_optimizers_select_the_handles_as_matrices():
    model = layers()
    assert list(select_matrices(model)) == ["1.weight", "3.weight"]  # the first one is frozen, the third an embedding


def test_going_back_gives_ordinary_layers_and_the_same_parameter_objects():
    model = layers()
    handles, values = [m.weight for m in model], [m.int8_weight().dequantize() for m in model]
    for module in model:
        to_float_(module)
    assert [type(m) for m in model] == [nn.Linear, nn.Linear, nn.Embedding, Conv1D]
    for module, handle, value in zip(model, handles, values, strict=True):
        assert module.weight is handle and type(handle) is nn.Parameter
        assert torch.equal(handle, value)
        assert int8_weight_of(handle) is None
    assert "weight" in model[0].state_dict() and not list(model.buffers())


def test_a_subclass_of_linear_is_not_taken_for_one():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    with pytest.raises(ConfigError, match="Own has no int8 form"):
        to_int8_(Own(3, 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lora_of_peft_trains_on_top_of_it_and_merging_fails_loudly():
    import peft

    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("proj", Int8Linear(300, 40))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["proj"], r=4))
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    x, losses = torch.randn(8, 300), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (wrapped(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises((RuntimeError, ValueError, ConfigError)):
        wrapped.merge_and_unload()(x)


def test_the_next_layer_may_write_into_the_output():
    torch.manual_seed(0)
    model = nn.Sequential(Int8Linear(8, 8), nn.ReLU(inplace=True), Int8Linear(8, 4))
    x = torch.randn(2, 3, 8)
    out = model(x)
    out.sum().backward()
    assert torch.equal(out, model[2](model[0](x).relu()))


def test_transforms_of_torch_func_are_refused_in_a_sentence():
    for layer, x in ((Int8Linear(6, 4), torch.ones(3, 6)), (Int8Embedding(5, 4), torch.ones(3).long())):
        with pytest.raises(ConfigError, match="torch.func transforms"):
            torch.func.vmap(layer)(x)
