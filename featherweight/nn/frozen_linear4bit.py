"""A frozen linear layer of four bits a weight: NF4 codes of bitsandbytes with scales that are quantised once more.

It is a `bitsandbytes.nn.Linear4bit`, so PEFT and S2FT know what they stand beside. Its product is written out: the
weight becomes float for one product and is freed, in the forward pass and again in the backward pass, which keeps no
input. So every byte is one that a simulation sees, on a GPU and on a CPU alike.
Shapes: T tokens, M out_features, N in_features. Bytes of a weight: M*N/2 codes, M*N/64 scales, M*N/4096 scales of
scales in float32, and 1,092 of tables.
Source: Dettmers et al., QLoRA, arXiv 2305.14314, section 3.
"""

from typing import Any, cast

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn

from featherweight.quant.int8_weight import has_values
from featherweight.quant.weight4bit import statistics_of

BLOCK_SIZE = 64
"""Weights that share a scale."""
NESTED_BLOCK_SIZE = 256
"""Scales that share a scale of their own."""
_STORED = ("absmax", "offset", "nested_absmax")
"""Statistics that differ from layer to layer; the two tables are always the same."""


class FrozenLinear4bit(Linear4bit):
    """A linear layer whose weight is frozen in four bits; see the top of this module.

    Build it by `of`. Its state dict holds codes and scales, and takes them back bit by bit.
    """

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)  # the one of bitsandbytes would allocate a float weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.compute_dtype, self.compute_type_is_set = None, False
        self.quant_state, self.quant_storage = None, torch.uint8
        self.support_avx512bf16_for_cpu = False
        self.training = layer.training
        self.weight = _packed(layer.weight)
        self.bias = layer.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)

    @classmethod
    def of(cls, layer: nn.Linear) -> "FrozenLinear4bit":
        """Return the layer with its weight in four bits; the float weight is freed with the layer."""
        return cls(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + bias, in the dtype of x, or of autocast.

        Args:
            x: (..., N) float.
        Returns:
            (..., M).
        Cost: 2 T M N FLOPs, and M*N floats while the product runs.
        """
        kind = x.device.type
        x = x.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype)
        y: Tensor = _Product.apply(x, self.weight)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dequantize(self) -> Tensor:
        """Return the values of the weight, (M, N), in the dtype that it had."""
        return _values(self.weight)

    def to_linear(self) -> nn.Linear:
        """Return an ordinary frozen layer with these values and the same bias."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(self.dequantize(), requires_grad=False)
        plain.bias = self.bias
        return plain.train(self.training)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        nn.Linear._save_to_state_dict(self, destination, prefix, keep_vars)
        for name, tensor in self._stored().items():
            destination[f"{prefix}weight.{name}"] = tensor

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        metadata, strict, missing, unexpected, errors = rest
        nn.Linear._load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors)
        for name, tensor in self._stored().items():
            key = f"{prefix}weight.{name}"
            if key not in state_dict:
                missing.append(key)
                continue
            tensor.copy_(state_dict[key])
            if key in unexpected:
                unexpected.remove(key)

    def _stored(self) -> dict[str, Tensor]:
        statistics = statistics_of(self.weight)
        return {name: statistics[name] for name in _STORED}


class _Product(torch.autograd.Function):
    """x Wᵀ with a weight of four bits, of which the backward pass keeps the codes alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight  # no graph leads to it, and it outlives the step
        return nn.functional.linear(x, _values(weight).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        (grad_y,) = grads
        return grad_y @ _values(ctx.weight).to(grad_y.dtype), None


def _values(weight: Any) -> Tensor:
    return cast(Tensor, dequantize_4bit(weight.detach(), weight.quant_state))


def _packed(weight: Tensor) -> nn.Parameter:
    """Return the weight in four bits, with its statistics as `quant_state`; without values, the same shapes."""
    if has_values(weight):
        codes, state = quantize_4bit(
            weight.detach().contiguous(), blocksize=BLOCK_SIZE, compress_statistics=True, quant_type="nf4"
        )
        # Tables of one's own, as they are on another device after a move: the same bytes everywhere.
        state.code, state.state2.code = state.code.clone(), state.state2.code.clone()
        return cast(
            nn.Parameter,
            Params4bit(
                codes,
                requires_grad=False,
                quant_state=state,
                blocksize=BLOCK_SIZE,
                compress_statistics=True,
                quant_type="nf4",
                bnb_quantized=True,
            ),
        )
    blocks = -(-weight.numel() // BLOCK_SIZE)
    place = weight.device
    nested = QuantState(
        absmax=torch.empty(-(-blocks // NESTED_BLOCK_SIZE), dtype=torch.float32, device=place),
        code=torch.empty(256, dtype=torch.float32, device=place),
        blocksize=NESTED_BLOCK_SIZE,
        dtype=torch.float32,
    )
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8, device=place),
        shape=weight.shape,
        code=torch.empty(16, dtype=torch.float32, device=place),
        blocksize=BLOCK_SIZE,
        quant_type="nf4",
        dtype=weight.dtype,
        offset=torch.empty((), dtype=torch.float32, device=place),
        state2=nested,
    )
    codes = torch.empty((-(-weight.numel() // 2), 1), dtype=torch.uint8, device=place)
    packed = nn.Parameter(codes, requires_grad=False)
    packed.quant_state = state  # type: ignore[attr-defined]
    return packed
