"""What may be done to an optimizer, one function for each operation; the cells of an operation run in one fork.

`test_optimizer_operations.py` runs this file once and reads what came of each cell: "works" if the function's claims
hold, "refused: ..." for a sentence of ours, "died by signal ..." or "failed: ..." for everything else. Where a fork
dies, each cell that it leaves open runs in a fork of its own.
"""

import copy
import gc
import io
import json
import os
import pickle
import signal
import traceback

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from featherweight.errors import FeatherweightError
from featherweight.methods.int8 import Int8
from featherweight.methods.method import apply
from featherweight.optim import adopt_new_rows, build_optimizer, optimizers, parse_optimizer

NEIGHBOURS = 200
"""Small tensors around those of the optimizer, to see whether anything was written beyond its end."""


class Model(nn.Module):
    """Matrices of both forms, an embedding, a bias and a tensor of four axes; the loss pulls all of them to one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 70)
        self.tall = nn.Linear(70, 90, bias=False)
        self.wide = nn.Linear(90, 60)
        self.convolution = nn.Conv2d(6, 8, 5, bias=False)

    def loss(self):
        return sum((p.float() - 1).square().sum() for p in self.parameters())


class Layers(nn.Module):
    """Two layers that int8 weights can replace."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tall, self.wide = nn.Linear(70, 90, bias=False), nn.Linear(90, 60)

    def loss(self):
        return self.wide(self.tall(torch.ones(4, 70))).square().mean()


def build(name, model, **options):
    low_rank = {} if name.startswith(("adamw", "scale")) else {"update_proj_gap": 1 if name == "ldadam" else 2}
    if low_rank and name != "apollo_mini" and not name.startswith("tensor"):
        low_rank["rank"] = 20
    return build_optimizer(model, parse_optimizer({"name": name, "lr": 0.01, **low_rank, **options}), seed=1)


def train(model, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()


def trained(name, steps=3, **options):
    model = Model()
    optimizer = build(name, model, **options)
    train(model, optimizer, steps)
    return model, optimizer


def same(model, other):
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def moves(model, optimizer):
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, 2)
    for old, p in zip(before, model.parameters(), strict=True):
        assert not torch.equal(old, p) and bool(p.isfinite().all())


def largest(optimizer):
    """Return the state of the parameter that has the largest tensor, and the key of that tensor."""
    state = max(optimizer["state"].values(), key=lambda state: max(one.numel() for one in state.values()))
    return state, max(state, key=lambda key: state[key].numel())


# ---- states


def own_state_through_a_file(name):
    model, optimizer = trained(name)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(model)
    resumed = build(name, twin)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(model, optimizer, 3)
    train(twin, resumed, 3)
    same(model, twin)


def own_state_without_a_name(name):
    model, optimizer = trained(name)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["kind"]
    build(name, model).load_state_dict(state)


def state_of_another_kind(name):
    _, source = trained("apollo" if "galore" in name or name.startswith("adamw") else "galore")
    build(name, Model()).load_state_dict(source.state_dict())


def state_of_another_width(name):
    bits = 16 if not name.endswith("8bit") else 32
    build(name, Model()).load_state_dict(trained(name, state_bits=bits)[1].state_dict())


def state_of_another_rank(name):
    other = {"rank": 0.1} if name.startswith("tensor") else {"rank": 10}
    build(name, Model()).load_state_dict(trained(name, **other)[1].state_dict())


def adopted_state(name):
    source_name = "galore" if name != "galore" else "galore_8bit"
    model = Model()
    groups = [{"params": list(model.parameters()), "low_rank": False}]
    optimizer = type(build(name, Model()))(groups)
    source = type(build(source_name, Model()))([{"params": list(model.parameters()), "rank": 20}])
    train(model, source, 2)
    optimizer.load_state_dict(source.state_dict(), adopt=True)
    moves(model, optimizer)


def state_of_fewer_parameters(name):
    model, optimizer = trained(name)
    state = optimizer.state_dict()
    state["param_groups"][0]["params"].pop()
    build(name, model).load_state_dict(state)


def state_without_a_tensor(name):
    model, optimizer = trained(name)
    saved = copy.deepcopy(optimizer.state_dict())
    state, key = largest(saved)
    del state[key]
    build(name, model).load_state_dict(saved)


def state_with_a_shorter_tensor(name):
    model, optimizer = trained(name)
    saved = copy.deepcopy(optimizer.state_dict())
    state, key = largest(saved)
    state[key] = state[key][:-1]
    build(name, model).load_state_dict(saved)


def state_that_is_damaged(name):
    """The last of many damages is refused here, the others before."""
    model, optimizer = trained(name)
    fresh = build(name, model)
    refused = []
    for damage in (None, "text", -5, {}, []):
        saved = copy.deepcopy(optimizer.state_dict())
        state, key = largest(saved)
        if damage in ({}, []):
            saved["state" if damage == [] else "param_groups"] = damage
        elif damage == -5:
            state["step"] = torch.full_like(state["step"], damage)
        else:
            state[key] = damage
        try:
            fresh.load_state_dict(saved)
        except FeatherweightError as error:
            refused.append(error)
            assert not fresh.state and fresh.param_groups
    assert len(refused) == 5
    raise refused[-1]


def state_of_other_strides(name):
    model, optimizer = trained(name)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        for key, value in state.items():
            if value.ndim >= 2:
                state[key] = value.transpose(0, 1).contiguous().transpose(0, 1)
    twin = copy.deepcopy(model)
    resumed = build(name, twin)
    resumed.load_state_dict(saved)
    train(model, optimizer, 3)
    train(twin, resumed, 3)
    same(model, twin)


def state_of_torch(name):
    model = Model()
    source = torch.optim.AdamW([{"params": group["params"]} for group in build(name, model).param_groups])
    train(model, source)
    build(name, model).load_state_dict(source.state_dict())


def state_given_to_torch(name):
    model, optimizer = trained(name)
    foreign = torch.optim.AdamW([{"params": group["params"]} for group in optimizer.param_groups], fused=True)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group.update({k: v for k, v in foreign.param_groups[0].items() if k not in group})
    foreign.load_state_dict(saved)
    moves(model, foreign)


# ---- copies


def deep_copy(name):
    model, optimizer = trained(name)
    twin, other = copy.deepcopy((model, optimizer))
    train(model, optimizer, 3)
    train(twin, other, 3)
    same(model, twin)


def pickled(name):
    model, optimizer = trained(name)
    twin, other = pickle.loads(pickle.dumps((model, optimizer)))
    train(model, optimizer, 3)
    train(twin, other, 3)
    same(model, twin)


def averaged_model(name):
    model, optimizer = trained(name)
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    moves(model, optimizer)
    averaged.update_parameters(model)
    assert not torch.equal(averaged.module.tall.weight, model.tall.weight)


# ---- dtypes, devices, shapes


def _to(name, first, then):
    model = Model().to(first)
    optimizer = build(name, model)
    train(model, optimizer, 3)
    model.to(then)
    moves(model, optimizer)
    twin = copy.deepcopy(model)
    resumed = build(name, twin)
    resumed.load_state_dict(optimizer.state_dict())
    moves(twin, resumed)


def bfloat16_between_steps(name):
    _to(name, torch.float32, torch.bfloat16)


def half_between_steps(name):
    _to(name, torch.float32, torch.float16)


def float_between_steps(name):
    _to(name, torch.bfloat16, torch.float32)


def double_between_steps(name):
    _to(name, torch.float32, torch.float64)


def meta_between_steps(name):
    model, optimizer = trained(name)
    for p in model.parameters():
        p.grad = None
    meta = [nn.Parameter(p.detach().to("meta")) for p in model.parameters()]
    other = type(optimizer)(meta)
    for p in meta:
        p.grad = torch.empty_like(p)
    other.step()


def more_rows(name):
    model, optimizer = trained(name)
    neighbours = [torch.full((50, 70), 7.0) for _ in range(NEIGHBOURS)]
    model.embedding.weight.data = torch.zeros(4000, 70)
    try:
        train(model, optimizer, 3)
    finally:
        assert all(bool((one == 7).all()) for one in neighbours)


def fewer_rows(name):
    model, optimizer = trained(name)
    model.tall.weight.data = model.tall.weight.data[:40].clone()
    train(model, optimizer)


def more_columns(name):
    model, optimizer = trained(name)
    model.tall.weight.data = torch.zeros(90, 700)
    train(model, optimizer)


def new_rows_that_are_adopted(name):
    model, optimizer = trained(name)
    model.embedding.weight.data = torch.cat([model.embedding.weight.data, torch.zeros(7, 70)])
    model.tall.weight = nn.Parameter(torch.cat([model.tall.weight.data, torch.zeros(5, 70)]))
    assert adopt_new_rows(optimizer, model)
    moves(model, optimizer)


# ---- groups and others


def added_group(name):
    model, optimizer = trained(name)
    model.extra = nn.Parameter(torch.zeros(5, 4))
    optimizer.add_param_group({"params": [("extra", model.extra)], "lr": 0.1})
    moves(model, optimizer)


def foreign_optimizer_afterwards(name):
    model, _ = trained(name)
    moves(model, torch.optim.AdamW(model.parameters(), fused=True))


def _int8():
    model = Layers()
    apply(model, Int8())
    return model


def int8_weights(name):
    model = _int8()
    optimizer = build(name, model)
    before = [layer.weight_codes.clone() for layer in (model.tall, model.wide)]
    train(model, optimizer, 3)
    after = [layer.weight_codes for layer in (model.tall, model.wide)]
    assert all(not torch.equal(*pair) for pair in zip(before, after, strict=True))


def foreign_optimizer_after_int8_weights(name):
    model = _int8()
    train(model, build(name, model), 2)
    train(model, torch.optim.AdamW(model.parameters(), fused=True))


def averaged_int8_weights(name):
    model = _int8()
    averaged = AveragedModel(model)
    train(model, build(name, model), 2)
    averaged.update_parameters(model)


PROJECTING = [name for name in optimizers.names() if not name.startswith(("adamw", "scale"))]
FULL_RANK = ["adamw"]
"""Whose state torch's AdamW can read."""

TABLE = {
    own_state_through_a_file: "works",
    own_state_without_a_name: "works",
    state_of_another_kind: "refused",
    state_of_another_width: {name: "refused" for name in optimizers.names() if name.startswith("adamw")},
    state_of_another_rank: {name: "refused" for name in PROJECTING if name != "apollo_mini"},
    adopted_state: {
        name: "refused" if name == "scale" else "works" for name in optimizers.names() if not name.startswith("tensor")
    },
    state_of_fewer_parameters: "refused",
    state_without_a_tensor: "refused",
    state_with_a_shorter_tensor: "refused",
    state_that_is_damaged: "refused",
    state_of_other_strides: "works",
    state_of_torch: "refused",
    state_given_to_torch: {n: "works" if n in FULL_RANK else "refused" for n in optimizers.names()},
    deep_copy: "works",
    pickled: "works",
    averaged_model: "works",
    bfloat16_between_steps: "works",
    half_between_steps: "works",
    float_between_steps: "works",
    double_between_steps: "refused",
    meta_between_steps: "refused",
    more_rows: "refused",
    fewer_rows: "refused",
    more_columns: "refused",
    new_rows_that_are_adopted: "works",
    added_group: "works",
    foreign_optimizer_afterwards: "works",
    int8_weights: "works",
    foreign_optimizer_after_int8_weights: "refused",
    averaged_int8_weights: "refused",
}
"""What each operation does: for all optimizers, or one by one."""


def cells():
    """Yield (operation, optimizer, expected)."""
    for operation, expected in TABLE.items():
        row = expected if isinstance(expected, dict) else dict.fromkeys(optimizers.names(), expected)
        for name, outcome in row.items():
            yield operation, name, outcome


def outcome_of(operation, name):
    """Run a cell and say what came of it, in this process."""
    signal.alarm(120)
    try:
        operation(name)
    except FeatherweightError as error:
        return f"refused: {error}"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"failed: {type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno})"
    return "works"


def outcomes_of(operation, names):
    """Run cells in one fork and yield what came of each; a fork that dies leaves the rest to forks of their own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            for name in names:
                print(json.dumps([name, outcome_of(operation, name)]), file=pipe, flush=True)  # noqa: T201
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        found = dict(json.loads(line) for line in pipe if line.endswith("\n"))
    _, status = os.waitpid(child, 0)
    yield from found.items()
    rest = [name for name in names if name not in found]
    if len(names) == 1 and rest:
        yield names[0], f"died by signal {os.WTERMSIG(status)}"
    elif rest:
        for name in rest:
            yield from outcomes_of(operation, [name])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for harmless in (deep_copy, int8_weights, bfloat16_between_steps):
        harmless("galore")  # what torch imports at its first step (a second) is there for all forks
    gc.collect()
    gc.freeze()  # a collection in a fork would copy the pages of everything that was imported
    table = {}
    for operation, name, _ in cells():
        table.setdefault(operation, []).append(name)
    for operation, names in table.items():
        for name, found in outcomes_of(operation, names):
            print(json.dumps([f"{operation.__name__}-{name}", found]), flush=True)  # noqa: T201
