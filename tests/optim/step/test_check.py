"""Nothing reaches a kernel that was not compared, sizes and finiteness are right, and few waits tell all of it."""

import copy

import pytest
import torch
from torch import Tensor, nn

import featherweight as fw
from featherweight.errors import ConfigError, DeviceError, ShapeError
from featherweight.optim import AdamW, Fira, GaLoreAdamW, QGaLoreAdamW, layerwise
from featherweight.optim.step import adam
from featherweight.optim.step.check import TILE_ELEMENTS, are_finite, norm_of, sizes_of
from featherweight.quant import rounding

WAITS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy")


class Waits:
    """Counts what would make a host wait for its device; integers are counters, which live on the CPU anyway.

    It replaces methods of the class Tensor: hooks inside a backward pass see no modes of torch.
    """

    def __init__(self):
        self.count = 0

    def __enter__(self):
        self._patch = pytest.MonkeyPatch()
        for name in WAITS:
            self._patch.setattr(Tensor, name, self._counting(getattr(Tensor, name)))
        return self

    def __exit__(self, *_):
        self._patch.undo()

    def _counting(self, method):
        def counted(tensor, *args, **kwargs):
            self.count += tensor.dtype != torch.int64
            return method(tensor, *args, **kwargs)

        return counted


def test_every_kind_of_wait_is_counted_and_counters_are_not():
    value = torch.ones(())
    calls = (Tensor.item, Tensor.tolist, float, int, bool)
    with Waits() as waits:
        for call in calls:
            call(value)
        value.item(), value.tolist(), value.cpu(), value.numpy()
        int(torch.ones((), dtype=torch.int64))
    assert waits.count == 3 + 4  # the first two of `calls` were taken from the class before
    bool(value)
    assert waits.count == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sizes_are_exact_at_every_magnitude_and_read_with_one_wait(dtype):
    tensors = [torch.full((3, 5), value, dtype=dtype) for value in (1.0, -0.5, 3e4)]
    flags = [torch.tensor([True, False]), torch.tensor(True)]
    with Waits() as waits:
        sizes, read = sizes_of(tensors, flags)
    assert waits.count == 1
    assert read == [True, False, True]
    for size, tensor in zip(sizes, tensors, strict=True):
        assert size.is_usable
        assert size.squared_norm == pytest.approx(tensor.double().square().sum().item(), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e17, 1e19, 1e37, float("inf"), -float("inf"), float("nan")])
def test_extreme_values_are_told_apart(value):
    (size,), _ = sizes_of([torch.tensor([[value, 0.0]])])
    assert size.is_usable is (abs(value) < 1e18)
    if size.is_usable:
        assert size.squared_norm == pytest.approx(value * value, rel=1e-6)
    double = torch.tensor([value], dtype=torch.float64)
    assert sizes_of([double])[0][0].is_usable is (abs(value) < 1e144)


def test_flags_come_back_with_their_gradients():
    grads = [torch.ones(3), torch.empty(0), torch.tensor([1.0, float("inf")]), torch.full((2,), 1e30)]
    flags = [torch.tensor([True, False]), None, None, torch.tensor([False])]
    finite, read = are_finite(grads, flags)
    assert finite == [True, True, False, False]  # squares of the last one leave float32
    assert read == [[True, False], None, None, [False]]
    assert are_finite([]) == ([], [])


def parameters(dtype=torch.float32):
    shapes = [(24, 40), (40, 24), (24, 24), (4, 20, 28), (3, 16, 12), (24,), (40,)]
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


OPTIMIZERS = {
    "galore": lambda ps, **more: GaLoreAdamW(ps, rank=4, update_proj_gap=1000, **more),
    "galore, codes": lambda ps, **more: GaLoreAdamW(ps, rank=4, update_proj_gap=1000, state_bits=8, basis_bits=4),
    "q_galore": lambda ps, **more: QGaLoreAdamW(ps, rank=4, update_proj_gap=1000),
    "fira": lambda ps, **more: Fira(ps, rank=4, update_proj_gap=1000),
    "adamw": lambda ps, **more: AdamW(ps),
    "adamw 8-bit": lambda ps, **more: AdamW(ps, state_bits=8),
}


def without_refreshes(optimizer):
    for state in optimizer.state.values():
        if "next_refresh" in state:
            state["next_refresh"].fill_(1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_batched", [False, True])
@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_step_waits_once_for_all_tensors(monkeypatch, build, is_batched, dtype):
    # Mutations: is_used read for each stack of experts, finiteness for each tensor, a step count moved for each.
    if is_batched:
        monkeypatch.setattr(adam, "IN_PLACE_DEVICES", ())
    monkeypatch.setattr(rounding, "device_kind", lambda device: "cuda")  # on a CPU it looks at the values first
    weights = parameters(dtype)
    optimizer = build(weights)
    for step in range(3):
        for p in weights:
            p.grad = torch.ones_like(p)
        if step:
            without_refreshes(optimizer)
            with Waits() as waits:
                optimizer.step()
            assert waits.count == 1
        else:
            optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_norm_is_that_of_all_elements_in_any_tiling(dtype):
    # Mutation: a lost tile; sums in bfloat16, which have three digits.
    values = torch.randn(1024, 2100, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert values.numel() > 2 * TILE_ELEMENTS
    for tensor in (values, values.mT, values[:3]):
        found = norm_of(tensor)
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        assert float(found) == pytest.approx(float(tensor.double().norm()), rel=1e-4)
    values[-1, -1] = float("nan")
    assert norm_of(values).isnan()


class Sum(nn.Module):
    """Each parameter times a fixed tensor of its shape."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self, scale):
        return sum((p * scale).square().sum() for p in self.weights)


@pytest.mark.parametrize("options", [{}, {"clip": "per_tensor"}, {"clip": "norm_growth"}, {"clip": "projected"}])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["galore", "q_galore", "fira", "adamw"])
def test_a_layerwise_step_waits_once_for_each_tensor(name, steps, options):
    weights = parameters()
    optimizer = OPTIMIZERS[name](weights)
    model = Sum(weights)
    stacks = sum(optimizer.layouts[p].rank is not None and optimizer.layouts[p].blocks is not None for p in weights)
    handle = layerwise(model, optimizer, accumulation_steps=steps, max_grad_norm=1.0, **options)
    for window in range(3):
        without_refreshes(optimizer)
        with Waits() as waits:
            for _ in range(steps):
                model(1.0).backward()
        if window:
            # Sums of cores also ask at each micro-batch which experts were used.
            keeps_sums = steps > 1 or options.get("clip") == "projected"
            if name == "fira":  # sums of whole gradients ask when they are used
                allowed = len(weights) + (stacks if options.get("clip") == "projected" else 0)
            else:
                allowed = len(weights) + (stacks * steps if keeps_sums else 0)
            # What `norm_growth` reads of the last step is on the CPU.
            allowed += len(weights) if options.get("clip") == "norm_growth" else 0
            assert 0 < waits.count <= allowed
    assert handle.steps == 3
    handle.remove()


def test_experts_that_are_not_used_are_left_out_layerwise_too():
    weights = parameters()
    twins = copy.deepcopy(weights)
    ordinary, inside = OPTIMIZERS["galore"](weights), OPTIMIZERS["galore"](twins)
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(4, 1, 1)
    model = Sum(twins)
    with layerwise(model, inside):
        for _ in range(3):
            for p in weights:
                p.grad = 2 * p.detach()
            weights[3].grad *= mask
            ordinary.step()
            (sum(p.square().sum() for p in twins if p is not twins[3]) + (twins[3] * mask).square().sum()).backward()
    for one, other in zip(weights, twins, strict=True):
        assert torch.equal(one, other)
    assert ordinary.state[weights[3]]["step"].tolist() == [3, 0, 3, 0]
    assert inside.state[twins[3]]["step"].tolist() == [3, 0, 3, 0]


# ---- parameter, plan, gradient and state belong together

CHECKED = {
    "adamw": fw.optim.AdamW,
    "adamw 8-bit": lambda params: fw.optim.AdamW(params, state_bits=8),
    "galore": lambda params: fw.optim.GaLoreAdamW(params, rank=8),
    "galore, full rank": lambda params: fw.optim.GaLoreAdamW([{"params": list(params), "low_rank": False}]),
    "apollo": lambda params: fw.optim.Apollo(params, rank=8),
    "tensor_galore": lambda params: fw.optim.TensorGaLoreAdamW(params),
}


def step(optimizer, *parameters):
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("shape", [(400, 64), (64, 400), (16, 64), (64,), (4, 16, 64)])
def test_a_parameter_that_changes_its_shape_between_steps_is_refused_and_nothing_is_written(name, shape):
    # Mutation: without the comparison torch's fused kernel writes 340 KB beyond each moment.
    parameter, other = nn.Parameter(torch.ones(64, 64)), nn.Parameter(torch.ones(64, 64))
    optimizer = CHECKED[name]([parameter, other])
    step(optimizer, parameter, other)
    before = [copy.deepcopy(dict(optimizer.state[p])) for p in (parameter, other)]
    parameter.data = torch.ones(shape)
    weight = other.detach().clone()
    with pytest.raises(ShapeError, match=r"parameter 0.*expected \(64, 64\).*adopt_new_rows"):
        step(optimizer, parameter, other)
    assert torch.equal(other, weight) and torch.equal(parameter, torch.ones(shape))
    for state, p in zip(before, (parameter, other), strict=True):
        assert all(torch.equal(value, optimizer.state[p][key]) for key, value in state.items())


@pytest.mark.parametrize("name", CHECKED)
def test_a_shape_that_changes_before_the_first_step_is_no_fault(name):
    parameter = nn.Parameter(torch.ones(64, 64))
    optimizer = CHECKED[name]([parameter])
    optimizer.report()
    parameter.data = torch.ones(80, 64)
    step(optimizer, parameter)
    assert not torch.equal(parameter, torch.ones(80, 64))


def test_a_gradient_from_before_the_change_is_refused():
    parameter = nn.Parameter(torch.ones(8, 8))
    parameter.grad = torch.ones(8, 8)
    optimizer = fw.optim.AdamW([parameter])
    parameter.data = torch.ones(100, 8)
    with pytest.raises(ShapeError, match=r"gradient of shape \(8, 8\)"):
        optimizer.step()


@pytest.mark.parametrize("name", CHECKED)
def test_a_parameter_put_into_a_group_by_hand_is_refused(name):
    parameter = nn.Parameter(torch.ones(64, 64))
    optimizer = CHECKED[name]([parameter])
    step(optimizer, parameter)
    stranger = nn.Parameter(torch.ones(64, 64))
    optimizer.param_groups[0]["params"][0] = stranger
    with pytest.raises(ConfigError, match="by hand"):
        step(optimizer, stranger)


@pytest.mark.parametrize("name", CHECKED)
def test_a_step_on_the_meta_device_is_refused(name):
    parameter = nn.Parameter(torch.ones(64, 64, device="meta"))
    with pytest.raises(DeviceError, match="meta device and has no values"):
        step(CHECKED[name]([parameter]), parameter)


@pytest.mark.parametrize("name", CHECKED)
def test_double_precision_after_the_first_step_is_refused_and_half_precision_works(name):
    for dtype in (torch.bfloat16, torch.float16):
        parameter = nn.Parameter(torch.ones(64, 64))
        optimizer = CHECKED[name]([parameter])
        step(optimizer, parameter)
        parameter.data = parameter.data.to(dtype)
        before = parameter.detach().clone()
        for _ in range(20):
            step(optimizer, parameter)
        assert not torch.equal(parameter, before) and bool(parameter.isfinite().all())
    parameter.data = parameter.data.double()
    with pytest.raises(ConfigError, match=r"torch.float64 and its state was made for torch.float32"):
        step(optimizer, parameter)


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("wrong", [torch.zeros(7, 8), torch.zeros(8, 8).double(), torch.zeros(1).expand(8, 8)])
def test_a_moment_that_does_not_fit_never_reaches_the_fused_kernel(key, wrong):
    parameter = nn.Parameter(torch.ones(8, 8))
    optimizer = fw.optim.AdamW([parameter])
    step(optimizer, parameter)
    optimizer.state[parameter][key] = wrong
    parameter.grad = torch.ones(8, 8)
    with pytest.raises(ShapeError, match="Do not write into optimizer.state"):
        adam.step_fused_([optimizer.member(parameter, optimizer.param_groups[0])], [parameter.grad])


# ---- new rows
