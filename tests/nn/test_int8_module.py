"""Codes, scales and handle of an int8 module: moves, copies, files."""

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
from int8_layers import layers
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from featherweight.errors import ConfigError
from featherweight.memory.tracker import StorageTracker
from featherweight.nn.int8_linear import Int8Linear, to_int8_
from featherweight.quant.int8_weight import Int8Handle, Int8Weight, int8_weight_of


def test_values_that_are_written_into_the_handle_are_refused_and_not_ignored():
    layer = Int8Linear(30, 20)
    with pytest.raises(ConfigError, match="would write into a handle"):
        layer.weight.data += 1
    layer.weight.data = torch.zeros(20, 30)
    with pytest.raises(ConfigError, match="replaced by float values"):
        layer(torch.zeros(1, 30))


def parts(model):
    return [tensor for m in model for tensor in (m.int8_weight().codes, m.int8_weight().block_scale)]


def assert_same_weights(a, b):
    for one, other in zip(parts(a), parts(b), strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def assert_whole(model, dtype=torch.float32):
    for module in model:
        assert type(module.weight) is Int8Handle and module.weight.dtype == dtype
        assert module.weight.untyped_storage().nbytes() == dtype.itemsize
        assert int8_weight_of(module.weight).codes is module.weight_codes
        assert module.weight_codes.dtype == torch.int8 and module.weight_scale.dtype == torch.float32


@pytest.mark.parametrize(
    "move",
    [
        lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16(), lambda m: m.half().to(torch.bfloat16),
        lambda m: m.type(torch.bfloat16), lambda m: m.to("cpu", torch.bfloat16),
    ],
)  # fmt: skip
def test_a_change_of_dtype_keeps_codes_scales_and_the_parameter_objects(move):
    model, before = layers(), layers()
    handles = [m.weight for m in model]
    handles[1].grad = torch.ones(300, 40)
    move(model)
    assert_whole(model, torch.bfloat16)
    assert_same_weights(model, before)
    assert all(a is m.weight for a, m in zip(handles, model, strict=True))
    assert handles[1].grad.dtype == torch.bfloat16 and not handles[0].requires_grad
    assert model[0].bias.dtype == torch.bfloat16
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in before.named_parameters()]


def test_a_model_goes_to_the_meta_device_and_comes_back_from_a_file():
    model, state = layers(), layers().state_dict()
    model.to("meta")
    assert {m.weight.device.type for m in model} == {m.weight_codes.device.type for m in model} == {"meta"}
    assert model[1](torch.empty(3, 40, device="meta")).shape == (3, 300)
    assigned = copy.deepcopy(model)
    model.to_empty(device="cpu")
    model.load_state_dict(state)
    assert_whole(model)
    assert_same_weights(model, layers())
    assigned.load_state_dict(state, assign=True)
    assert_whole(assigned)
    assert_same_weights(assigned, layers())
    assert not model[0].weight.requires_grad and not assigned[0].weight.requires_grad


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent_and_their_handles_find_their_own_codes(copied):
    model = layers()
    twin = copied(model)
    assert_whole(twin)
    assert_same_weights(twin, model)
    assert [m.weight.requires_grad for m in twin] == [False, True, True, True]
    twin[1].int8_weight().write_(torch.ones(300, 40))
    assert_same_weights(model, layers())
    shallow = copy.copy(model[0])
    del shallow
    assert_whole(model)


def test_a_copy_of_the_handle_alone_makes_nothing_of_the_weights_size():
    model = layers()
    with StorageTracker(model) as tracker:
        twin = copy.deepcopy(dict(model.named_parameters()))
    assert tracker.peak_bytes - sum(tracker.live_by_category[c] for c in ("weights", "buffers")) < 2000
    assert type(twin["1.weight"]) is Int8Handle


def test_a_state_dict_holds_codes_and_scales_and_no_weight():
    names = set(layers().state_dict())
    assert names == {
        "0.weight_codes", "0.weight_scale", "0.bias", "1.weight_codes", "1.weight_scale",
        "2.weight_codes", "2.weight_scale", "3.weight_codes", "3.weight_scale", "3.bias",
    }  # fmt: skip


def through_torch(model, twin, path):
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer, weights_only=True))


def through_safetensors(model, twin, path):
    safetensors.torch.save_model(model, str(path / "model.safetensors"))
    safetensors.torch.load_model(twin, path / "model.safetensors")


def through_dcp(model, twin, path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    dcp.save(get_model_state_dict(model), checkpoint_id=path, no_dist=True)
    state = get_model_state_dict(twin)
    dcp.load(state, checkpoint_id=path, no_dist=True)
    set_model_state_dict(twin, state)


@pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated")
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("through", [through_torch, through_safetensors, through_dcp])
def test_every_file_format_brings_back_the_same_bits(through, tmp_path):
    model = layers()
    torch.manual_seed(1)
    twin = layers()
    for module in twin:
        module.int8_weight().write_(torch.zeros(module.weight.shape))
    through(model, twin, tmp_path)
    assert_whole(twin)
    assert_same_weights(model, twin)
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])


def test_an_ordinary_checkpoint_is_quantised_on_the_way_in():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(300, 40), nn.Linear(40, 300, bias=False), nn.Embedding(9, 20), Conv1D(6, 7))
    model = layers()
    model.load_state_dict(plain.state_dict())
    assert_whole(model)
    for module, source in zip(model, plain, strict=True):
        expected = Int8Weight.quantize(source.weight)
        assert torch.equal(module.weight_codes, expected.codes)
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        model.load_state_dict({**plain.state_dict(), "0.weight": torch.ones(3, 3)})
    incomplete = {name: value for name, value in model.state_dict().items() if name != "1.weight_scale"}
    with pytest.raises(RuntimeError, match=r"1\.weight_scale"):
        model.load_state_dict(incomplete)


class Tied(nn.Module):
    """A head that comes before the embedding whose weight it shares."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(300, 50, bias=False)
        self.embedding = nn.Embedding(50, 300)
        self.head.weight = self.embedding.weight
        to_int8_(self.embedding)
        to_int8_(self.head, owner=self.embedding)

    def forward(self, index):
        return self.head(self.embedding(index))


def test_tied_modules_share_codes_handle_and_gradient_through_moves_copies_and_files(tmp_path):
    torch.manual_seed(0)

    def check(model):
        assert model.head.weight is model.embedding.weight
        assert len(list(model.parameters())) == 1 and len(list(model.children())) == 2
        assert int8_weight_of(model.head.weight).codes is model.embedding.weight_codes
        index = torch.tensor([[1, 2, 2]])
        model.zero_grad()
        model(index).square().sum().backward()
        weight = model.embedding.int8_weight().dequantize(model.head.weight.dtype).requires_grad_()
        F.linear(F.embedding(index, weight), weight).square().sum().backward()
        assert torch.allclose(
            model.head.weight.grad, weight.grad, rtol=1e-4, atol=1e-4 * float(weight.grad.abs().max())
        )

    model = Tied()
    check(model)
    assert set(model.state_dict()) == {"embedding.weight_codes", "embedding.weight_scale"}
    check(copy.deepcopy(model))
    check(pickle.loads(pickle.dumps(model)))
    check(model.double())
    model.float()
    twin = Tied().to("meta").to_empty(device="cpu")
    through_safetensors(model, twin, tmp_path)
    check(twin)
    assert torch.equal(twin.embedding.weight_codes, model.embedding.weight_codes)
    floats = {name: torch.randn(50, 300) for name in ("embedding.weight", "head.weight")}
    floats["head.weight"] = floats["embedding.weight"]
    twin.load_state_dict(floats)
    check(twin)
    assert torch.equal(twin.embedding.weight_codes, Int8Weight.quantize(floats["head.weight"]).codes)
