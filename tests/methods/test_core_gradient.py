"""Core gradients: the same training run, without the gradients of the weights."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.linalg.random import keyed_generator
from featherweight.optim import GaLoreAdamW, LDAdamW, layerwise, param_groups


class Net(nn.Module):
    """Square, tall and wide layers, a bias, a norm, a layer that is used twice and an output head."""

    def __init__(self, dtype=torch.float64, reuse=False):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(24, 40, bias=True)
        self.norm = nn.LayerNorm(40)
        self.square = nn.Linear(40, 40, bias=False)
        self.outer = nn.Linear(40, 24, bias=False)
        self.frozen = nn.Linear(24, 24, bias=False).requires_grad_(False)
        self.reuse = reuse
        self.to(dtype)

    def forward(self, x):
        hidden = self.norm(torch.tanh(self.inner(x)))
        for _ in range(2 if self.reuse else 1):
            hidden = hidden + self.square(hidden).relu()
        return self.frozen(self.outer(hidden))


def batches(count, dtype=torch.float64, rows=12):
    return [torch.randn(rows, 24, generator=keyed_generator(7, i), dtype=dtype) for i in range(count)]


def train(
    model, data, *, accumulation_steps=1, autocast=False, checkpointed=None, optimizer=None, handle=None, **options
):
    """Train and return the losses."""
    options = {"lr": 1e-2, "rank": 4, "update_proj_gap": 3, **options}
    kind, clip = options.pop("kind", GaLoreAdamW), options.pop("clip", "delayed")
    limit = options.pop("max_grad_norm", None)
    optimizer = optimizer or kind(param_groups(model), **options)
    losses = []
    with layerwise(model, optimizer, accumulation_steps=accumulation_steps, clip=clip, max_grad_norm=limit) as handle:
        for x in data:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                if checkpointed is None:
                    y = model(x)
                else:
                    x = x.requires_grad_()
                    y = checkpoint(model, x, use_reentrant=checkpointed)
            loss = (y.float() if autocast else y).square().mean() / accumulation_steps
            loss.backward()
            losses.append(float(loss.detach()))
        assert all(p.grad is None for p in model.parameters())
    return losses, optimizer, handle


def pair(dtype=torch.float64, reuse=False, **method):
    plain = Net(dtype, reuse)
    core = copy.deepcopy(plain)
    fw.apply(core, fw.CoreGradient(prefer="memory", **method))
    return plain, core


def difference(one, other):
    """Return the largest difference of two models' weights, relative to the size of each weight."""
    return max(
        float(((a - b).abs().max() / a.abs().max().clamp_min(1e-30)).detach())
        for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


PROJ_TYPES = ["std", "reverse_std", "left", "right", "full"]


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
@pytest.mark.parametrize("method", ["auto", "svd", "random"])
def test_a_training_run_is_the_same_in_float64(proj_type, method):
    plain, core = pair()
    # The first two-sided core is diagonal; with a smaller eps Adam would divide rounding errors by each other beside it
    options = {"proj_type": proj_type, "basis_method": method, "eps": 1e-6}
    losses, _, _ = train(plain, batches(9), **options)
    found, optimizer, _ = train(core, batches(9), **options)
    # 9 steps with at least 3 refreshes, each of which amplifies rounding.
    assert difference(plain, core) < 1e-10
    assert found == pytest.approx(losses, rel=1e-12)
    assert int(optimizer.state[core.square.weight]["refresh_count"]) >= 3


@pytest.mark.parametrize("refresh", ["thin", "full"])
@pytest.mark.parametrize("proj_type", ["std", "reverse_std"])
def test_a_training_run_is_the_same_in_float32(proj_type, refresh):
    plain, core = pair(torch.float32, refresh=refresh)
    train(plain, batches(9, torch.float32), proj_type=proj_type)
    train(core, batches(9, torch.float32), proj_type=proj_type)
    assert difference(plain, core) < 1e-5


@pytest.mark.parametrize("proj_type", ["left", "right", "full"])
@pytest.mark.parametrize("accumulation_steps", [2, 3])
@pytest.mark.parametrize("clip", ["delayed", "projected", "per_tensor"])
def test_accumulation_is_that_of_whole_gradients(proj_type, accumulation_steps, clip):
    plain, core = pair()
    options = {"accumulation_steps": accumulation_steps, "proj_type": proj_type, "clip": clip, "max_grad_norm": 0.05}
    _, _, expected = train(plain, batches(12), **options)
    _, _, found = train(core, batches(12), **options)
    assert difference(plain, core) < 1e-10
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-10)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_checkpointing_changes_nothing(proj_type, reentrant):
    plain, core = pair()
    train(plain, batches(9), proj_type=proj_type)
    wrapped = _Wrapped(core, reentrant)
    train(wrapped, batches(9), proj_type=proj_type)
    assert difference(plain, core) < 1e-10


class _Wrapped(nn.Module):
    def __init__(self, inner, reentrant):
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x):
        return checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_a_layer_that_is_used_twice_sums_its_cores(proj_type, accumulation_steps):
    """Its whole gradient never exists, so a refresh takes effect a step later; between refreshes nothing differs."""
    plain, core = pair(reuse=True)
    options = {"proj_type": proj_type, "accumulation_steps": accumulation_steps, "update_proj_gap": 1000}
    options |= {"basis_method": "random"}
    train(plain, batches(8), **options)
    train(core, batches(8), **options)
    assert difference(plain, core) < 1e-10


@pytest.mark.parametrize("accumulation_steps", [1, 3])
@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_chunks_sum_their_cores(proj_type, accumulation_steps):
    class Chunked(Net):
        def forward(self, x):
            return fw.chunk(super().forward, x, chunk_size=5)

    torch.manual_seed(0)
    plain, core = Net(), Chunked()
    core.load_state_dict(plain.state_dict())
    fw.apply(core, fw.CoreGradient(prefer="memory"))
    options = {"proj_type": proj_type, "accumulation_steps": accumulation_steps, "basis_method": "random"}
    train(plain, batches(12), **options)
    train(core, batches(12), **options)
    assert difference(plain, core) < 1e-10


def test_chunks_refresh_from_sketches():
    class Chunked(Net):
        def forward(self, x):
            return fw.chunk(super().forward, x, chunk_size=5)

    core = Chunked(torch.float32)
    fw.apply(core, fw.CoreGradient(prefer="memory"))
    losses, optimizer, _ = train(core, batches(1, torch.float32) * 40, proj_type="right")
    assert int(optimizer.state[core.square.weight]["refresh_count"]) >= 13 and losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_autocast_computes_in_16_bits_and_stays_near(proj_type):
    plain, core = pair(torch.float32)
    options = {"autocast": True, "proj_type": proj_type, "update_proj_gap": 100, "basis_method": "random"}
    expected, _, _ = train(plain, batches(6, torch.float32), **options)
    found, _, _ = train(core, batches(6, torch.float32), **options)
    # Rounding to 8 bits at other places: 3e-3 of a gradient; Adam turns that into the same share of a step.
    assert found == pytest.approx(expected, rel=5e-3)


def test_bfloat16_weights_train():
    plain, core = pair(torch.bfloat16)
    expected, _, _ = train(plain, batches(8, torch.bfloat16))
    found, _, _ = train(core, batches(8, torch.bfloat16))
    assert found == pytest.approx(expected, rel=3e-2)  # losses in bfloat16: units of 2^-8


def test_ldadam_refreshes_at_every_step():
    plain, core = pair()
    options = {"kind": LDAdamW, "update_proj_gap": 1, "lr": 1e-3}
    train(plain, batches(8), **options)
    train(core, batches(8), **options)
    assert difference(plain, core) < 1e-9  # eight warm iterations, each amplifies rounding


def test_a_fused_projection_has_a_core_for_each_block():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.qkv_proj = nn.Linear(24, 72, bias=False, dtype=torch.float64)
            self.second = nn.Linear(72, 24, bias=False, dtype=torch.float64)

        def forward(self, x):
            return self.second(self.qkv_proj(x).tanh())

    plain, core = Fused(), Fused()
    fw.apply(core, fw.CoreGradient(prefer="memory"))
    for model in (plain, core):
        optimizer = GaLoreAdamW(param_groups(model, rank=4, split={"qkv": 3}), lr=1e-2, update_proj_gap=3)
        train(model, batches(8), optimizer=optimizer)
    assert difference(plain, core) < 1e-10


def test_conv1d_of_gpt2_is_projected_in_its_own_orientation():
    from transformers.pytorch_utils import Conv1D

    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second = Conv1D(40, 24), Conv1D(24, 40)
            self.double()

        def forward(self, x):
            return self.second(self.first(x).tanh())

    for proj_type in PROJ_TYPES:
        plain, core = Transposed(), Transposed()
        fw.apply(core, fw.CoreGradient(prefer="memory"))
        train(plain, batches(8), proj_type=proj_type)
        train(core, batches(8), proj_type=proj_type)
        assert difference(plain, core) < 1e-10


@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_no_gradient_of_a_weight_exists_and_a_right_basis_keeps_a_thin_product_only(proj_type):
    saved = []

    def pack(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    model = nn.Sequential(nn.Linear(64, 128, bias=False))
    fw.apply(model, fw.CoreGradient())
    optimizer = GaLoreAdamW(param_groups_of(model), lr=1e-3, rank=4, proj_type=proj_type)
    largest = []
    with layerwise(model, optimizer):
        for step in range(3):
            saved.clear()
            x = torch.randn(10, 64, generator=keyed_generator(step), requires_grad=True)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                y = model(x)
            with _Allocations() as allocations:
                y.square().sum().backward()
            largest.append(max(allocations.numels))
    assert (10, 64) in saved if proj_type == "left" else (10, 4) in saved and (10, 64) not in saved
    # After the first step nothing of the weight's 8192 elements is made; the largest is the gradient of the output.
    assert largest[-1] <= 10 * 128


def param_groups_of(model):
    return [{"params": [(f"{i}.weight", layer.weight) for i, layer in enumerate(model)], "rank": 4}]


class _Allocations(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the size of every new tensor."""

    def __enter__(self):
        self.numels = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        inputs = {tensor.untyped_storage().data_ptr() for tensor in _tensors(args)}
        for tensor in _tensors(result):
            if tensor.untyped_storage().data_ptr() not in inputs:
                self.numels.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def _tensors(tree):
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"residual": "fira"}, "residual=fira"),
        ({"rank": 39}, "full-rank"),
        ({"rank": 20}, "FLOPs"),
        ({}, "core, right basis"),
    ],
)
def test_the_report_says_which_weights_leave_cores_and_why_not(options, reason):
    model = Net(torch.float32)
    fw.apply(model, fw.CoreGradient())
    options = {"rank": 4, **options}
    if options["rank"] == 39:
        options["rank"] = 40
    optimizer = GaLoreAdamW(param_groups(model), lr=1e-3, **options)
    with layerwise(model, optimizer):
        model(batches(1, torch.float32)[0]).sum().backward()
        rows = {row[0]: row for row in optimizer.report().section("Core gradients").rows}
    assert reason in rows["square.weight"][1]
    assert "frozen.weight" not in rows


def test_policies_that_need_whole_gradients_get_them():
    for options in ({"residual": "fira"}, {"proj_type": "min_memory"}):
        plain, core = pair()
        train(plain, batches(8), **options)
        train(core, batches(8), **options)
        assert difference(plain, core) < 1e-10


def test_without_a_layerwise_optimizer_gradients_are_ordinary():
    plain, core = pair()
    x = batches(1)[0]
    plain(x).sum().backward()
    core(x).sum().backward()
    for one, other in zip(plain.parameters(), core.parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)


def test_remove_restores_the_model_and_a_copy_is_independent():
    plain, core = pair()
    copied = copy.deepcopy(core)
    fw.remove(core, fw.CoreGradient())
    assert all("forward" not in vars(module) for module in core.modules())
    train(plain, batches(6))
    train(copied, batches(6))
    assert difference(plain, copied) < 1e-10 and difference(plain, core) > 1e-3


def test_a_step_between_forward_and_backward_is_refused_when_it_moved_the_subspace():
    model = Net(torch.float32)
    fw.apply(model, fw.CoreGradient(prefer="memory"))
    optimizer = GaLoreAdamW(param_groups(model), lr=1e-3, rank=4, proj_type="right", update_proj_gap=2, stagger=False)
    x = batches(1, torch.float32)[0]
    with layerwise(model, optimizer) as handle:
        model(x).sum().backward()
        late = model.square(torch.ones(3, 40)).sum()
        for _ in range(2):
            model(x).sum().backward()
        with pytest.raises(
            (ConfigError, fw.errors.NumericsError, RuntimeError), match="in turn|modified by an inplace"
        ):
            late.backward()
        handle.discard()


def test_a_gradient_that_is_not_finite_is_left_out_and_counted():
    for proj_type in ("left", "right"):
        model = Net(torch.float32)
        fw.apply(model, fw.CoreGradient(prefer="memory"))
        optimizer = GaLoreAdamW(param_groups(model), lr=1e-3, rank=4, proj_type=proj_type, update_proj_gap=2)
        with layerwise(model, optimizer):
            for step in range(6):
                before = model.square.weight.detach().clone()
                loss = model(batches(1, torch.float32)[0]).sum()
                (loss * float("nan") if step in (0, 3) else loss).backward()
                assert torch.equal(before, model.square.weight) == (step in (0, 3))
        assert optimizer.skipped_steps == 2 * 6  # tensors
        assert all(p.isfinite().all() for p in model.parameters())


def test_resume_is_bitwise_identical():
    data = batches(12, torch.float32)
    whole = Net(torch.float32)
    fw.apply(whole, fw.CoreGradient(prefer="memory"))
    train(whole, data, accumulation_steps=2)
    first = Net(torch.float32)
    fw.apply(first, fw.CoreGradient(prefer="memory"))
    _, optimizer, _ = train(first, data[:8], accumulation_steps=2)
    second = Net(torch.float32)
    second.load_state_dict(first.state_dict())
    fw.apply(second, fw.CoreGradient(prefer="memory"))
    resumed = GaLoreAdamW(param_groups(second), lr=1e-2, rank=4, update_proj_gap=3)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(second, data[8:], accumulation_steps=2, optimizer=resumed)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_wrong_use_is_refused():
    model = Net(torch.float32)
    with pytest.raises(ConfigError, match="no module"):
        fw.apply(model, fw.CoreGradient(target_modules=["nothing"]))
    with pytest.raises(ConfigError, match="selects no linear"):
        fw.apply(model, fw.CoreGradient(target_modules=["norm"]))
    fw.apply(model, fw.CoreGradient())
    with pytest.raises(ConfigError, match="applied to this model already"):
        fw.apply(model, fw.CoreGradient())


@pytest.mark.parametrize("proj_type", ["left", "right"])
@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_int8_weights_take_the_same_steps(proj_type, accumulation_steps):
    plain = Net(torch.float32)
    fw.apply(plain, fw.Int8())
    core = copy.deepcopy(plain)
    fw.apply(core, fw.CoreGradient(prefer="memory"))
    options = {"proj_type": proj_type, "accumulation_steps": accumulation_steps}
    expected, _, _ = train(plain, batches(12, torch.float32), **options)
    found, optimizer, _ = train(core, batches(12, torch.float32), **options)
    assert int(optimizer.state[core.square.weight]["step"]) == 12 // accumulation_steps
    # The same random numbers round the same updates; another order of sums moves a few codes in a thousand.
    for one, other in zip(plain.modules(), core.modules(), strict=True):
        if hasattr(one, "weight_codes"):
            assert float((one.weight_codes != other.weight_codes).float().mean()) < 5e-3
            assert one.weight_codes.ne(one.weight_codes[:1]).any()
    assert found == pytest.approx(expected, rel=1e-3)


def test_an_int8_conv1d_leaves_cores_too():
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    plain = nn.Sequential(Conv1D(40, 24), nn.Tanh(), Conv1D(24, 40))
    fw.apply(plain, fw.Int8())
    core = copy.deepcopy(plain)
    fw.apply(core, fw.CoreGradient(prefer="memory"))
    expected, _, _ = train(plain, batches(8, torch.float32))
    found, _, _ = train(core, batches(8, torch.float32))
    assert found == pytest.approx(expected, rel=1e-3)


# ---- what a gradient reaches


@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_a_gradient_of_the_input_alone_trains_nothing(proj_type):
    models = pair()
    for model in models:
        optimizer = GaLoreAdamW(param_groups(model), lr=1e-2, rank=4, update_proj_gap=3, proj_type=proj_type)
        with layerwise(model, optimizer) as handle:
            for x in batches(6):
                x = x.requires_grad_()
                torch.autograd.grad(model(x).square().mean(), x)
                model(x).square().mean().backward(inputs=[x])
                assert not list(handle.held_tensors())
                model(x.detach()).square().mean().backward()
    assert difference(*models) < 1e-10


def test_autograd_grad_of_a_weight_is_refused_and_not_an_empty_tensor():
    model = Net()
    fw.apply(model, fw.CoreGradient(prefer="memory"))
    optimizer = GaLoreAdamW(param_groups(model), lr=1e-2, rank=4)
    with layerwise(model, optimizer) as handle:
        with pytest.raises(ConfigError, match=r"torch.autograd.grad asks .* expected loss.backward\(\)"):
            torch.autograd.grad(model(batches(1)[0]).sum(), model.square.weight)
        handle.discard()


@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_hooks_on_a_weight_get_and_change_its_gradient(proj_type):
    models, seen = pair(), []
    for model in models:
        model.square.weight.register_hook(lambda grad: grad * (torch.arange(40) % 2).view(-1, 1))
        model.outer.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.norm().item()))
        _, optimizer, _ = train(model, batches(6), proj_type=proj_type)
    assert difference(*models) < 1e-10
    assert seen[6:] == pytest.approx(seen[:6], rel=1e-10)
    with layerwise(model, optimizer):
        model(batches(1)[0]).sum().backward()
        rows = {row[0]: row[1] for row in optimizer.report().section("Core gradients").rows}
    assert "hook" in rows["square.weight"] and "hook" in rows["outer.weight"] and "core" in rows["inner.weight"]


@pytest.mark.parametrize("kind", ["leaf", "function"])
def test_tensors_that_functional_call_puts_in_get_their_own_gradients(kind):
    models, found = pair(), []
    for model in models:
        optimizer = GaLoreAdamW(param_groups(model), lr=1e-2, rank=4)
        with layerwise(model, optimizer):
            model(batches(1)[0]).square().mean().backward()
            given = {name: p * 1.1 for name, p in model.named_parameters()}
            if kind == "leaf":  # one of them shares the parameter's memory
                given = {name: p.detach().requires_grad_() for name, p in given.items()}
                given["square.weight"] = model.square.weight.detach().requires_grad_()
            torch.func.functional_call(model, given, (batches(1)[0],)).square().mean().backward()
            if kind == "leaf":
                found.append({name: p.grad for name, p in given.items()})
                assert int(optimizer.state[model.square.weight]["step"]) == 1
    assert difference(*models) < 1e-10
    if kind == "leaf":
        for name, grad in found[0].items():
            assert not found[1][name].is_sparse and torch.allclose(grad, found[1][name], rtol=1e-10)


@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_a_weight_that_is_also_used_without_its_layer_gets_both_parts(proj_type):
    class Mixed(Net):
        def forward(self, x):
            hidden = self.norm(torch.tanh(self.inner(x)))
            return self.outer(self.square(hidden).tanh() + nn.functional.linear(hidden, self.square.weight))

    plain = Mixed()
    core = copy.deepcopy(plain)
    fw.apply(core, fw.CoreGradient(prefer="memory"))
    for model in (plain, core):
        train(model, batches(9), proj_type=proj_type)
    assert difference(plain, core) < 1e-10


# ---- ways to call a layer


@pytest.mark.parametrize("int8", [False, True])
def test_outputs_may_be_changed_in_place(int8):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40), nn.ReLU(inplace=True), nn.Linear(40, 24))
    if int8:
        fw.apply(model, fw.Int8())
    plain = copy.deepcopy(model)
    fw.apply(model, fw.CoreGradient(prefer="memory"))
    x = batches(1, torch.float32)[0].view(3, 4, 24)  # a linear layer with a bias returns a view of a flat product
    optimizer = GaLoreAdamW(param_groups(model), lr=1e-2, rank=4)
    with layerwise(model, optimizer):
        y = model(x)
        y.relu_().sum().backward()
    first = plain[0](x)
    assert torch.equal(y, plain[2](first.relu()).relu())
    assert int(optimizer.state[model[0].weight]["step"]) == 1


def test_the_input_may_be_named_and_float64_stays_float64_in_autocast():
    plain, core = pair()
    for model in (plain, core):
        optimizer = GaLoreAdamW(param_groups(model), lr=1e-2, rank=4)
        with layerwise(model, optimizer):
            for x in batches(4):
                with torch.autocast("cpu", torch.bfloat16):
                    y = model.frozen(model.outer(input=model.square(input=model.inner(input=x))))
                assert y.dtype == torch.float64
                y.square().mean().backward()
    assert difference(plain, core) < 1e-10


def test_a_layer_that_is_used_twice_in_checkpoints_keeps_the_same_when_it_is_repeated():
    class Twice(Net):
        def forward(self, x):
            hidden = torch.tanh(self.inner(x))
            for _ in range(2):
                hidden = checkpoint(lambda h: self.square(h).tanh(), hidden, use_reentrant=False)
            return self.outer(hidden)

    plain = Twice()
    core = copy.deepcopy(plain)
    fw.apply(core, fw.CoreGradient(prefer="memory"))
    for model in (plain, core):
        # A random basis comes with the first gradient of a step, in the midst of its backward pass.
        train(model, batches(9), proj_type="right", basis_method="random")
    assert difference(plain, core) < 1e-10


@pytest.mark.parametrize("proj_type", ["left", "right"])
def test_a_gradient_that_is_zero_though_its_factors_are_not_leaves_the_refresh_due(proj_type):
    models = [nn.Sequential(nn.Linear(24, 24, bias=False, dtype=torch.float64)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    fw.apply(models[1], fw.CoreGradient(prefer="memory"))
    for model in models:
        optimizer = GaLoreAdamW(param_groups(model), lr=1e-2, rank=4, update_proj_gap=3, proj_type=proj_type)
        with layerwise(model, optimizer):
            for step, x in enumerate(batches(9)):
                x[:6] = 0
                weights = torch.ones(12, 1, dtype=torch.float64)
                if step in (0, 3):
                    weights[6:] = 0  # gradients at other tokens than inputs
                (model(x).sin() * weights).sum().backward()
    assert difference(*models) < 1e-10


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, while it traces
def test_a_compiled_model_trains_as_it_does_without_a_compiler():
    plain = Net(torch.float32)
    fw.apply(plain, fw.CoreGradient(prefer="memory"))
    compiled = copy.deepcopy(plain)
    for model, call in ((plain, plain), (compiled, torch.compile(compiled, backend="eager"))):
        optimizer = GaLoreAdamW(param_groups(model), lr=1e-2, rank=4, update_proj_gap=3)
        with layerwise(model, optimizer):
            for x in batches(5, torch.float32):
                call(x).square().mean().backward()
        assert int(optimizer.state[model.square.weight]["step"]) == 5
    assert difference(plain, compiled) == 0


# ---- handles that come and go


def test_a_handle_that_is_removed_before_the_backward_pass_says_so():
    model = Net()
    fw.apply(model, fw.CoreGradient(prefer="memory"))
    handle = layerwise(model, GaLoreAdamW(param_groups(model), lr=1e-2, rank=4))
    loss = model(batches(1)[0]).sum()
    handle.remove()
    with pytest.raises(ConfigError, match="removed between forward and backward"):
        loss.backward()


def test_a_part_of_the_model_in_a_reentrant_checkpoint_is_refused_as_without_cores():
    model = Net()
    fw.apply(model, fw.CoreGradient(prefer="memory"))
    x = torch.ones(3, 40, dtype=torch.float64, requires_grad=True)
    with layerwise(model, GaLoreAdamW(param_groups(model), lr=1e-2, rank=4)) as handle:
        with pytest.raises(ConfigError, match="not called as a whole"):
            checkpoint(model.square, x, use_reentrant=True).sum().backward()
        handle.discard()
        assert handle.steps == 0


def test_a_loaded_state_decides_anew_whether_cores_are_enough():
    model = Net(torch.float32)
    fw.apply(model, fw.CoreGradient(prefer="memory"))
    other = Net(torch.float32)
    _, fira, _ = train(other, batches(3, torch.float32), residual="fira")
    optimizer = GaLoreAdamW(param_groups(model), lr=1e-2, rank=4)
    with layerwise(model, optimizer):
        for _ in range(2):
            model(batches(1, torch.float32)[0]).sum().backward()
        optimizer.load_state_dict(copy.deepcopy(fira.state_dict()), adopt=True)
        model(batches(1, torch.float32)[0]).sum().backward()
        rows = optimizer.report().section("Core gradients").rows
    assert all(row[1].startswith("residual=fira") for row in rows)


def test_the_report_names_the_side_that_min_memory_has_chosen():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 60, bias=False), nn.Tanh(), nn.Linear(60, 24, bias=False))
    fw.apply(model, fw.CoreGradient(prefer="memory"))
    optimizer = GaLoreAdamW(param_groups(model), lr=1e-3, rank=4, proj_type="min_memory", basis_bits=4)
    with layerwise(model, optimizer, accumulation_steps=2) as handle:
        for x in batches(7, torch.float32, rows=40):
            model(x).square().mean().backward()
        sides = [("left", "right")[int(optimizer.state[p]["side"])] for p in model.parameters()]
        rows = optimizer.report().section("Core gradients").rows
        # The last micro-batch is the first one of a window without a refresh.
        assert sum(tensor.nbytes for _, tensor in handle.held_tensors()) == optimizer.gradient_bytes()
        handle.discard()
    assert "left" in sides[0] and [row[1] for row in rows] == [f"core, {side} basis" for side in sides]


def test_a_saved_model_is_patched_like_the_original():
    plain, core = pair()
    optimizer = GaLoreAdamW(param_groups(core), lr=1e-2, rank=4, proj_type="right")
    file = io.BytesIO()
    with layerwise(core, optimizer):
        core(batches(1)[0]).sum().backward()
        plain.load_state_dict(core.state_dict())
        torch.save(core, file)  # a running optimizer stays behind
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    train(plain, batches(6))
    _, optimizer, handle = train(loaded, batches(6))
    assert difference(plain, loaded) < 1e-10
    assert [row[0] for row in handle.core_rows()] == ["inner.weight", "square.weight", "outer.weight"]
    fw.remove(loaded, fw.CoreGradient())
    assert all("forward" not in vars(module) for module in loaded.modules())


def test_a_measurement_does_not_change_what_is_measured():
    model = Net(torch.float32)
    fw.apply(model, fw.CoreGradient(prefer="memory"))
    optimizer = GaLoreAdamW(param_groups(model), lr=1e-2, rank=4, proj_type="right")
    with layerwise(model, optimizer):
        for _ in range(2):
            model(batches(1, torch.float32)[0]).sum().backward()
        with fw.measure_memory(model, optimizer) as memory:
            model(batches(1, torch.float32)[0]).sum().backward()
        assert memory.max_by_category["gradients"] == 2 * 4 * 40  # both vectors of the norm, and no matrix


def test_gradient_penalties_and_transforms_are_refused_in_a_sentence_and_functional_calls_are_right():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)), torch.randn(5, 64, requires_grad=True)
    fw.apply(model, fw.CoreGradient())
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    def loss(weights):
        return torch.func.functional_call(model, weights, (x.detach(),)).square().sum()

    expected = torch.func.grad(loss)(weights)
    optimizer = fw.optim.GaLoreAdamW(fw.optim.param_groups(model, rank=8), lr=0.0, proj_type="right")
    with fw.optim.layerwise(model, optimizer):
        for _ in range(2):
            model(x).square().mean().backward()
        (plain,) = torch.autograd.grad(model(x).sum(), x)
        assert plain.shape == x.shape
        with pytest.raises(ConfigError, match="create_graph=True"):
            torch.autograd.grad(model(x).sum(), x, create_graph=True)
        for transform in (torch.func.grad(lambda x: model(x).sum()), torch.func.vmap(model)):
            with pytest.raises(ConfigError, match="torch.func transforms"):
                transform(x)
        found = torch.func.grad(loss)(weights)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
