"""Int8 weights of which every process holds rows: FSDP2 shards codes and scales, optimizers see rows of a weight.

Codes and scales become parameters without gradient, which FSDP2 gathers as bytes; the handle, one NaN of a weight's
shape, is none of its business. Its gradient is summed as a core (`featherweight.optim.backward`), or as rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.nn.int8_module import CODES, SCALE, Int8Module
from featherweight.optim.sharding import register_shard, shard_of
from featherweight.quant.int8_weight import Int8Handle, Int8Weight, handle_data, register_int8_weight
from featherweight.unwrap import is_distributed, local_of


@dataclass(eq=False)
class Int8Rows:
    """The codes and scales of the rows at hand, also while FSDP2 has gathered all of them."""

    codes: Tensor
    scale_bits: Tensor
    group_size: int

    def int8_weight(self) -> Int8Weight:
        """Return references to the present rows."""
        return Int8Weight(local_of(self.codes), local_of(self.scale_bits).view(torch.float32), self.group_size)


class RowHandle(Int8Handle):
    """Stands for the rows at hand, and keeps what holds them."""

    owner: Int8Rows


def _owners(model: nn.Module) -> Iterator[Int8Module]:
    for module in model.modules():
        if isinstance(module, Int8Module) and not module._weight_owner:
            yield module


def store_codes_as_parameters(model: nn.Module) -> Iterator[Tensor]:
    """Make the codes and scales of a model parameters that can be sharded, and yield the handles, which cannot."""
    for module in _owners(model):
        module.store_as_parameters_()
        yield module.weight


def register_int8_rows(model: nn.Module) -> None:
    """Tell optimizers which rows of int8 weights this process holds."""
    for module in _owners(model):
        codes: Any = module._parameters.get(CODES)
        scale_bits, handle = module._parameters.get(SCALE), module.weight
        if codes is None or scale_bits is None or not is_distributed(codes):
            continue
        shard = shard_of(codes)
        assert shard is not None
        rows = RowHandle(handle_data(shard.shape, handle.dtype, codes.device), requires_grad=handle.requires_grad)
        rows.owner = Int8Rows(codes, scale_bits, module.group_size)
        register_int8_weight(rows, rows.owner)
        register_shard(handle, replace(shard, full_shape=tuple(handle.shape), rows=rows))
