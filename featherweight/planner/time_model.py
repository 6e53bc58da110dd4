"""How long a step takes on a card: a roofline over what the simulation counted. It ranks recipes, it times none."""

from featherweight.memory.cards import Precision
from featherweight.memory.cost import StepCost
from featherweight.planner.target import Target

_PRECISIONS: dict[str, Precision] = {"bfloat16": "bf16", "float16": "fp16", "float32": "tf32", "int8": "int8"}
_CPU_FLOP_PER_S = {"float32": 1e11, "bfloat16": 1e11}
_CPU_BYTES_PER_S = 2e10


def seconds_of(cost: StepCost, target: Target) -> float:
    """Return the seconds of a step.

    Matrix products are bound by arithmetic, all other operators by memory traffic; kernels cannot start faster than
    the host launches them, and copies to and from the host run beside all that.

    Args:
        cost: of the step.
        target: with the card's rates; a CPU has customary ones, good for ranking alone.
    """
    known = target.calibration
    if known is None:
        flops = sum(count / _CPU_FLOP_PER_S.get(name, 1e11) for name, count in cost.flops.items())
        return flops + cost.moved_bytes / _CPU_BYTES_PER_S
    arithmetic = sum(count / known.gemm_flop_per_s(_PRECISIONS.get(name, "fp32")) for name, count in cost.flops.items())
    traffic = cost.moved_bytes / known.elementwise_bytes_per_s
    launches = cost.launches * known.kernel_launch_us * 1e-6
    transfers = cost.host_bytes / min(known.h2d_bytes_per_s, known.d2h_bytes_per_s)
    return max(arithmetic + traffic, launches, transfers)
