"""Compiled C on a CPU has the codes, moments, directions and weights of PyTorch's operations, bit by bit."""

import subprocess
import sys

import pytest
import torch

import featherweight as fw
from featherweight import kernels
from featherweight.errors import ShapeError
from featherweight.kernels import native
from featherweight.memory.simulate import simulation
from featherweight.optim.policies.rules import AdamWRule
from featherweight.optim.step.weight_update import Rounding, add_direction_, write_
from featherweight.quant.rounding import key_pairs, stochastic_round_
from featherweight.quant.storage import DenseStorage, DynamicStorage
from featherweight.simulated import SimulatedDevice

SIZES = [1, 2, 255, 256, 257, 1025, 4999]


STORAGES = {
    "codes8": [DynamicStorage(8, signed=True), DynamicStorage(8, signed=False)],
    "codes4": [DynamicStorage(4, signed=True), DynamicStorage(4, signed=False)],
    "bfloat16": [DenseStorage(torch.bfloat16)] * 2,
    "float32": [DenseStorage()] * 2,
}


NAMES = ("exp_avg", "exp_avg_sq")


ALPHA, BETA, ROUNDING = -0.01, 0.99, Rounding(1, 2, 3)


OFFSET = 7
"""Of the moments in their tensor: odd, as the matrices of a stack may begin anywhere."""


def gradients(count, generator, steps=3):
    """Gradients of all magnitudes, with zeros."""
    for _ in range(steps):
        grad = torch.randn(count, generator=generator)
        grad *= 10.0 ** (torch.randn(count, generator=generator) * 3 - 4)
        grad[::3] = 0
        yield grad


def moment_for_kernel(number, storage, part):
    if isinstance(storage, DynamicStorage):
        table = storage.table
        scale, values = part["block_scale"], table.values
        return native.Codes(storage.bits, part["codes"], scale, values, table.first_code, table.next_boundary)
    if part[""].dtype == torch.bfloat16:
        return native.Rounded(part[""], key_pairs(1, 2 | number << 32, 3), OFFSET)
    return part[""]


def twin_direction(storages, parts, grad, step, group):
    """Read, rule, write, by PyTorch's operations."""
    moments = {n: s.read(p, grad.shape) for n, s, p in zip(NAMES, storages, parts, strict=True)}
    direction = AdamWRule().direction(grad.float(), moments, step, group)
    for number, (storage, part, values) in enumerate(zip(storages, parts, moments.values(), strict=True), 1):
        if "" in part and part[""].dtype == torch.bfloat16:
            write_(part[""], values, Rounding(1, 2, 3, tensor=number), OFFSET)
        else:
            storage.write_(part, values)
    return direction


def assert_equal(ours, theirs):
    """Bit by bit, where a NaN is a NaN."""
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours[~ours.isnan()], theirs[~theirs.isnan()])


def run(storages, grads, group, weight=None):
    """Make the steps by twin and kernel, comparing all bits after each."""
    count = len(grads[0])
    twin, kernel = ([s.zeros((count,), device="cpu") for s in storages] for _ in range(2))
    written = None if weight is None else (weight.clone(), weight.clone())
    for step, grad in enumerate(grads, 1):
        options = native.Options(*group["betas"], group["eps"], step, group["eps_mode"] == "official")
        moments = tuple(moment_for_kernel(n, s, p) for n, (s, p) in enumerate(zip(storages, kernel, strict=True), 1))
        with kernels.use("torch"):
            direction = twin_direction(storages, twin, grad, step, group)
            if written is not None:
                add_direction_(written[0], direction, alpha=ALPHA, beta=BETA, rounding=ROUNDING, offset=0)
        if written is None:
            assert_equal(direction, native.direction(grad, moments, options))
        else:
            native.step_(grad, moments, options, native.Write(written[1], ALPHA, BETA, key_pairs(1, 2, 3)))
            assert_equal(*written)
        for one, other in zip(twin, kernel, strict=True):
            for name in one:
                assert_equal(one[name], other[name])


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("storages", STORAGES.values(), ids=STORAGES)
@pytest.mark.parametrize("eps_mode", ["torch", "official"])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.3, 0.95), (0.0, 0.5)])
def test_codes_moments_and_direction_are_those_of_the_twin(count, storages, eps_mode, betas, generator):
    run(storages, list(gradients(count, generator)), {"betas": betas, "eps": 1e-8, "eps_mode": eps_mode})


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("storages", STORAGES.values(), ids=STORAGES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_those_of_the_twin(count, storages, dtype, generator):
    weight = torch.randn(count, generator=generator).to(dtype)
    grads = [grad.to(dtype) for grad in gradients(count, generator)]
    run(storages, grads, {"betas": (0.9, 0.999), "eps": 1e-8, "eps_mode": "torch"}, weight)


@pytest.mark.parametrize("storages", STORAGES.values(), ids=STORAGES)
def test_gradients_that_are_not_finite_leave_the_same_marks(storages, generator):
    grads = list(gradients(1500, generator))
    grads[1][700], grads[1][3], grads[2][1400] = torch.nan, torch.inf, 3e38
    run(storages, grads, {"betas": (0.9, 0.999), "eps": 1e-8, "eps_mode": "torch"})


def test_two_threads_write_what_one_writes(generator):
    grads = list(gradients(2 * native.THREAD_BLOCKS * native.BLOCK + 77, generator, steps=1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        run(STORAGES["codes8"], grads, {"betas": (0.9, 0.999), "eps": 1e-8, "eps_mode": "torch"})
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("offset", [0, 1, (1 << 24) - 100, (1 << 25) - 101])
def test_rounding_draws_the_bits_of_the_twin_across_spans_of_keys(offset, generator):
    values = torch.randn(333, generator=generator) * 10.0 ** (torch.randn(333, generator=generator) * 12)
    values[5], values[6], values[7], values[8] = torch.nan, torch.inf, -torch.inf, 3.4e38
    raw = torch.randint(-(2**31), 2**31 - 1, (333,), generator=generator).to(torch.int32).view(torch.float32)
    for source in (values, raw):
        rounded = {}
        for name in ("torch", "native"):
            with kernels.use(name):
                rounded[name] = torch.empty(333, dtype=torch.bfloat16)
                stochastic_round_(rounded[name], source, seed=3, key=4, step=5, offset=offset)
        assert_equal(rounded["torch"], rounded["native"])


RUNS = {
    "adamw8": lambda model: fw.optim.AdamW(model.parameters(), lr=1e-2, state_bits=8),
    "adamw16": lambda model: fw.optim.AdamW(model.parameters(), lr=1e-2, state_bits=16),
    **{
        f"galore{bits}": lambda model, bits=bits: fw.optim.GaLoreAdamW(
            fw.optim.param_groups(model, rank=48), lr=1e-2, state_bits=bits, update_proj_gap=3
        )
        for bits in (8, 4, 16)
    },
    "fira": lambda model: fw.optim.Fira(fw.optim.param_groups(model, rank=48), lr=1e-2, update_proj_gap=3),
}


@pytest.mark.parametrize("make", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_ends_with_the_weights_and_state_of_a_run_without_kernels(make, dtype):
    ends = []
    for name in ("torch", "native"):
        generator = torch.Generator().manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(96, 200), torch.nn.ReLU(), torch.nn.Linear(200, 90)).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
        optimizer = make(model)
        with kernels.use(name):
            for _ in range(7):
                for parameter in model.parameters():
                    parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
                optimizer.step()
        states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        ends.append([*(parameter.detach() for parameter in model.parameters()), *states])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_the_kernel_gets_only_what_python_has_compared():
    def moments(count):
        return tuple(moment_for_kernel(0, s, s.zeros((count,), device="cpu")) for s in STORAGES["codes8"])

    options = native.Options(0.9, 0.999, 1e-8, 1)
    with pytest.raises(ShapeError, match="exp_avg.codes has 512 elements .* expected 600"):
        native.direction(torch.zeros(600), moments(512), options)
    with pytest.raises(ShapeError, match="grad has 600 elements of torch.float64"):
        native.direction(torch.zeros(600, dtype=torch.float64), moments(600), options)
    with pytest.raises(ShapeError, match="weight has 599 elements"):
        native.step_(
            torch.zeros(600), moments(600), options, native.Write(torch.zeros(599), 1.0, 1.0, key_pairs(0, 0, 0))
        )
    with pytest.raises(ShapeError, match="not contiguous"):
        weight = torch.zeros(1200)[::2]
        native.step_(torch.zeros(600), moments(600), options, native.Write(weight, 1.0, 1.0, key_pairs(0, 0, 0)))


def test_what_autograd_keeps_is_known_to_be_overwritten():
    weight = torch.zeros(600, dtype=torch.bfloat16)
    before = weight._version
    native.add_direction_(weight, torch.ones(600), alpha=1.0, beta=1.0, offset=0, key_pair=key_pairs(0, 0, 0))
    assert weight._version > before


PROGRAM = """
import torch, featherweight as fw
from featherweight.kernels import native
p = torch.nn.Parameter(torch.ones(128, 128)); p.grad = torch.ones(128, 128)
fw.optim.AdamW([p], lr=0.1, state_bits=8).step()
print(native.is_available(), native.status(), round(float(p.detach().mean()), 3))
try:
    fw.kernels.use("native")
except fw.errors.DeviceError as error:
    print(error)
"""


def test_without_a_compiler_the_same_step_runs_and_the_reason_is_said(tmp_path):
    environment = {"PATH": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=True)
    assert "False PyTorch's operations: no C compiler is found" in done.stdout
    assert " 0.899\n" in done.stdout  # 1 - lr * sign(grad) - lr * weight_decay
    assert "apt-get install gcc" in done.stdout


def test_a_simulated_step_of_a_cpu_takes_the_memory_of_the_kernel_and_computes_nothing():
    assert kernels.native_on(torch.zeros(1))
    assert not kernels.native_on(torch.zeros(1, device="meta"))
    options = native.Options(0.9, 0.999, 1e-8, 1)
    moments = (torch.zeros(600), torch.zeros(600))
    with simulation(SimulatedDevice("cuda")):
        assert not kernels.native_on(torch.zeros(1))
    with simulation(SimulatedDevice("cpu")):
        assert kernels.native_on(torch.zeros(1))
        assert native.direction(torch.ones(600), moments, options).shape == (600,)
    assert not moments[0].any()


@pytest.mark.slow  # a fresh process
def test_the_first_question_may_come_from_inside_a_simulation():
    # Mutation: the check on the simulation's tensors, which have no numbers: the process dies.
    code = """
from featherweight.kernels import native
from featherweight.memory.simulate import simulation
from featherweight.simulated import SimulatedDevice

with simulation(SimulatedDevice("cpu")):
    inside = native.is_available()
native.library.cache_clear()
assert inside == native.is_available()
"""
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)
