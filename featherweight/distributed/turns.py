"""One order of collectives for all processes of a sharded model: a layer that some use alone is an error, no hang.

FSDP2 gathers a group of weights when a layer runs and sums its gradients afterwards. A process that passes over a
layer, or has no gradient for one of its weights, would leave the others waiting until the time-out, or sum what does
not belong together. So all compare 16 bytes before each of these collectives, and before what an optimizer sends.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from featherweight.distributed.differences import of_gradients
from featherweight.distributed.world import common
from featherweight.errors import ConfigError


class _Turn(NamedTuple):
    what: str
    names: tuple[str, ...]
    ends: torch.Tensor
    work: Any


class Turns:
    """What comes next, compared over all processes. Building one is a collective.

    Args:
        is_late: look at a comparison when the next one begins, so that nobody waits: for backends whose collectives do
            not block, which a process may have begun in vain without harm.
    """

    def __init__(self, *, is_late: bool) -> None:
        self._group = dist.new_group(backend="gloo")
        self._is_late = is_late
        self._pending: _Turn | None = None

    def meet(self, what: str, names: Sequence[str] = ()) -> None:
        """Go on if all processes are here.

        Args:
            what: words for what comes next.
            names: parameters that take part, in order.
        Raises:
            ConfigError: names the difference, on all processes.
        """
        digest = int.from_bytes(hashlib.sha256("\0".join((what, *names)).encode()).digest()[:7], "big")
        ends = torch.tensor([digest, -digest], dtype=torch.int64)
        before, self._pending = self._pending, None
        if before is not None:
            self._judge(before)
        work = dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        turn = _Turn(what, tuple(names), ends, work)
        if self._is_late:
            self._pending = turn
        else:
            self._judge(turn)

    def _judge(self, turn: _Turn) -> None:
        turn.work.wait()
        largest, smallest = turn.ends.tolist()
        if largest == -smallest:
            return
        everyone: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(everyone, (turn.what, turn.names), group=self._group)
        found = [what for what, _ in everyone]
        other = next((rank for rank, what in enumerate(found) if what != found[0]), None)
        if other is None:
            raise common(ConfigError(of_gradients([names for _, names in everyone])))
        raise common(
            ConfigError(
                f"distributed: rank 0 has come to {found[0]} and rank {other} to {found[other]}; expected all "
                "processes to call the same layers in the same order. A layer that only some of them use (a condition, "
                "an expert) must take part everywhere: add its output times 0 to the loss."
            )
        )
