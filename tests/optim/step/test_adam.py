"""Which of the ways to compute an inner update ran, that the report says so, and that lists have the bits of one."""

import copy

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.optim import (
    AdamW,
    GaLoreAdamW,
    TensorGaLoreAdamW,
    build_optimizer,
    optimizers,
    param_groups,
    parse_optimizer,
)
from featherweight.optim.policies.rules import AdamWRule
from featherweight.optim.step import adam
from featherweight.optim.step.adam import adamw_directions, scratch_bytes


def ran(optimizer):
    """Return the rows of the report after one step with gradients of ones."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    return {words: count for words, count in _table(optimizer)}


def _table(optimizer):
    return [list(row) for row in optimizer.report().section("Inner updates of the last step").rows]


def weight(*shape, dtype=torch.float32):
    return nn.Parameter(torch.ones(shape, dtype=dtype))


def test_nothing_ran_before_the_first_step():
    assert "Inner updates" not in AdamW([weight(4, 4)]).report().to_json()


def test_torchs_fused_kernel_updates_parameters_and_moments_of_one_dtype():
    assert ran(AdamW([weight(4, 4), weight(3)])) == {"torch's fused kernel": 2}


@pytest.mark.parametrize("rule", ["adamw", "sgd", "adafactor", "muon"])
def test_without_kernels_rules_are_pytorchs_operations(rule):
    # Mutation: a kernel for AdamW that takes the core of another rule.
    with fw.kernels.use("torch"):
        groups = [{"params": [weight(8, 16)], "rank": 2}, {"params": [weight(8, dtype=torch.bfloat16)]}]
        found = ran(GaLoreAdamW(groups, rule=rule))
    assert found == {"PyTorch operations": 2}


def test_lists_update_cores_where_launches_cost_more_than_work(monkeypatch):
    monkeypatch.setattr(adam, "IN_PLACE_DEVICES", ())
    with fw.kernels.use("torch"):
        assert ran(GaLoreAdamW([weight(8, 16), weight(16, 8)], rank=2)) == {"lists of tensors": 2}
        assert ran(GaLoreAdamW([weight(8, 16)], rank=2, residual="fira")) == {"PyTorch operations": 1}


def test_complex_numbers_have_a_rule_of_their_own():
    optimizer = TensorGaLoreAdamW(
        [weight(8, 8, 4, 4, dtype=torch.complex64), weight(3, dtype=torch.complex64)], rank=0.25
    )
    assert ran(optimizer) == {"PyTorch operations, complex": 2}


def test_layerwise_updates_are_told_too():
    model = nn.Sequential(nn.Linear(16, 8, bias=False))
    optimizer = GaLoreAdamW(model.parameters(), rank=2)
    with fw.kernels.use("torch"), fw.optim.layerwise(model, optimizer, accumulation_steps=2):
        for _ in range(2):
            model(torch.ones(3, 16)).square().sum().backward()
    assert _table(optimizer) == [["PyTorch operations", 1]]


# ---- lists of tensors


@pytest.fixture
def plain_operations():
    """A kernel for the CPU would take the cores one by one."""
    with fw.kernels.use("torch"):
        yield


in_lists = pytest.mark.usefixtures("plain_operations")

SHAPES = [(7, 11), (11, 7), (1, 5), (13, 13), (3, 2)]


def random(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@in_lists
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps_mode", ["torch", "official"])
def test_directions_of_a_list_have_the_bits_of_the_rule(dtype, eps_mode):
    # Every tensor has its own step count. Mutations: one count for all, eps after the wrong correction.
    group = {"betas": (0.9, 0.99), "eps": 1e-4, "eps_mode": eps_mode}
    single = [{name: torch.zeros(s, dtype=dtype) for name in ("exp_avg", "exp_avg_sq")} for s in SHAPES]
    joint = copy.deepcopy(single)
    for step in range(1, 4):
        cores = [random(shape, 10 * step + i, dtype) for i, shape in enumerate(SHAPES)]
        steps = [step + i for i in range(len(SHAPES))]
        kept = [core.clone() for core in cores]
        ours = adamw_directions(cores, joint, steps, group)
        for each in zip(ours, cores, kept, single, joint, steps, strict=True):
            direction, core, before, moments, moved, count = each
            assert torch.equal(direction, AdamWRule().direction(core, moments, count, group))
            assert all(torch.equal(moments[name], moved[name]) for name in moments)
            assert torch.equal(core, before)


class Mixed(nn.Module):
    """Matrices of every kind that a step may meet, and one that no update may reach through a copy alone."""

    def __init__(self, dtype):
        super().__init__()
        self.tall, self.wide = nn.Parameter(random((40, 24), 1, dtype)), nn.Parameter(random((24, 40), 2, dtype))
        self.qkv = nn.Parameter(random((36, 30), 3, dtype))
        self.experts = nn.Parameter(random((4, 20, 28), 4, dtype))
        self.strided = nn.Parameter(random((30, 26), 5, dtype).T)
        self.norm = nn.Parameter(random((24,), 6, dtype))

    def fill(self, step):
        """Give gradients: one expert is not used, one matrix has a NaN at step 3, one gets none at step 4."""
        for index, (name, p) in enumerate(self.named_parameters()):
            p.grad = random(p.shape, 100 * step + index, p.dtype)
            if name == "experts":
                p.grad[step % 4] = 0
            if name == "wide" and step == 3:
                p.grad[2, 5] = float("nan")
            if name == "tall" and step == 4:
                p.grad = None


def train(module, optimizer, first, last):
    for step in range(first, last):
        module.fill(step)
        optimizer.step()


def force(monkeypatch, scratch=adam.SCRATCH_BYTES):
    """Batch on the CPU too; return the lengths of the lists that are updated together."""
    lengths = []

    def spy(cores, *rest):
        lengths.append(len(cores))
        return adamw_directions(cores, *rest)

    monkeypatch.setattr(adam, "IN_PLACE_DEVICES", ())
    monkeypatch.setattr(adam, "adamw_directions", spy)
    monkeypatch.setattr(adam, "SCRATCH_BYTES", scratch)
    return lengths


def assert_same(one, other):
    for (a, optimizer), (b, twin) in [(one, other)]:
        assert optimizer.skipped_steps == twin.skipped_steps
        for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
            assert torch.equal(p, q), name
            state, expected = optimizer.state[p], twin.state[q]
            assert state.keys() == expected.keys()
            assert all(torch.equal(value, expected[key]) for key, value in state.items()), name


OPTIONS = {
    "plain": {},
    "two sides": {"proj_type": "full"},
    "cheaper side": {"proj_type": "min_memory"},
    "codes": {"state_bits": 8, "basis_bits": 4},
    "official": {"eps_mode": "official", "decay_order": "after", "weight_decay": 0.1},
    "drawn": {"basis_method": "random"},
    "fira": {"residual": "fira"},
    "sgd": {"rule": "sgd"},
}


@in_lists
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_mixed_step_has_the_bits_of_single_updates(monkeypatch, dtype, options):
    def build():
        module = Mixed(dtype)
        group = {"params": list(module.named_parameters()), "rank": 5, "split": {"qkv": 3}}
        return module, GaLoreAdamW([group], lr=0.01, **{"update_proj_gap": 3, **options})

    module, optimizer = build()
    train(module, optimizer, 0, 8)
    lengths = force(monkeypatch)
    twin, batching = build()
    train(twin, batching, 0, 8)
    assert_same((module, optimizer), (twin, batching))
    is_batched = not {"residual", "rule"} & options.keys()
    # tall and wide, three parts of qkv, three of four experts; the strided one is written through a copy.
    assert (lengths == [8, 8, 8, 7, 7, 8, 8, 8]) is is_batched and bool(lengths) is is_batched


@in_lists
def test_a_run_resumes_from_the_one_path_in_the_other(monkeypatch):
    def build():
        module = Mixed(torch.bfloat16)
        groups = [{"params": list(module.parameters())[:2], "rank": 4}, {"params": [module.experts], "rank": 3}]
        return module, GaLoreAdamW(groups, lr=0.01, update_proj_gap=4)

    module, optimizer = build()
    train(module, optimizer, 0, 3)
    twin, resumed = build()
    twin.load_state_dict(module.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.skipped_steps = optimizer.skipped_steps
    train(module, optimizer, 3, 9)
    lengths = force(monkeypatch)
    train(twin, resumed, 3, 9)
    assert set(lengths) == {1, 2, 3}  # each group by itself: their options may differ
    for name in ("tall", "wide", "experts"):
        assert torch.equal(getattr(module, name), getattr(twin, name))


@in_lists
def test_int8_weights_are_batched_with_the_same_codes(monkeypatch):
    def run():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 64))
        fw.apply(model, fw.Int8(target_modules="all-linear"))
        optimizer = GaLoreAdamW(param_groups(model, rank=4), lr=0.05, update_proj_gap=3)
        for step in range(5):
            model(random((8, 64), step)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    expected = run()
    lengths = force(monkeypatch)
    for key, value in run().items():
        assert torch.equal(value, expected[key]), key
    assert set(lengths) == {2}


@in_lists
@pytest.mark.parametrize("name", optimizers.names())
def test_every_optimizer_has_the_same_bits(monkeypatch, name):
    def run():
        module = Mixed(torch.float32)
        low_rank = {} if name.startswith(("adamw", "scale")) else {"update_proj_gap": 3}
        if low_rank and name != "apollo_mini":
            low_rank["rank"] = 5
        module.first, module.second = nn.Linear(30, 20), nn.Linear(20, 30)
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(random(p.shape, p.numel()))
        optimizer = build_optimizer(module, parse_optimizer({"name": name, "lr": 0.01, **low_rank}), seed=1)
        train(module, optimizer, 0, 7)
        return module, optimizer

    expected = run()
    force(monkeypatch)
    assert_same(run(), expected)


@in_lists
def test_what_waits_never_exceeds_the_limit_however_many_matrices_there_are(monkeypatch):
    weights = [nn.Parameter(random((16, 32), seed)) for seed in range(10)]
    optimizer = GaLoreAdamW([{"params": weights, "rank": 4}], lr=0.01)
    each = scratch_bytes(optimizer.layouts[weights[0]])
    assert each == 3 * 4 * 32 * 4
    lengths = force(monkeypatch, 3 * each + 1)
    for p in weights:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert lengths == [3, 3, 3, 1]
    # A matrix above the limit goes alone.
    lengths.clear()
    monkeypatch.setattr(adam, "SCRATCH_BYTES", 1)
    optimizer.step()
    assert lengths == [1] * 10


@in_lists
def test_cores_on_a_cpu_are_updated_one_by_one():
    assert "cpu" in adam.IN_PLACE_DEVICES
    with fw.kernels.use("torch"):
        assert ran(GaLoreAdamW([weight(8, 16), weight(16, 8)], rank=2)) == {"PyTorch operations": 2}
