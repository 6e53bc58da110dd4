"""What every optimizer of the registry must do with int8 weights."""

import copy
import io

import pytest
import torch
from torch import nn

from featherweight.methods.int8 import Int8
from featherweight.methods.method import apply
from featherweight.optim import GaLoreAdamW, build_optimizer, layerwise, optimizers, parse_optimizer
from featherweight.quant.int8_weight import int8_weight_of
from featherweight.training.footprint import predict_bytes

NAMES = optimizers.names()
# Others of their families train in every run; all that is quick is asked of all.
SIBLINGS = {"adamw", "adamw_4bit", "galore", "galore_4bit", "galore_8bit", "apollo", "tensor_galore", "tensorgrad"}
EVERYTHING = ["embedding", "tall", "wide", "head"]


class Network(nn.Module):
    """A tall and a wide matrix, an embedding, a norm and a bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 70)
        self.tall = nn.Linear(70, 300, bias=False)
        self.wide = nn.Linear(300, 70)
        self.norm = nn.LayerNorm(70)
        self.head = nn.Linear(70, 50, bias=False)

    def forward(self, index):
        hidden = self.embedding(index)
        return self.head(self.norm(hidden + self.wide(torch.tanh(self.tall(hidden)))))


def network(dtype=torch.float32, target_modules=EVERYTHING):
    model = Network().to(dtype)
    apply(model, Int8(target_modules=target_modules))
    return model


def build(name, model, lr=0.02, **options):
    low_rank = {} if name.startswith(("adamw", "scale")) else {"update_proj_gap": 1 if name == "ldadam" else 4}
    if low_rank and name != "apollo_mini":
        low_rank["rank"] = 20
    return build_optimizer(model, parse_optimizer({"name": name, "lr": lr, **low_rank, **options}), seed=1)


def loss_of(model, step):
    index = torch.randint(0, 50, (4, 16), generator=torch.Generator().manual_seed(step % 4))
    return nn.functional.cross_entropy(model(index).float().flatten(0, 1), (index.flatten() * 7 + 3) % 50)


def train(model, optimizer, steps, start=0):
    losses = []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def contents(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(
    "name", [name if name not in SIBLINGS else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_it_trains_int8_weights_and_every_tensor_moves(name):
    model = network(torch.bfloat16)
    before = contents(model)
    optimizer = build(name, model)
    losses = train(model, optimizer, 60)
    # From 4.0; half of it needs steps in the right direction (random codes stay at 4).
    assert sum(losses[-4:]) < 0.75 * sum(losses[:4])
    after = contents(model)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key for key in before if not key.endswith("scale")} <= moved
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("name", ["adamw_8bit", "galore_8bit", "apollo"])
def test_int8_weights_end_where_float_weights_end(name):
    # The same steps on float weights: rounding adds noise and no direction.
    plain, model = Network(), network()
    expected, found = (train(m, build(name, m), 60) for m in (plain, model))
    # Spread of the last losses over seeds of rounding is 1 to 4 percent here.
    assert sum(found[-4:]) == pytest.approx(sum(expected[-4:]), rel=0.15)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_the_float_step_within_a_code(name):
    plain, model = Network(), network()
    apply_values(plain, model)
    before = {n: int8_weight_of(p).dequantize() for n, p in model.named_parameters() if int8_weight_of(p)}
    for one in (plain, model):
        optimizer = build(name, one, lr=1e-3, weight_decay=0.1)
        loss_of(one, 0).backward()
        optimizer.step()
    for (key, expected), (_, parameter) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        weight = int8_weight_of(parameter)
        if weight is None:
            assert torch.equal(expected, parameter)
            continue
        scale = weight.block_scale.repeat_interleave(256, 1)[:, : weight.shape[1]]
        error = weight.dequantize() - expected.detach()
        assert bool((error.abs() <= scale * 1.001).all()), key
        # No direction: the mean error of n elements, each of variance at most 1/4, is below 4 standard errors.
        assert abs(float((error / scale).mean())) < 4 * 0.5 / error.numel() ** 0.5
        assert not torch.equal(before[key], weight.dequantize())


def apply_values(plain, model):
    """Give the float model the values of the int8 one."""
    with torch.no_grad():
        for parameter, handle in zip(plain.parameters(), model.parameters(), strict=True):
            weight = int8_weight_of(handle)
            parameter.copy_(handle if weight is None else weight.dequantize())


@pytest.mark.parametrize("name", NAMES)
def test_steps_of_nothing_leave_every_code(name):
    model = network()
    before = contents(model)
    train(model, build(name, model, lr=1e-30), 8)
    after = contents(model)
    assert all(torch.equal(before[key], after[key]) for key in before if key.endswith(("codes", "scale")))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_a_run_through_a_file_continues_bitwise(name, dtype):
    model = network(dtype)
    optimizer = build(name, model)
    train(model, optimizer, 6)
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], buffer)
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=True)
    twin = network(dtype)
    twin.load_state_dict(weights)
    resumed = build(name, twin)
    resumed.load_state_dict(state)
    torch.rand(3)  # no generator's state matters
    train(model, optimizer, 5, start=6)
    train(twin, resumed, 5, start=6)
    assert_equal(contents(model), contents(twin))


@pytest.mark.parametrize("name", NAMES)
def test_a_layerwise_step_has_the_bits_of_an_ordinary_one(name):
    ordinary, model = network(), network()
    train(ordinary, build(name, ordinary), 5)
    with layerwise(model, build(name, model)):
        for step in range(5):
            loss_of(model, step).backward()
    assert_equal(contents(ordinary), contents(model))


@pytest.mark.parametrize("name", ["adamw", "galore_8bit", "apollo_mini", "fira", "gum"])
def test_layerwise_accumulation_trains_and_moves_embedding_head_and_norm_beside_int8_matrices(name):
    model = network(target_modules=["tall", "wide"])
    before = contents(model)
    losses = []
    with layerwise(model, build(name, model), accumulation_steps=2, max_grad_norm=1.0) as handle:
        for step in range(80):
            loss = loss_of(model, step) / 2
            loss.backward()
            losses.append(float(loss.detach()))
    assert handle.steps == 40
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert all(not torch.equal(value, before[key]) for key, value in contents(model).items() if "scale" not in key)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_trains_for_itself(name):
    model = network()
    optimizer = build(name, model)
    train(model, optimizer, 2)
    twin, other = copy.deepcopy((model, optimizer))
    train(model, optimizer, 3, start=2)
    middle = contents(twin)
    train(twin, other, 3, start=2)
    assert_equal(contents(model), contents(twin))
    assert any(not torch.equal(middle[key], value) for key, value in contents(twin).items())


@pytest.mark.parametrize("name", NAMES)
def test_nearest_rounding_is_an_option_and_loses_small_updates(name):
    model = network()
    codes = {key: value for key, value in contents(model).items() if key.endswith("codes")}
    optimizer = build(name, model, lr=1e-7, stochastic_rounding=False)
    train(model, optimizer, 4)
    assert all(torch.equal(value, contents(model)[key]) for key, value in codes.items())


@pytest.mark.parametrize("name", NAMES)
def test_state_and_weights_have_the_predicted_bytes(name):
    model = network(torch.bfloat16)
    optimizer = build(name, model)
    predicted = predict_bytes(model, optimizer)
    train(model, optimizer, 1)
    tensors = [*model.parameters(), *model.buffers()]
    assert predicted["weights"] == sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert optimizer.state_bytes() == sum(value.nbytes for s in optimizer.state.values() for value in s.values())
    assert predicted["gradients"] == sum(p.grad.nbytes for p in model.parameters())


def test_groups_of_rows_with_their_own_basis_write_their_own_rows():
    """`split` with int8 weights gives the float step of the same split, within a code."""
    plain, model = Network(), network()
    apply_values(plain, model)
    for one in (plain, model):
        low_rank = {"params": [("tall.weight", one.tall.weight)], "rank": 8, "split": {"tall": 3}}
        optimizer = GaLoreAdamW([low_rank], lr=1e-3)
        assert optimizer.layouts[one.tall.weight].blocks == 3
        loss_of(one, 0).backward()
        optimizer.step()
    weight = model.tall.int8_weight()
    scale = weight.block_scale.repeat_interleave(256, 1)[:, :70]
    assert bool(((weight.dequantize() - plain.tall.weight).abs() <= scale * 1.001).all())
