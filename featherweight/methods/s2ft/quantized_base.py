"""Reading and writing the weight of a quantised layer as a whole, and bringing the old one back.

A layer of low rank has no weight to write into: while a change is merged, an ordinary layer with the product of its
factors stands in its place. PEFT knows bitsandbytes, torchao and others; int8 layers of this package answer the same
three questions here.
"""

import copy
from dataclasses import dataclass
from typing import Any

from peft.utils.quantization_utils import QuantizationBackend, resolve_quantization_backend
from torch import Tensor, nn

from featherweight.nn.int8_module import CODES, SCALE, Int8Module
from featherweight.quant.int8_weight import Int8Weight


class Int8Backend(QuantizationBackend):
    """The weights of `fw.Int8`."""

    supports_merge = True
    backend_name = "int8"
    layer_type = "linear"

    def get_base_weight(self, base_layer: nn.Module) -> Tensor:
        """Return the weight's values, as the layer stores them."""
        assert isinstance(base_layer, Int8Module), "chosen by type"
        return base_layer.int8_weight().dequantize(base_layer.weight.dtype)

    def set_base_weight(self, peft_layer: Any, weight_data: Tensor) -> None:
        """Round a weight to new codes; the old ones are left as they are, for whoever holds them."""
        layer = peft_layer.get_base_layer()
        int8 = Int8Weight.quantize(weight_data, layer.group_size)
        layer._buffers[CODES], layer._buffers[SCALE] = int8.codes, int8.block_scale


def backend_of(module: nn.Module, get_apply_tensor_subclass: Any = None) -> QuantizationBackend | None:
    """Return how to reach the weight of a quantised layer, or None for an ordinary layer."""
    if isinstance(module, Int8Module):
        return Int8Backend()
    return resolve_quantization_backend(module, get_apply_tensor_subclass=get_apply_tensor_subclass)


@dataclass
class LayerBefore:
    """A layer of low rank while an ordinary one holds its product and a change."""

    layer: nn.Module

    @classmethod
    def exchange(cls, peft_layer: Any) -> "LayerBefore":
        """Put an ordinary, frozen layer with the product into a tuner's layer, and keep the one of low rank."""
        layer = peft_layer.get_base_layer()
        peft_layer.base_layer = layer.to_linear().requires_grad_(False)
        return cls(layer)

    def bring_back(self, peft_layer: Any) -> None:
        """Give a tuner's layer its factors again, bit by bit; they follow a move to another device meanwhile."""
        peft_layer.base_layer = self.layer.to(peft_layer.base_layer.weight.device)


@dataclass
class WeightBefore:
    """A layer's quantised weight as it was. By reference and at no cost, since writing a weight makes new tensors."""

    layer: Any
    weight: Any
    state: Any
    """Bitsandbytes' own record of an 8-bit layer."""
    buffers: dict[str, Tensor]
    """Codes and scales of an int8 layer of this package."""

    @classmethod
    def of(cls, layer: Any) -> "WeightBefore":
        """Keep the present weight of a layer."""
        if isinstance(layer, Int8Module):
            return cls(layer, None, None, {name: layer.get_buffer(name) for name in (CODES, SCALE)})
        return cls(layer, layer.weight, copy.copy(getattr(layer, "state", None)), {})

    def bring_back(self, peft_layer: Any) -> None:
        """Give a tuner's layer this weight again, bit by bit."""
        if self.buffers:
            self.layer._buffers.update(self.buffers)
            return
        peft_layer.base_layer = self.layer
        self.layer.weight = self.weight
        if self.state is not None:
            self.layer.state = self.state
