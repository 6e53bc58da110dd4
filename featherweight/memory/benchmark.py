"""Measures what a device reaches: matrix products, attention, element-wise work, copies, launches; and its context.

`featherweight.memory.calibration` turns the rates into shares of a card's peaks. All but the context also run on a CPU.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.nn import functional as F

from featherweight.errors import DeviceError
from featherweight.memory.cards import Precision

_DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_FLOAT_BYTES = 4


class Measured(NamedTuple):
    """Median, smallest and largest of the repeats."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class BenchmarkSizes:
    """How much to do; the defaults time a GPU for 3 to 4 seconds in all, besides warm-up."""

    gemm: int = 4096
    """Rows and columns of the matrices."""
    attention_tokens: int = 2048
    """Length of the sequences; 4 sequences of 16 heads with 128 channels."""
    elements: int = 2**26
    """Numbers in a tensor of element-wise work."""
    copy_bytes: int = 2**28
    """Bytes of one copy between host and device."""
    launches: int = 2000
    """Small operators in a row."""
    repeats: int = 7
    """Timings of each."""
    seconds: float = 0.05
    """Least time of one timing; shorter work is done several times in it."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a device reached."""

    gemm_flop_per_s: dict[Precision, Measured]
    """Matrix products by precision."""
    attention_flop_per_s: Measured
    """Causal attention, forward and backward, in operations as `torch.utils.flop_counter` counts them (all of them)."""
    elementwise_bytes_per_s: Measured
    """Bytes read and written by an addition."""
    host_to_device_bytes_per_s: Measured
    """Copies from pinned memory."""
    device_to_host_bytes_per_s: Measured
    """Copies to pinned memory."""
    launch_s: Measured
    """Seconds for a small operator in a row of many."""


def measure_rates(
    device: torch.device, precisions: tuple[Precision, ...], sizes: BenchmarkSizes | None = None
) -> Rates:
    """Run all benchmarks on a device.

    Args:
        device: where to run.
        precisions: precisions of the matrix products; attention runs in the last of them that has 16 bits.
        sizes: how much to do; default: the sizes for a GPU.
    Cost: repeats * seconds for each of nine benchmarks, and 768 MiB at a time at the default sizes.
    """
    sizes = sizes or BenchmarkSizes()
    half = [precision for precision in precisions if precision in ("bf16", "fp16")]
    to_device, to_host = measure_copies(device, sizes)
    return Rates(
        gemm_flop_per_s={precision: measure_gemm(device, precision, sizes) for precision in precisions},
        attention_flop_per_s=measure_attention(device, half[-1] if half else "fp32", sizes),
        elementwise_bytes_per_s=measure_elementwise(device, sizes),
        host_to_device_bytes_per_s=to_device,
        device_to_host_bytes_per_s=to_host,
        launch_s=measure_launch(device, sizes),
    )


def measure_gemm(device: torch.device, precision: Precision, sizes: BenchmarkSizes) -> Measured:
    """Return the floating-point operations per second of a square matrix product."""
    left, right = (torch.randn(sizes.gemm, sizes.gemm, device=device).to(_DTYPES[precision]) for _ in range(2))
    out = torch.empty_like(left)
    with _float32_products("high" if precision == "tf32" else "highest"):
        seconds = _timings(lambda: torch.mm(left, right, out=out), device, sizes)
    return _rate(2 * sizes.gemm**3, seconds)


def measure_attention(device: torch.device, precision: Precision, sizes: BenchmarkSizes) -> Measured:
    """Return the operations per second of causal attention, forward and backward.

    The counter of torch knows no mask: two matrix products forward and five backward over the whole square, which is
    twice of what a causal kernel does. The rate is meant for operations that were counted in this way.
    """
    sequences, heads, channels = 4, 16, 128
    shape = (sequences, heads, sizes.attention_tokens, channels)
    query, key, value = (torch.randn(shape, device=device).to(_DTYPES[precision]).requires_grad_() for _ in range(3))
    grad = torch.ones_like(value)

    def run() -> None:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        torch.autograd.grad(out, (query, key, value), grad)

    one_product = 2 * sequences * heads * sizes.attention_tokens**2 * channels
    return _rate(7 * one_product, _timings(run, device, sizes))


def measure_elementwise(device: torch.device, sizes: BenchmarkSizes) -> Measured:
    """Return the bytes per second that an addition reads and writes."""
    left, right, out = (torch.ones(sizes.elements, device=device) for _ in range(3))
    seconds = _timings(lambda: torch.add(left, right, out=out), device, sizes)
    return _rate(3 * _FLOAT_BYTES * sizes.elements, seconds)


def measure_copies(device: torch.device, sizes: BenchmarkSizes) -> tuple[Measured, Measured]:
    """Return the bytes per second from the host to the device and back, through pinned memory where there is a GPU."""
    host = torch.zeros(sizes.copy_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.zeros(sizes.copy_bytes, dtype=torch.uint8, device=device)
    to_device = _timings(lambda: there.copy_(host, non_blocking=True), device, sizes)
    to_host = _timings(lambda: host.copy_(there, non_blocking=True), device, sizes)
    return _rate(sizes.copy_bytes, to_device), _rate(sizes.copy_bytes, to_host)


def measure_launch(device: torch.device, sizes: BenchmarkSizes) -> Measured:
    """Return the seconds that one small operator takes in a row of many."""
    x = torch.zeros(1, device=device)

    def run() -> None:
        for _ in range(sizes.launches):
            x.add_(1)

    return Measured(*(seconds / sizes.launches for seconds in _spread(_timings(run, device, sizes))))


def measure_context(device: torch.device) -> Measured:
    """Return the bytes that a process takes on a GPU besides its tensors: the CUDA context and the loaded kernels.

    A fresh process makes the context, then runs a small training step, because kernels are loaded when they are first
    used. Other programs that allocate or free on the GPU meanwhile disturb the result.

    Returns:
        The bytes after the step; `low` is the bare context.
    Raises:
        DeviceError: if the device is no available GPU, or the process fails.
    """
    require_gpu(device, "measure_context")
    free_before, _ = torch.cuda.mem_get_info(device)
    program = f"from featherweight.memory.benchmark import _probe_context; _probe_context({str(device)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(
            f"measure_context: device={device} failed in a fresh process ({last_line}); expected it to run a small "
            "step. Close other programs on the GPU and try again."
        )
    return context_of(free_before, json.loads(done.stdout.splitlines()[-1]))


def context_of(free_before: int, probe: dict[str, int]) -> Measured:
    """Work out the context from what was free before a process began, and what it saw.

    Example:
        >>> context_of(1000, {"free_bare": 700, "free_loaded": 500, "reserved": 150})
        Measured(value=350, low=300, high=350)
    """
    bare = free_before - probe["free_bare"]
    loaded = free_before - probe["free_loaded"] - probe["reserved"]
    return Measured(loaded, min(bare, loaded), max(bare, loaded))


def require_gpu(device: torch.device, where: str) -> None:
    """Refuse a device that is no available GPU.

    Raises:
        DeviceError: if it is none.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        raise DeviceError(
            f"{where}: device={device} is no available GPU; expected a CUDA device. "
            "Use default_calibration(find_card(name)) where there is none."
        )


def _probe_context(device: str) -> None:
    """Write what a fresh process sees on a GPU; runs in that process."""
    free_bare, _ = torch.cuda.mem_get_info(device)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.GELU()).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.autocast("cuda", dtype=torch.float16):
        x = model(torch.randn(2, 4, 64, 64, device=device))
        x = F.scaled_dot_product_attention(x, x, x, is_causal=True)
        loss = F.cross_entropy(x.flatten(0, 2), torch.zeros(512, dtype=torch.long, device=device))
    loss.backward()
    optimizer.step()
    torch.cuda.synchronize(device)
    free_loaded, _ = torch.cuda.mem_get_info(device)
    probe = {
        "free_bare": free_bare,
        "free_loaded": free_loaded,
        "reserved": torch.cuda.memory_reserved(device),
    }
    sys.stdout.write(json.dumps(probe) + "\n")


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _timings(run: Callable[[], object], device: torch.device, sizes: BenchmarkSizes) -> list[float]:
    """Return the seconds of one run, measured several times after a warm-up."""
    run()  # loads kernels, and lets libraries choose theirs
    once = _seconds(run, 1, device)
    count = max(1, int(sizes.seconds / max(once, 1e-7)))
    return [_seconds(run, count, device) / count for _ in range(sizes.repeats)]


def _seconds(run: Callable[[], object], count: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(count):
        run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _spread(values: list[float]) -> Measured:
    return Measured(statistics.median(values), min(values), max(values))


def _rate(work: float, seconds: list[float]) -> Measured:
    return _spread([work / one for one in seconds])
