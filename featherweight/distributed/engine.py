"""What FSDP2 sends: counted, and compared over the processes before it is sent."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from featherweight.distributed.reduce import Traffic
from featherweight.distributed.turns import Turns


class _Watched:
    """What FSDP2 asks of a collective of its own choice.

    Args:
        group: words for the layers that are gathered together.
        traffic: where bytes are counted.
        turns: where all processes compare what comes next.
    """

    def __init__(self, group: str, traffic: Traffic, turns: Turns) -> None:
        self.group, self.traffic, self.turns = group, traffic, turns

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory for a collective."""
        return torch.empty(*size, dtype=dtype, device=device)


class WatchedGather(_Watched):
    """FSDP2's gathering of weights."""

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        """Gather, as `torch.distributed.all_gather_single` does."""
        self.turns.meet(f"the weights of {self.group}")
        self.traffic.count("all_gather", [input_tensor], output_tensor.nbytes)
        return dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)


class WatchedReduceScatter(_Watched):
    """FSDP2's sum of gradients."""

    def __init__(self, group: str, traffic: Traffic, turns: Turns) -> None:
        super().__init__(group, traffic, turns)
        self._seen: dict[str, None] = {}

    def watch(self, whole: Tensor, name: str) -> None:
        """Take note of gradients that come to the whole of a parameter."""

        def note(_: Tensor) -> None:
            self._seen[name] = None

        whole.register_post_accumulate_grad_hook(note)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        """Sum, as `torch.distributed.reduce_scatter_single` does."""
        names = sorted(self._seen)
        self._seen.clear()
        self.turns.meet(f"the gradients of {self.group}", names)
        self.traffic.count("reduce_scatter", [input_tensor], input_tensor.nbytes)
        return dist.reduce_scatter_single(output_tensor, input_tensor, group=group, op=op, async_op=async_op)
