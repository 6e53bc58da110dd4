"""The work of a step: arithmetic by data type, bytes moved and kernels launched, counted operator by operator."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from featherweight.tiles import repetitions

_COPY = torch.ops.aten.copy_.default


@dataclass
class StepCost:
    """Sums over the operators that ran; those of tiles that stand for others count as often as these."""

    flops: Counter[str] = field(default_factory=Counter)
    """Of matrix products and attention, by the data type of their operands."""
    moved_bytes: int = 0
    """Read and written by all other operators, whose arithmetic is free."""
    launches: int = 0
    """Operators that start a kernel."""
    host_bytes: int = 0
    """Copied between a GPU and the host."""

    def clear(self) -> None:
        """Begin anew."""
        self.flops.clear()
        self.moved_bytes = self.launches = self.host_bytes = 0

    def add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Count one operator."""
        if _is_view(func):
            return
        times = repetitions()
        self.launches += times
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            dtype = next(_tensors(args)).dtype
            self.flops[_name(dtype)] += times * int(formula(*args, **kwargs, out_val=result))
        elif func is _COPY and "meta" in {one.device.type for one in args[:2]}:
            self.host_bytes += args[0].numel() * args[0].element_size()
        else:
            self.moved_bytes += times * sum(
                one.numel() * one.element_size() for one in (*_tensors(args), *_tensors((result,)))
            )

    def add_attention(self, query: Tensor, key: Tensor, *, products: int, is_causal: bool) -> None:
        """Count attention that is one kernel.

        Args:
            query: (B, H, L, D).
            key: (B, G, S, D).
            products: matrix products of size L x S x D for each head: 2 forward, 5 backward.
            is_causal: half of the scores are not needed.
        """
        batch, heads, length, width = query.shape
        flops = 2 * products * batch * heads * length * key.shape[2] * width
        self.flops[_name(query.dtype)] += flops // 2 if is_causal else flops
        self.launches += 1

    def plus(self, other: "StepCost", times: int) -> "StepCost":
        """Return this cost and so many times another one."""
        names = self.flops | other.flops
        return StepCost(
            flops=Counter({name: self.flops[name] + times * other.flops[name] for name in names}),
            moved_bytes=self.moved_bytes + times * other.moved_bytes,
            launches=self.launches + times * other.launches,
            host_bytes=self.host_bytes + times * other.host_bytes,
        )

    def plus_layers(self, shallow: "StepCost", layers: int) -> "StepCost":
        """Return the cost with so many layers more, where `shallow` has one layer less than this."""
        return self.plus(self.plus(shallow, -1), layers)


@cache
def _is_view(func: Any) -> bool:
    """Tell whether an operator only looks at memory in another way, or asks about a tensor."""
    aliases = [one.alias_info for one in func._schema.returns]
    return func.namespace == "prim" or (bool(aliases) and all(one is not None and not one.is_write for one in aliases))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
