"""One right basis for layers with the same input: the run of one fused layer, with one thin product kept."""

import copy
import gc
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import featherweight as fw
from featherweight.linalg.random import keyed_generator
from featherweight.optim import GaLoreAdamW, LDAdamW, layerwise, param_groups
from featherweight.optim.backward.updates import core_receiver
from featherweight.optim.reduce import LocalReducer

ROWS = {"q_proj": 40, "k_proj": 16, "v_proj": 24}
LOW_RANK = {"rank": 4, "update_proj_gap": 3, "proj_type": "right"}


class Attention(nn.Module):
    """Three layers with one input, no two of a size; `used` of them take part."""

    def __init__(self, dtype=torch.float64, used=tuple(ROWS)):
        super().__init__()
        torch.manual_seed(0)
        for name, rows in ROWS.items():
            self.add_module(name, nn.Linear(24, rows, bias=name == "k_proj"))
        self.out = nn.Linear(sum(ROWS.values()), 24, bias=False)
        self.used = used
        self.to(dtype)

    def heads(self, x):
        return torch.cat(
            [getattr(self, n)(x) if n in self.used else x.new_zeros(*x.shape[:-1], ROWS[n]) for n in ROWS], -1
        )

    def forward(self, x):
        return self.out(self.heads(x + 0.0).tanh())


class Fused(nn.Module):
    """The same as one layer."""

    def __init__(self, parts):
        super().__init__()
        self.qkv = nn.Linear(24, sum(ROWS.values()), dtype=torch.float64)
        self.out = copy.deepcopy(parts.out)
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([getattr(parts, name).weight for name in ROWS]))
            self.qkv.bias.zero_()
            self.qkv.bias[40:56] = parts.k_proj.bias
        is_k = torch.zeros(80, dtype=torch.float64)
        is_k[40:56] = 1
        self.qkv.bias.register_hook(lambda grad: grad * is_k)  # the others have none

    def forward(self, x):
        return self.out(self.qkv(x).tanh())


class TwoProcesses(LocalReducer):
    """Two processes with the same data: their means are what each has. No process may fit a basis alone."""

    world_size = 2


def batches(count, dtype=torch.float64, rows=12):
    return [torch.randn(rows, 24, generator=keyed_generator(3, i), dtype=dtype) for i in range(count)]


def share(model, **options):
    return fw.apply(model, fw.CoreGradient(prefer="memory", share_basis=True, **options))


def build(model, kind=GaLoreAdamW, **options):
    """Return an optimizer with bases for the layers that read x, in this order, and none for the rest."""
    named = dict(model.named_parameters())
    low = [(n, p) for n, p in named.items() if p.ndim == 2 and not n.startswith("out")]
    rest = [(n, p) for n, p in named.items() if p.ndim == 1 or n.startswith("out")]
    keys = {**LOW_RANK, **options}
    return kind([{"params": low, **keys}, {"params": rest}], lr=1e-2, eps=1e-6)


def train(model, data, optimizer, *, reducer=None, run=None, **options):
    """Train; return the losses and the norms of the gradients."""
    losses, norms = [], []
    accumulation_steps = options.get("accumulation_steps", 1)
    with layerwise(model, optimizer, reducer=reducer, **options) as handle:
        for number, x in enumerate(data, 1):
            y = (run or model)(x)
            loss = y.float().square().mean() if y.dtype != torch.float64 else y.square().mean()
            (loss / accumulation_steps).backward()
            losses.append(float(loss.detach()))
            if number % accumulation_steps == 0:
                norms.append(handle.grad_norm)
    return losses, norms


def bases(model, optimizer):
    return [optimizer.state[getattr(model, name).weight]["basis_right"] for name in ROWS]


def weights(model):
    return torch.cat([getattr(model, name).weight.detach() for name in ROWS])


@pytest.mark.parametrize("kind", [GaLoreAdamW, LDAdamW])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("clip", ["delayed", "projected"])
def test_a_group_trains_as_one_fused_layer(kind, accumulation_steps, clip):
    parts = Attention()
    whole = Fused(parts)
    share(parts)
    fw.apply(whole, fw.CoreGradient(prefer="memory"))
    options = {"update_proj_gap": 1} if kind is LDAdamW else {}
    settings = {"accumulation_steps": accumulation_steps, "clip": clip, "max_grad_norm": 0.02}
    found, expected = (build(model, kind, **options) for model in (parts, whole))
    losses, norms = train(parts, batches(16), found, **settings)
    wanted, wanted_norms = train(whole, batches(16), expected, reducer=TwoProcesses(), **settings)
    steps = 16 // accumulation_steps
    assert int(expected.state[whole.qkv.weight]["refresh_count"]) >= steps // 3
    assert losses == pytest.approx(wanted, rel=1e-10) and norms == pytest.approx(wanted_norms, rel=1e-10)
    assert (weights(parts) - whole.qkv.weight).abs().max() < 1e-10
    one, two, three = bases(parts, found)
    assert torch.equal(one, two) and torch.equal(one, three)
    assert (one - expected.state[whole.qkv.weight]["basis_right"]).abs().max() < 1e-9


@pytest.mark.parametrize("max_grad_norm", [None, math.inf])
@pytest.mark.parametrize("share_basis", [True, False])
def test_one_thin_product_is_kept_for_a_group(share_basis, max_grad_norm):
    model = Attention(torch.float32)
    fw.apply(model, fw.CoreGradient(prefer="memory", share_basis=share_basis))
    optimizer = build(model, update_proj_gap=100, stagger=False)
    train(model, batches(1, torch.float32), optimizer)
    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tuple(tensor.shape)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with layerwise(model, optimizer, max_grad_norm=max_grad_norm), hooks:
        y = model(batches(1, torch.float32)[0])
        thin = [shape for shape in saved.values() if shape == (12, 4 + 8 * (max_grad_norm is not None))]
        assert len(thin) == (1 if share_basis else 3)
        assert (12, 24) not in saved.values()  # neither x nor a copy of it
        y.sum().backward()


def test_the_product_is_of_the_input_as_it_is_now_and_keeps_nothing_alive():
    model = Attention()
    share(model)
    optimizer = build(model, update_proj_gap=100, stagger=False)
    train(model, batches(1), optimizer)
    with layerwise(model, optimizer):
        model(batches(1)[0]).sum().backward()  # makes the slots
        shared = core_receiver(model.q_proj.weight, prefer="memory", exact_refresh=False).shared
        x = torch.randn(5, 24, dtype=torch.float64)
        first = shared.product(x, x)
        assert shared.product(x, x) is first
        x.mul_(2)  # another version
        assert torch.allclose(shared.product(x, x), 2 * first)
        other = (x + 1).mul_(1)  # another tensor, with as many changes
        assert other._version == x._version
        assert torch.allclose(shared.product(other, other) - shared.product(x, x), shared.product(x / x, x / x))
        assert shared.product(other, other.float()).dtype == torch.float32  # as in autocast
        value = shared.product(x, x)
        watched = torch.utils.weak.TensorWeakRef(value)
        del value, x, other
        gc.collect()
        assert watched() is None


def test_all_members_refresh_together_and_none_keeps_the_others_waiting():
    model = Attention(torch.float32)
    model.v_proj.weight.requires_grad_(False)
    share(model)
    optimizer = build(model)
    train(model, batches(3, torch.float32), optimizer)
    model.used = ("q_proj",)  # k has no gradient now
    before = model.k_proj.weight.detach().clone()
    train(model, batches(5, torch.float32), optimizer)
    q, k = (optimizer.state[each.weight] for each in (model.q_proj, model.k_proj))
    assert torch.equal(before, model.k_proj.weight)
    assert int(q["step"]) == 8 and int(k["step"]) == 3
    assert torch.equal(q["basis_right"], k["basis_right"]) and int(q["refresh_count"]) == int(k["refresh_count"]) == 3
    model.used = tuple(ROWS)
    losses, _ = train(model, batches(8, torch.float32), optimizer)
    assert int(k["step"]) == 11 and torch.equal(q["basis_right"], k["basis_right"])
    model.used = ("k_proj",)  # its own count of steps is behind, and yet its gap is 3
    count = int(k["refresh_count"])
    train(model, batches(4, torch.float32), optimizer)
    assert count < int(k["refresh_count"]) == int(q["refresh_count"]) and int(q["step"]) == 16
    assert not optimizer.state[model.v_proj.weight]


def test_a_member_that_comes_late_takes_the_basis_of_the_others():
    model = Attention(torch.float32, used=("q_proj", "v_proj"))
    share(model)
    optimizer = build(model)
    train(model, batches(5, torch.float32), optimizer)
    model.used = tuple(ROWS)
    train(model, batches(5, torch.float32), optimizer)
    one, two, three = bases(model, optimizer)
    assert torch.equal(one, two) and torch.equal(one, three)
    assert [int(optimizer.state[getattr(model, n).weight]["step"]) for n in ROWS] == [10, 5, 10]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_checkpoints_change_nothing(reentrant, accumulation_steps):
    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x.requires_grad_(), use_reentrant=reentrant)

    plain, inner = Attention(), Attention()
    share(plain)
    share(inner)
    settings = {"accumulation_steps": accumulation_steps}
    expected = train(plain, batches(12), build(plain), **settings)
    found = train(Wrapped(inner), batches(12), build(inner), **settings)
    assert found[0] == pytest.approx(expected[0], rel=1e-12) and found[1] == pytest.approx(expected[1], rel=1e-12)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_chunks_are_summed(accumulation_steps):
    plain, chunked = Attention(), Attention()
    share(plain)
    share(chunked)
    settings = {"accumulation_steps": accumulation_steps}
    found_optimizer = build(chunked)

    class Chunked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = chunked

        def forward(self, x):
            return fw.chunk(self.inner, x, chunk_size=5)

    expected = train(plain, batches(12), build(plain), **settings)
    found = train(Chunked(), batches(12), found_optimizer, **settings)
    assert found[0] == pytest.approx(expected[0], rel=1e-10) and found[1] == pytest.approx(expected[1], rel=1e-10)
    assert int(found_optimizer.state[chunked.q_proj.weight]["refresh_count"]) >= 12 // accumulation_steps // 3


def test_autocast_computes_in_16_bits_and_stays_near():
    def in_bf16(model):
        def run(x):
            with torch.autocast("cpu", torch.bfloat16):
                return model(x)

        return run

    plain, cast = Attention(torch.float32), Attention(torch.float32)
    share(plain)
    share(cast)
    expected, _ = train(plain, batches(9, torch.float32), build(plain))
    found, _ = train(cast, batches(9, torch.float32), build(cast), run=in_bf16(cast))
    assert found == pytest.approx(expected, rel=1e-2)  # 8 bits at every product


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_int8_weights_stay_near_float_ones(accumulation_steps):
    plain, coded = Attention(torch.float32), Attention(torch.float32)
    fw.apply(coded, fw.Int8())
    share(plain)
    share(coded)
    settings = {"accumulation_steps": accumulation_steps}
    expected, _ = train(plain, batches(12, torch.float32), build(plain), **settings)
    optimizer = build(coded)
    found, _ = train(coded, batches(12, torch.float32), optimizer, **settings)
    assert found == pytest.approx(expected, rel=5e-2)  # weights of 8 bits
    assert found[-1] < found[0]
    one, two, three = bases(coded, optimizer)
    assert torch.equal(one, two) and torch.equal(one, three)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("options", [{}, {"state_bits": 8, "basis_bits": 4, "lazy": True}])
def test_resume_is_bitwise_identical(accumulation_steps, options):
    data = batches(16, torch.float32)
    settings = {"accumulation_steps": accumulation_steps}
    whole, first, second = (Attention(torch.float32) for _ in range(3))
    for model in (whole, first, second):
        share(model)
    train(whole, data, build(whole, **options), **settings)
    optimizer = build(first, **options)
    train(first, data[:6], optimizer, **settings)
    second.load_state_dict(first.state_dict())
    resumed = build(second, **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(second, data[6:], resumed, **settings)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("tokens", [1, 7, 0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_16_bits_and_odd_numbers_of_tokens(dtype, tokens):
    model = Attention(dtype)
    share(model)
    optimizer = build(model)
    data = [*batches(2, dtype, 8), *batches(3, dtype, tokens), *batches(2, dtype, 8)]
    with layerwise(model, optimizer):
        for x in data:
            model(x[:, None]).float().square().sum().backward()
    one, two, three = bases(model, optimizer)
    assert one.dtype == dtype and torch.equal(one, two) and torch.equal(one, three)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert int(optimizer.state[model.q_proj.weight]["refresh_count"]) >= 2


def test_a_lazy_refresh_has_one_gap_for_all():
    model = Attention(torch.float32)
    share(model)
    optimizer = build(model, lazy={"threshold": 0.01, "queue_size": 1, "max_gap": 12}, update_proj_gap=2)
    train(model, batches(1, torch.float32) * 40, optimizer)
    states = [optimizer.state[getattr(model, name).weight] for name in ROWS]
    assert {int(state["refresh_gap"]) for state in states} == {12}
    assert len({int(state["next_refresh"]) for state in states}) == 1
    assert all(torch.equal(states[0]["similarities"], state["similarities"]) for state in states)


def test_a_run_with_bases_of_their_own_is_continued_with_one():
    model = Attention(torch.float32)
    optimizer = build(model, update_proj_gap=4, stagger=False)
    train(model, batches(5, torch.float32), optimizer)
    one, two, _ = bases(model, optimizer)
    assert not torch.equal(one, two)
    before = one.clone()
    share(model)
    train(model, batches(1, torch.float32), optimizer)  # no refresh is due
    assert all(torch.equal(each, before) for each in bases(model, optimizer))
    losses, _ = train(model, batches(6, torch.float32), optimizer)
    one, two, three = bases(model, optimizer)
    assert torch.equal(one, two) and torch.equal(one, three) and losses[-1] < losses[0]
    fw.remove(model, fw.CoreGradient())
    train(model, batches(6, torch.float32), optimizer)  # and the other way round
    one, two, _ = bases(model, optimizer)
    assert not torch.equal(one, two)


def test_a_gradient_that_is_not_finite_stops_its_own_weight_alone():
    model = Attention(torch.float32)
    share(model)
    optimizer = build(model)
    bad = [False]

    def spoil(module, args, y):
        y.register_hook(lambda grad: grad * float("nan") if bad[0] else grad)

    model.q_proj.register_forward_hook(spoil)
    with layerwise(model, optimizer):
        for step in range(7):
            bad[0] = step in (0, 3)  # both steps refresh
            before = weights(model)
            model(batches(1, torch.float32)[0]).square().sum().backward()
            changed = (weights(model) != before).any(1)
            assert changed[:40].any() == (not bad[0]) and changed[40:].any()
    assert weights(model).isfinite().all() and optimizer.skipped_steps == 2
    one, two, three = bases(model, optimizer)
    assert one.isfinite().all() and torch.equal(one, two) and torch.equal(one, three)


def test_a_backward_pass_that_breaks_off_leaves_a_group_whole():
    model = Attention(torch.float32)
    share(model)
    optimizer = build(model)
    broken = [False]

    def maybe_break(_):
        if broken[0]:
            raise RuntimeError("stop")

    def watch(module, args, output):  # the last of the three: the others have made their step
        output.register_hook(maybe_break)

    model.q_proj.register_forward_hook(watch)
    with layerwise(model, optimizer) as handle:
        for step in range(9):
            broken[0] = step in (0, 4)
            loss = model(batches(1, torch.float32)[0]).square().sum()
            if broken[0]:
                with pytest.raises(RuntimeError, match="stop"):
                    loss.backward()
                handle.discard()
            else:
                loss.backward()
    one, two, three = bases(model, optimizer)
    assert torch.equal(one, two) and torch.equal(one, three)
    assert int(optimizer.state[model.q_proj.weight]["refresh_count"]) >= 2


@pytest.mark.parametrize("used", [tuple(ROWS), ("k_proj", "v_proj")])
def test_a_weight_may_get_a_whole_gradient_beside_its_core(used):
    """A penalty on a weight comes as a tensor; the basis stays that of the group."""
    plain, core = Attention(used=used), Attention(used=used)
    fw.apply(core, fw.CoreGradient(prefer="memory", share_basis=True))
    optimizer = build(core)

    def run_with_penalty(x):
        return core(x) + core.q_proj.weight.square().sum()

    losses, _ = train(core, batches(8), optimizer, run=run_with_penalty)
    one, two, three = bases(core, optimizer)
    assert torch.equal(one, two) and torch.equal(one, three) and losses[-1] < losses[0]
    moved = (core.q_proj.weight - plain.q_proj.weight).abs().max()
    assert moved > 1e-3 and int(optimizer.state[core.q_proj.weight]["step"]) == 8


def test_a_copy_is_independent_and_remove_restores_the_model():
    model = Attention()
    share(model)
    copied = copy.deepcopy(model)
    expected, _ = train(model, batches(6), build(model))
    found, _ = train(copied, batches(6), build(copied))
    assert found == expected and torch.equal(weights(model), weights(copied))
    fw.remove(copied, fw.CoreGradient())
    assert all("forward" not in vars(module) for module in copied.modules())


def rows_of(model, optimizer):
    with layerwise(model, optimizer):
        model(batches(1, model.out.weight.dtype)[0]).sum().backward()
        return {row[0].removesuffix(".weight"): row[1] for row in optimizer.report().section("Core gradients").rows}


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        ({}, {"q_proj": "of 3 weights", "k_proj": "of 3 weights", "v_proj": "of 3 weights"}),
        ({"proj_type": "left"}, {"q_proj": "side=left", "k_proj": "side=left"}),
        # std: k (16 x 24) is projected from the left
        ({"proj_type": "std"}, {"q_proj": "of 2 weights", "k_proj": "side=left", "v_proj": "of 2 weights"}),
        ({"basis_method": "random"}, {"q_proj": "random basis"}),
        ({"proj_type": "min_memory"}, {"q_proj": "min_memory"}),
        ({"split": {"k_proj": 2}}, {"q_proj": "of 2 weights", "k_proj": "split into 2"}),
        ({"rank": 0.25}, {"q_proj": "of 2 weights", "k_proj": "rank=4 differs from 6", "v_proj": "of 2 weights"}),
        ({"rank": 16}, {"q_proj": "of 2 weights", "k_proj": "full-rank"}),
        ({"residual": "fira"}, {"q_proj": "residual=fira"}),
    ],
)
def test_the_report_says_who_shares_and_who_does_not(options, reasons):
    model = Attention(torch.float32)
    share(model)
    found = rows_of(model, build(model, **options))
    for name, reason in reasons.items():
        assert reason in found[name]


def test_weights_of_several_parameter_groups_do_not_share():
    model = Attention(torch.float32)
    share(model)
    q, k, v = ((f"{name}.weight", getattr(model, name).weight) for name in ROWS)
    groups = [{"params": [q, v], **LOW_RANK}, {"params": [k], **LOW_RANK, "scale": 1.0}]
    found = rows_of(model, GaLoreAdamW(groups, lr=1e-2))
    assert "of 2 weights" in found["q_proj"] and "parameter group" in found["k_proj"]


def test_a_llama_shares_and_learns():
    from featherweight.models import load_model

    torch.manual_seed(0)
    model = load_model("tiny").train()
    report = share(model)
    shared = report.section("Shared bases").rows
    assert len(shared) == 2 * model.config.num_hidden_layers and all("may share" in row[1] for row in shared)
    optimizer = GaLoreAdamW(param_groups(model, rank=8, update_proj_gap=3, proj_type="right"), lr=1e-2)
    tokens = torch.arange(64).view(2, 32) % 7
    losses = []
    with layerwise(model, optimizer, max_grad_norm=1.0):
        for _ in range(8):
            loss = model(tokens, labels=tokens).loss
            loss.backward()
            losses.append(float(loss.detach()))
        rows = [row[1] for row in optimizer.report().section("Core gradients").rows]
    assert losses[-1] < 0.7 * losses[0]
    layers = model.config.num_hidden_layers
    assert sum("of 3 weights" in row for row in rows) == 3 * layers
    assert sum("of 2 weights" in row for row in rows) == 2 * layers
