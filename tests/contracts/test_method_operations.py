"""Every method under every operation that models go through: each cell works, or is refused in a sentence.

A cell works if the model then computes and trains exactly as one that came to the same point without the operation. A
new method of the registry has to enter the table; what it refuses, it says here, with the words of its message.
"""

import copy
import itertools
import os
import pickle
import traceback

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods import CoreGradient, Int8, MsT, applied_methods, methods
from featherweight.methods.inrank import InRank
from featherweight.methods.lora import LoRA
from featherweight.methods.s2ft.method import S2FT
from featherweight.methods.welore import WeLore

VOCABULARY, WIDTH = 64, 32
TOKENS = torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))

METHODS = {
    "core_gradient": CoreGradient(),
    "mst": MsT(chunk_size=5, head_chunk_size=5),
    "mst tokenwise": MsT(tokenwise=True, chunk_size=5, head_chunk_size=5),
    "int8": Int8(),
    "welore": WeLore(rank_reduction=0.5, min_dim=16, train="all"),
    "inrank": InRank(buffer=4, warmup=0, every=1),
    "lora": LoRA(r=4),
    "s2ft": S2FT(num_channels=8),
    "s2ft inplace": S2FT(num_channels=8, update="inplace"),
}

EXACT = {"core_gradient", "mst", "mst tokenwise"}
"""Methods that change how a model computes and not what: to rounding, they may come and go at any time."""


def llama(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).train()


def applied(name, model=None):
    model = llama() if model is None else model
    torch.manual_seed(7)  # LoRA draws its first values from the global generator
    fw.apply(model, METHODS[name])
    return model


def trained(name):
    """A model that has made two steps with the method: no initial zeros are left."""
    model = applied(name)
    train(model)
    return model


def loss_of(model):
    return model(input_ids=TOKENS, labels=TOKENS).loss


def train(model, steps=2, dtype_optimizer=fw.optim.AdamW):
    """Train with an optimizer that writes every kind of weight, and return the losses."""
    optimizer = dtype_optimizer([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    losses.append(loss_of(model).item())
    assert losses[-1] != losses[0], "nothing was trained"
    return losses


def assert_same(model, expected):
    """Both have the same state and train alike, bit by bit."""
    states = model.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[1].items():
        assert torch.equal(states[0][name], value), name
    trains = [[n for n, p in each.named_parameters() if p.requires_grad] for each in (model, expected)]
    assert trains[0] == trains[1]
    assert train(model) == train(expected)


# ---- operations; each takes a method's name and asserts that the cell works


def load_state_dict(name):
    expected, fresh = trained(name), applied(name)
    fresh.load_state_dict(expected.state_dict())
    assert_same(fresh, expected)


def load_a_plain_checkpoint(name):
    model, plain = applied(name), llama(seed=3)
    model.load_state_dict(plain.state_dict())
    # Int8 rounds the checkpoint as it rounds a model: to half a step of 1/127 of the largest value of a row.
    assert loss_of(model).item() == pytest.approx(loss_of(plain).item(), rel=1e-3 if name == "int8" else 1e-6)


def deepcopy(name):
    model = trained(name)
    before = copy.deepcopy(model.state_dict())
    copied = copy.deepcopy(model)
    assert applied_methods(copied) == applied_methods(model)
    train(copied)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert_same(copy.deepcopy(model), model)


def pickled(name):
    model = trained(name)
    assert_same(pickle.loads(pickle.dumps(model)), model)


def to_float64_and_back(name):
    model = trained(name)
    expected = copy.deepcopy(model)
    losses = train(model.double())
    # Half the digits of float32, which is what the forward pass of the other one has.
    assert losses == pytest.approx(train(expected), rel=1e-5)
    assert {p.dtype for p in model.float().parameters()} == {torch.float32}
    train(model)


def to_bfloat16(name):
    model = trained(name)
    expected = copy.deepcopy(model)
    losses = train(model.bfloat16())
    assert losses == pytest.approx(train(expected), rel=2e-2)  # 8 bits of mantissa: measured 0.4 %
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def to_bfloat16_between_two_steps(name):
    model = applied(name)
    optimizer = fw.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        model.bfloat16()
    assert losses[2] < losses[0]


def resize_token_embeddings(name):
    # A word more or less is the same before the method and after it.
    for size in (VOCABULARY + 8, VOCABULARY - 8):
        tokens = TOKENS % (VOCABULARY - 8)
        resized, expected = applied(name), llama()
        for model in (resized, expected):
            torch.manual_seed(11)
            model.resize_token_embeddings(size, mean_resizing=False)
        applied(name, expected)
        found = [model(input_ids=tokens, labels=tokens).loss for model in (resized, expected)]
        # Int8 leaves the embeddings float, so nothing is rounded twice.
        assert found[0].item() == pytest.approx(found[1].item(), rel=1e-6)
        optimizer = fw.optim.AdamW([p for p in resized.parameters() if p.requires_grad], lr=1e-2)
        found[0].backward()
        optimizer.step()
        assert resized(input_ids=tokens, labels=tokens).loss < found[0]


def averaged_model(name):
    model = trained(name)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    first = {key: value.detach().clone() for key, value in model.named_parameters()}
    train(model)
    averaged.update_parameters(model)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for key, value in expected.named_parameters():
            value.lerp_(first[key], 0.5)
    assert loss_of(averaged).item() == pytest.approx(loss_of(expected).item(), rel=1e-6)


def apply_in_inference_mode(name):
    model = llama()
    with torch.inference_mode():
        applied(name, model)
    assert_same(model, applied(name))


def apply_twice(name):
    model = applied(name)
    fw.apply(model, METHODS[name])


def remove_then_train(name):
    model = trained(name)
    fw.remove(model, METHODS[name])
    assert not applied_methods(model)
    plain = llama(seed=3)
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    assert_same(model, plain)


def remove_without_training(name):
    model, plain = applied(name), llama()
    fw.remove(model, METHODS[name])
    if name == "int8":  # has rounded the weights
        plain.load_state_dict(model.state_dict())
    assert_same(model, plain)


def train_again(name):
    """Layer-wise first, then with an ordinary optimizer: nothing of the first training is left."""
    model = applied(name)
    optimizer = fw.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with fw.optim.layerwise(model, optimizer) as handle:
        for _ in range(2):
            loss_of(model).backward()
    assert handle.steps == 2
    assert all(p.grad is None for p in model.parameters())
    fresh = applied(name)
    fresh.load_state_dict(model.state_dict())
    assert_same(model, fresh)


def train_layerwise(name):
    model, expected = applied(name), applied(name)
    optimizer = fw.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with fw.optim.layerwise(model, optimizer):
        for _ in range(2):
            loss_of(model).backward()
    losses = train(expected)
    assert loss_of(model).item() == losses[-1]


def apply_to_a_model_that_trains_layerwise(name):
    model, expected = llama(), llama()
    with fw.optim.layerwise(model, fw.optim.AdamW(model.parameters(), lr=1e-2)) as handle:
        loss_of(model).backward()
        fw.apply(model, METHODS[name])
        loss_of(model).backward()
    assert handle.steps == 2 and all(p.grad is None for p in model.parameters())
    train(expected)
    # Int8 rounds the weights in between.
    assert loss_of(model).item() == pytest.approx(loss_of(expected).item(), rel=1e-2 if name == "int8" else 1e-5)


def remove_from_a_model_that_trains_layerwise(name):
    model = applied(name)
    trained = [p for p in model.parameters() if p.requires_grad]
    with fw.optim.layerwise(model, fw.optim.AdamW(trained, lr=1e-2)) as handle:
        loss_of(model).backward()
        fw.remove(model, METHODS[name])
        loss_of(model).backward()
    assert handle.steps == 2 and all(p.grad is None for p in model.parameters())


OPERATIONS = (
    load_state_dict, load_a_plain_checkpoint, deepcopy, pickled, to_float64_and_back, to_bfloat16,
    to_bfloat16_between_two_steps, resize_token_embeddings, averaged_model, apply_in_inference_mode,
    apply_twice, remove_then_train, remove_without_training, train_again, train_layerwise,
    apply_to_a_model_that_trains_layerwise,
    remove_from_a_model_that_trains_layerwise,
)  # fmt: skip

EXCHANGES = ("welore", "inrank", "lora", "s2ft", "s2ft inplace")
"""Methods that exchange or freeze parameters."""

_OWNED = r"has an owner already, layer-wise AdamW owns its gradient.*Remove the handle"
REFUSED = {
    **{(name, apply_twice): "is applied to this model already.*Call fw.remove" for name in METHODS},
    **{(name, load_a_plain_checkpoint): "(?s)Missing key.*in state_dict" for name in EXCHANGES},  # torch's own
    **{(name, apply_to_a_model_that_trains_layerwise): _OWNED for name in EXCHANGES},
    **{(name, remove_from_a_model_that_trains_layerwise): _OWNED for name in EXCHANGES},
    ("int8", averaged_model): "int8 weight: 'copy_' would write into a handle.*fw.remove",
    ("s2ft inplace", averaged_model): "averaging .AveragedModel. would leave there.*Average models with update='delta'",
}
IRREVERSIBLE = {("welore", remove_without_training), ("inrank", remove_without_training)}
"""These give plain layers back, with the weights that they have cut or drawn: `remove_then_train` looks at that."""


def in_a_process_of_its_own(function, *args):
    """Run in a fork, so that a signal is a red cell and not the end of the tests; return the exception or None."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            function(*args)
            result = None
        except BaseException as error:
            result = (type(error).__name__, str(error), traceback.format_exc())
        with os.fdopen(writer, "wb") as stream:
            stream.write(pickle.dumps(result))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        written = stream.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"ended by signal {os.WTERMSIG(status)}"
    return pickle.loads(written)


MAY_CRASH = {resize_token_embeddings, averaged_model, to_bfloat16_between_two_steps}
"""What has shown memory errors: sizes or values move under states and kernels."""


CELLS = [cell for cell in itertools.product(METHODS, OPERATIONS) if cell not in IRREVERSIBLE]


@pytest.mark.parametrize(("name", "operation"), CELLS, ids=lambda part: getattr(part, "__name__", part))
def test_the_cell_works_or_is_refused(name, operation):
    expected = REFUSED.get((name, operation))
    if operation in MAY_CRASH and not torch.cuda.is_available():  # a fork cannot use CUDA
        failure = in_a_process_of_its_own(operation, name)
        if expected is None:
            assert failure is None, failure and failure[2]
        else:
            assert failure is not None and failure[0] == "ConfigError", failure
            with pytest.raises(ConfigError, match=expected):
                raise ConfigError(failure[1])
    elif expected is None:
        operation(name)
    else:
        with pytest.raises((ConfigError, RuntimeError), match=expected):
            operation(name)


TRAINS_NOTHING = {"base4bit"}
"""Freezes a model for the adapter that follows, so that no cell could train it: `tests/methods/test_base4bit.py`."""


def test_every_method_of_the_registry_stands_in_the_table():
    assert {name.split()[0] for name in METHODS} | TRAINS_NOTHING == set(methods.names())


# ---- two methods


COMBINATIONS = {
    ("core_gradient", "int8"): "has another forward already.*Apply Int8 before",
    ("core_gradient", "welore"): r"CoreGradient owns its forward.*fw.remove\(model, fw.CoreGradient\(\)\)",
    ("core_gradient", "inrank"): r"CoreGradient owns its forward.*fw.remove\(model, fw.CoreGradient\(\)\)",
    ("int8", "welore"): "Int8Linear is no plain linear layer",
    ("int8", "inrank"): "Int8Linear is no plain linear layer",
    ("int8", "s2ft inplace"): "does not go with quantized weights of Int8Linear",
    ("s2ft inplace", "int8"): "o_proj.base_layer.weight' has an owner already, an S2FT adapter owns its weight",
    **{(cut, "lora"): "is of low rank, beside which PEFT puts no adapter" for cut in ("welore", "inrank")},
    ("inrank", "welore"): "is of low rank already",
    ("welore", "inrank"): "is of low rank already; expected a model of ordinary layers",
    ("welore", "s2ft inplace"): "does not go with low rank of",
    **{("inrank", one): "layers whose ranks still grow.*freeze" for one in ("s2ft", "s2ft inplace")},
    **{
        pair: "has an adapter of PEFT already"
        for pair in itertools.product(
            ("lora", "s2ft", "s2ft inplace"), ("welore", "inrank", "lora", "s2ft", "s2ft inplace")
        )
    },
}
"""Pairs that are refused, the first applied first; all others work."""


PAIRS = [
    # The slowest method, and refused by none that does not refuse its sister without regions.
    pytest.param(*pair, marks=pytest.mark.slow if "mst tokenwise" in pair else ())
    for pair in itertools.permutations(METHODS, 2)
    if type(METHODS[pair[0]]) is not type(METHODS[pair[1]])
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_method_beside_another_works_or_is_refused(first, second):
    model = trained(first)
    before = copy.deepcopy(model.state_dict())
    loss = loss_of(model).item()
    if expected := COMBINATIONS.get((first, second)):
        with pytest.raises(ConfigError, match=expected):
            fw.apply(model, METHODS[second])
        assert applied_methods(model) == [METHODS[first]]
        assert loss_of(model).item() == loss, "a refusal changes nothing"
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        return
    alone = copy.deepcopy(model)
    applied(second, model)
    # Adapters begin at zero, int8 rounds, and the cutting methods change the function.
    if second not in ("welore", "inrank"):
        assert loss_of(model).item() == pytest.approx(loss, rel=1e-3 if second == "int8" else 1e-6)
    if second in EXACT:
        assert train(model) == pytest.approx(train(alone), rel=1e-5)
    else:
        train(model)
    if {first, second} <= set(EXCHANGES):
        with pytest.raises(ConfigError, match="which stands on its layers; expected the last one first"):
            fw.remove(model, METHODS[first])
    fw.remove(model, METHODS[second])
    assert applied_methods(model) == [METHODS[first]]
    fw.remove(model, METHODS[first])
    plain = llama(seed=3)
    plain.load_state_dict(model.state_dict())
    assert_same(model, plain)
