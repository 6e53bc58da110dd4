"""Triton kernels against their twins in PyTorch and against torch.compile of the twins. Needs a CUDA device.

    scripts/bench kernels [--elements 67108864] [--rounds 9]

For each kernel: seconds of a call in alternating rounds, the bytes that it has to read and write and so its bandwidth,
the time over that of a large copy of as many bytes, the speed over the twin's, and how many results differ from the
twin's on this card. Compiled twins that torch.compile refuses are left out. Triton comes with torch for CUDA, or by
`pip install -e '.[kernels]'`.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from measurement import machine, synchronize, take_turns, write_rows
from rich.console import Console
from rich.table import Table
from torch import Tensor

from featherweight import kernels
from featherweight.optim import AdamW
from featherweight.optim.step.adam import step_dense_
from featherweight.optim.step.weight_update import Rounding, add_direction_
from featherweight.quant.int8_update import add_to_int8_
from featherweight.quant.int8_weight import Int8Weight
from featherweight.quant.rounding import stochastic_round_

COLUMNS = 4096
DEVICE = "cuda"


class Case(NamedTuple):
    """One kernel and its twin, behind one function."""

    run: Callable[[], Any]
    results: list[Tensor]
    """What `run` writes."""
    bytes_per_element: float
    """That one pass reads and writes."""


def rounding(elements: int) -> Case:
    """Float32 values to bfloat16."""
    values, out = torch.randn(elements, device=DEVICE), torch.empty(elements, device=DEVICE, dtype=torch.bfloat16)
    return Case(lambda: stochastic_round_(out, values, seed=0, key=1, step=2), [out], 6)


def update(elements: int) -> Case:
    """A float32 direction into a bfloat16 weight."""
    weight, direction = torch.randn(elements, device=DEVICE).bfloat16(), torch.randn(elements, device=DEVICE)
    keys = Rounding(0, 1, 2)
    return Case(
        lambda: add_direction_(weight, direction, alpha=-1e-3, beta=0.999, rounding=keys, offset=0), [weight], 8
    )


def int8_update(elements: int) -> Case:
    """A float32 update of a tenth of a code into an int8 weight with groups of 256."""
    weight = Int8Weight.quantize(torch.randn(elements // COLUMNS, COLUMNS, device=DEVICE))
    change = torch.randn(weight.shape, device=DEVICE) * 0.1 * weight.block_scale.mean()
    return Case(
        lambda: add_to_int8_(weight, change, beta=0.9999, seed=0, key=1, step=2),
        [weight.codes, weight.block_scale],
        6 + 4 / 256,
    )


def adamw(elements: int, dtype: torch.dtype, bits: int) -> Case:
    """A step of full-rank AdamW on one parameter."""
    parameter = torch.nn.Parameter(torch.randn(elements // COLUMNS, COLUMNS, device=DEVICE, dtype=dtype))
    parameter.grad = torch.randn_like(parameter)
    optimizer = AdamW([parameter], lr=1e-3, state_bits=bits, eps=1e-6)
    optimizer.step()
    layout, member = optimizer.layouts[parameter], optimizer.member(parameter, optimizer.param_groups[0])
    moments = 2 * (1 + 4 / 256) if bits == 8 else 8
    written = [parameter.detach(), *(t for t in member.state.values() if t.ndim and t.device == parameter.device)]
    run = torch.no_grad()(lambda: step_dense_(layout, member, parameter.grad))
    return Case(run, written, 3 * dtype.itemsize + 2 * moments)


CASES: dict[str, Callable[[int], Case]] = {
    "stochastic rounding": rounding,
    "update of bfloat16": update,
    "update of int8": int8_update,
    "AdamW, 8-bit moments, bfloat16": lambda elements: adamw(elements, torch.bfloat16, 8),
    "AdamW, 8-bit moments, float32": lambda elements: adamw(elements, torch.float32, 8),
    "AdamW, float32 moments, bfloat16": lambda elements: adamw(elements, torch.bfloat16, 32),
}


def under(name: str, run: Callable[[], Any]) -> Callable[[], None]:
    """Return the function with kernels or twins chosen."""

    def chosen() -> None:
        with kernels.use(name):
            run()

    return chosen


def different(build: Callable[[int], Case], elements: int) -> int:
    """Count the results that differ between kernel and twin after one call from the same start."""
    outcomes = []
    for name in ("torch", "triton"):
        torch.manual_seed(0)
        case = build(elements)
        under(name, case.run)()
        outcomes.append([result.double().nan_to_num() for result in case.results])
    return sum(int((twin != kernel).sum()) for twin, kernel in zip(*outcomes, strict=True))


def copy_bandwidth(elements: int) -> float:
    """Bytes per second that a large copy moves, reads and writes counted."""
    source = torch.empty(elements, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / take_turns({"copy": lambda: target.copy_(source)}, rounds=9)["copy"].median_s


def compiled(run: Callable[[], Any]) -> Callable[[], None] | None:
    """Return the twin under torch.compile, or None where that fails."""
    function = under("torch", torch.compile(run))
    try:
        function()
        synchronize()
    except Exception as error:  # whatever a compiler raises: this candidate is left out
        print(f"torch.compile: {type(error).__name__}: {str(error).splitlines()[0][:200]}", file=sys.stderr)
        return None
    return function


def measure(name: str, elements: int, rounds: int, bandwidth: float) -> list[dict[str, Any]]:
    """Time one kernel, its twin and the compiled twin."""
    case = CASES[name](elements)
    candidates = {"twin": under("torch", case.run), "kernel": under("triton", case.run)}
    if (fast := compiled(case.run)) is not None:
        candidates["twin, compiled"] = fast
    timings = take_turns(candidates, rounds, warm_up=3)
    moved = case.bytes_per_element * elements
    count = different(CASES[name], min(elements, 1 << 24))
    return [
        {
            "case": name,
            "what": what,
            "elements": elements,
            "median_s": round(timing.median_s, 7),
            "fastest_s": round(timing.fastest_s, 7),
            "spread": round(timing.spread, 3),
            "bytes_moved": int(moved),
            "GB_per_s": round(moved / timing.median_s / 1e9, 1),
            "to_floor": round(timing.median_s * bandwidth / moved, 2),
            "ratio": round(timings["twin"].median_s / timing.median_s, 2),
            "different": count if what == "kernel" else "",
        }
        for what, timing in timings.items()
    ]


def main() -> None:
    """Read the arguments, measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=1 << 26, help="a multiple of 4096")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_kernels: no CUDA device is here, and kernels in an interpreter have no speed.", file=sys.stderr)
        sys.exit(2)
    print(machine())
    bandwidth = copy_bandwidth(arguments.elements)
    rows = [row for name in CASES for row in measure(name, arguments.elements, arguments.rounds, bandwidth)]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=170).print(table)
    print(f"a copy moves {bandwidth / 1e9:.0f} GB/s; written to {write_rows('kernels', rows)}")


if __name__ == "__main__":
    main()
