"""The Fourier Neural Operator: a small model of our own, whose weights load into and from neuraloperator's.

Channels are lifted pointwise, pass layers of spectral convolution plus pointwise skip, and are projected pointwise. The
only large weights are those of the spectral convolutions: complex, one matrix for each kept frequency.
Shapes: B samples, C channels, s_1 .. s_d points, m_k kept modes an axis (both signs; of the last axis only m_d // 2 +
1).
Source: Li et al., arXiv 2010.08895; layout of neuraloperator 2.0 (Kossaifi et al., arXiv 2412.10354). Differs from it:
the spectrum is shifted back by `ifftshift`, which is the inverse on odd grids, too. neuraloperator shifts by `fftshift`
twice: on axes (but the last) with an odd number of points, each frequency comes back one lower, so the outputs of equal
weights differ there. ``FNO(odd_grids="neuraloperator")`` does the same, for weights that were trained so.
"""

import math
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.errors import ConfigError, ShapeError


class ChannelMLP(nn.Module):
    """Two pointwise linear maps with GELU between.

    Args:
        in_channels: before.
        out_channels: after.
        hidden_channels: between.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fcs = nn.ModuleList(
            [nn.Conv1d(in_channels, hidden_channels, 1), nn.Conv1d(hidden_channels, out_channels, 1)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, s_1, .., s_d) to (B, C', s_1, .., s_d)."""
        hidden = F.gelu(self.fcs[0](x.flatten(2)))
        return self.fcs[1](hidden).unflatten(2, x.shape[2:])


class DenseSpectralWeight(nn.Module):
    """The weight of a spectral convolution, under the name that neuraloperator gives it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        std = math.sqrt(2 / (shape[0] + shape[1]))
        self.tensor = nn.Parameter(std * torch.randn(shape, dtype=torch.complex64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DenseSpectralWeight":
        """Move or cast the weight as a complex one: a cast of the model to a real type reaches its two parts.

        `Module.to(torch.bfloat16)` would keep the real part alone. There is no complex type of 16 bits that all devices
        multiply, so such a cast leaves the weight in complex64.
        """

        def apply(tensor: Tensor) -> Tensor:
            if not tensor.is_complex():
                return fn(tensor)
            parts = fn(torch.view_as_real(tensor))
            if parts.is_complex():
                return fn(tensor)
            is_short = parts.dtype in (torch.bfloat16, torch.float16)
            return tensor.to(parts.device) if is_short else torch.view_as_complex(parts)

        super()._apply(apply, recurse)
        return self


class SpectralConv(nn.Module):
    """Multiply the lowest frequencies of a field with a learned matrix each.

    Args:
        in_channels: before.
        out_channels: after.
        n_modes: kept modes an axis, both signs counted.

    Attributes:
        shifts_twice: see `odd_grids` of `FNO`.
    """

    def __init__(self, in_channels: int, out_channels: int, n_modes: Sequence[int]) -> None:
        super().__init__()
        kept = (*n_modes[:-1], n_modes[-1] // 2 + 1)
        self.weight = DenseSpectralWeight((in_channels, out_channels, *kept))
        std = math.sqrt(2 / (in_channels + out_channels))
        self.bias = nn.Parameter(std * torch.randn(out_channels, *[1] * len(kept)))
        self.shifts_twice = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, s_1, .., s_d) to (B, C', s_1, .., s_d), at any resolution."""
        sizes, axes = x.shape[2:], tuple(range(2, x.ndim))
        # 16-bit transforms exist for powers of two on GPUs only; the large weight has its own, complex type.
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        spectrum = torch.fft.rfftn(wide, dim=axes, norm="forward")
        weight: Tensor = self.weight.tensor
        if weight.dtype == torch.complex32:
            weight = weight.to(torch.complex64)
        spectrum = torch.fft.fftshift(spectrum, dim=axes[:-1]) if axes[:-1] else spectrum
        out = spectrum.new_zeros(x.shape[0], weight.shape[1], *spectrum.shape[2:])
        # On a grid too coarse for all modes, the middle part of the weight is used.
        kept = [min(m, s) for m, s in zip(weight.shape[2:], spectrum.shape[2:], strict=True)]
        inside = [_centred(s, m) for s, m in zip(spectrum.shape[2:-1], kept[:-1], strict=True)] + [slice(kept[-1])]
        used = [_centred(w, m) for w, m in zip(weight.shape[2:-1], kept[:-1], strict=True)] + [slice(kept[-1])]
        here = (slice(None), slice(None), *inside)
        out[here] = torch.einsum("bi...,io...->bo...", spectrum[here], weight[(slice(None), slice(None), *used)])
        if axes[:-1]:
            out = (torch.fft.fftshift if self.shifts_twice else torch.fft.ifftshift)(out, dim=axes[:-1])
        return torch.fft.irfftn(out, s=sizes, dim=axes, norm="forward").to(x.dtype) + self.bias


class PointwiseSkip(nn.Module):
    """A linear map of the channels without bias, under neuraloperator's name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, ...) to the same shape."""
        return self.conv(x.flatten(2)).unflatten(2, x.shape[2:])


class SoftGating(nn.Module):
    """One factor for each channel."""

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, *[1] * dimensions))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, ...) to the same shape."""
        return self.weight * x


class FNOBlocks(nn.Module):
    """The layers between lifting and projection."""

    def __init__(self, channels: int, n_modes: Sequence[int], n_layers: int, expansion: float) -> None:
        super().__init__()
        dimensions, hidden = len(n_modes), round(channels * expansion)
        self.convs = nn.ModuleList([SpectralConv(channels, channels, n_modes) for _ in range(n_layers)])
        self.fno_skips = nn.ModuleList([PointwiseSkip(channels) for _ in range(n_layers)])
        self.channel_mlp = nn.ModuleList([ChannelMLP(channels, channels, hidden) for _ in range(n_layers)])
        self.channel_mlp_skips = nn.ModuleList([SoftGating(channels, dimensions) for _ in range(n_layers)])

    def layer(self, x: Tensor, index: int) -> Tensor:
        """Run one layer: (B, C, ...) to the same shape; no GELU at the end of the last one."""
        is_last = index == len(self.convs) - 1
        gate = self.channel_mlp_skips[index](x)
        x = self.convs[index](x) + self.fno_skips[index](x)
        x = x if is_last else F.gelu(x)
        x = self.channel_mlp[index](x) + gate
        return x if is_last else F.gelu(x)


class FNO(nn.Module):
    """A Fourier Neural Operator with neuraloperator's argument and state-dict names.

    Args:
        n_modes: kept modes an axis, both signs counted; its length is the number of axes, 1 to 3.
        in_channels: of the input field.
        out_channels: of the output field.
        hidden_channels: width C.
        n_layers: number of layers.
        lifting_channel_ratio: hidden width of the lifting, over C.
        projection_channel_ratio: hidden width of the projection, over C.
        channel_mlp_expansion: hidden width of the pointwise networks in the layers, over C.
        domain_padding: share of each axis that is added as zeros behind the field, for fields that are not periodic.
        activation_checkpointing: recompute each layer in the backward pass.
        odd_grids: "exact", or "neuraloperator": shift frequencies as that package does on axes with an odd number of
            points, as weights that it trained on such grids (85, 141, 421 points for Darcy flow) expect.
    Raises:
        ConfigError: for no mode, more than three axes, or an unknown word for `odd_grids`.
    Example:
        >>> model = FNO(n_modes=(8, 8), in_channels=1, out_channels=1, hidden_channels=8, n_layers=2)
        >>> model(torch.zeros(2, 1, 16, 16)).shape, model(torch.zeros(1, 1, 25, 32)).shape
        (torch.Size([2, 1, 16, 16]), torch.Size([1, 1, 25, 32]))
    """

    def __init__(
        self,
        n_modes: Sequence[int],
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        n_layers: int = 4,
        *,
        lifting_channel_ratio: float = 2,
        projection_channel_ratio: float = 2,
        channel_mlp_expansion: float = 0.5,
        domain_padding: float = 0.0,
        activation_checkpointing: bool = False,
        odd_grids: Literal["exact", "neuraloperator"] = "exact",
    ) -> None:
        super().__init__()
        if odd_grids not in ("exact", "neuraloperator"):
            raise ConfigError(
                f"FNO: odd_grids={odd_grids!r} is unknown; expected 'exact' or 'neuraloperator'. Choose one of them."
            )
        if not 1 <= len(n_modes) <= 3 or min(n_modes) < 1:
            raise ConfigError(
                f"FNO: n_modes={tuple(n_modes)} is not allowed; expected one to three numbers >= 1, one for each axis "
                f"of "
                "the field. Change n_modes."
            )
        self.n_modes, self.in_channels = tuple(n_modes), in_channels
        self.domain_padding, self.activation_checkpointing = domain_padding, activation_checkpointing
        self.fno_blocks = FNOBlocks(hidden_channels, n_modes, n_layers, channel_mlp_expansion)
        for conv in self.fno_blocks.convs:
            conv.shifts_twice = odd_grids == "neuraloperator"  # type: ignore[assignment]
        lifted = in_channels + len(n_modes)
        self.lifting = ChannelMLP(lifted, hidden_channels, round(hidden_channels * lifting_channel_ratio))
        self.projection = ChannelMLP(hidden_channels, out_channels, round(hidden_channels * projection_channel_ratio))
        # Of larger modules, too, whose own load_state_dict is called and not this one's.
        self.register_load_state_dict_pre_hook(_skip_metadata)

    def forward(self, x: Tensor) -> Tensor:
        """Map an input field to an output field, at any resolution.

        Args:
            x: (B, in_channels, s_1, .., s_d).
        Returns:
            (B, out_channels, s_1, .., s_d).
        Raises:
            ShapeError: if the channels or axes differ from those of the model.
        """
        if x.ndim != 2 + len(self.n_modes) or x.shape[1] != self.in_channels:
            raise ShapeError(
                f"FNO: x={tuple(x.shape)} does not fit; expected (B, {self.in_channels}, "
                f"{', '.join(f's_{k + 1}' for k in range(len(self.n_modes)))}). Add the axis of the channels."
            )
        x = self.lifting(torch.cat([x, *_coordinates(x)], dim=1))
        sizes = x.shape[2:]
        added = [round(self.domain_padding * s) for s in sizes]
        if any(added):
            x = F.pad(x, [n for extra in reversed(added) for n in (0, extra)])
        for index in range(len(self.fno_blocks.convs)):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(self.fno_blocks.layer, x, index, use_reentrant=False)
            else:
                x = self.fno_blocks.layer(x, index)
        for axis, size in enumerate(sizes if any(added) else (), 2):
            x = x.narrow(axis, 0, size)
        return self.projection(x)


def _skip_metadata(
    model: nn.Module,
    state_dict: MutableMapping[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Take the entries `_metadata` that neuraloperator writes into state dicts out of one that is being loaded."""
    state_dict.pop(f"{prefix}_metadata", None)
    unexpected[:] = [name for name in unexpected if name.rpartition(".")[2] != "_metadata"]


def _centred(size: int, kept: int) -> slice:
    """Return where `kept` frequencies around zero stand in a shifted spectrum."""
    start = size // 2 - kept // 2
    return slice(start, start + kept)


def _coordinates(x: Tensor) -> list[Tensor]:
    """Return one channel for each axis, i / s at point i, expanded to the batch."""
    axes = [torch.arange(s, device=x.device, dtype=x.dtype) / s for s in x.shape[2:]]
    return [grid.expand(x.shape[0], 1, *x.shape[2:]) for grid in torch.meshgrid(*axes, indexing="ij")]
