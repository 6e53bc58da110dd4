"""The optimizer state of one parameter: plain tensors under flat names, whatever stores them.

A name such as `exp_avg` becomes one tensor (`exp_avg`) or several (`exp_avg_codes`, `exp_avg_block_scale`), as its
storage says. A parameter that holds several matrices (stacked experts, fused projections) stacks each of these along a
first axis. Counters are integers on the CPU, so reading them never waits for a GPU.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import CheckpointError
from featherweight.quant.storage import StateStorage

COUNTERS = (
    *("step", "moment_step", "next_refresh", "refresh_count", "side", "full_period"),
    *("refresh_gap", "similarity_count", "sparse_step"),
)
ON_CPU = (*COUNTERS, "grad_norm", "similarities", "captured", "ranks")
"""State that stays on the CPU, whatever the parameter's device."""

COUNTER_BYTES = 8
SUFFIXES = ("", "codes", "block_scale", "zero_point", "column_norm")
"""Names of the parts that the storages use."""

State = MutableMapping[str, Tensor]


def restored(saved: Mapping[str, Any], device: torch.device, where: str) -> dict[str, Tensor]:
    """Return copies of the saved state of one parameter on the devices where they belong, laid out as kernels want.

    Args:
        saved: from a file, which may be damaged.
        device: of the parameter.
        where: name of the optimizer, for messages.
    Raises:
        CheckpointError: if something is no tensor, or a number of steps is negative: its bias corrections would be NaN.
    """
    for key, value in saved.items():
        if not isinstance(value, Tensor) or (key in ("step", "moment_step") and bool((value < 0).any())):
            described = value.tolist() if isinstance(value, Tensor) else repr(value)[:40]
            raise CheckpointError(
                f"{where}.load_state_dict: {key}={described} is damaged; expected a tensor, and a number of steps "
                "that is not negative. Load another checkpoint."
            )
    return {key: v.to("cpu" if key in ON_CPU else device, copy=True).contiguous() for key, v in saved.items()}


def parts_of(state: Mapping[str, Tensor], name: str, block: int | None) -> dict[str, Tensor]:
    """Return the stored tensors of `name`, those of one matrix if `block` is given, as views."""
    parts = {suffix: state[key_of(name, suffix)] for suffix in SUFFIXES if key_of(name, suffix) in state}
    return parts if block is None else {suffix: part[block] for suffix, part in parts.items()}


def create(
    state: State,
    name: str,
    storage: StateStorage,
    shape: tuple[int, ...],
    stack: tuple[int, ...],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Add the zero state `name` for one tensor of `shape`, or for a stack of them."""
    for suffix, part in storage.zeros(shape, device=device, dtype=dtype).items():
        stacked = part.unsqueeze(0).repeat(*stack, *[1] * part.ndim) if stack else part
        state[key_of(name, suffix)] = stacked


def read_counter(state: Mapping[str, Tensor], name: str, block: int | None) -> int:
    """Return a counter as a number."""
    return int(state[name] if block is None else state[name][block])


def write_counter(state: State, name: str, block: int | None, value: int) -> None:
    """Set a counter."""
    if block is None:
        state[name].fill_(value)
    else:
        state[name][block] = value


def key_of(name: str, suffix: str) -> str:
    """Return the name in a state of one part of a tensor."""
    return f"{name}_{suffix}" if suffix else name
