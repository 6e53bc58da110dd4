"""Weights of eight bits that are trained as they are: codes, scales, and the parameter that stands for them.

``weight = code * scale`` with codes in [-127, 127] and one float32 scale for each group of `group_size` elements of a
row. A scale has 17 significant bits, so that every product is exact in float32: reading and writing back changes
nothing. There is no zero point: a constant group or one of a single sign is exact to half a code anyway.
An optimizer, a hook or a gradient norm sees a *handle*: an ordinary parameter of the weight's shape and of the dtype of
the computation, with an ordinary gradient, whose own values are a single NaN. `int8_weight_of` finds the codes behind
it. Code that reads a handle by mistake gets NaN, not a wrong number; code that would write into it is refused
(`foreign_write.py`).
Shapes: M rows, N columns, Q = ceil(N / group_size) groups of a row, B elements of a group.
Source: the idea of int8 weights without a float copy is that of Q-GaLore, arXiv 2407.08296, section 3.2; symmetric
codes with scales that stay are ours (`int8_update.py`).
"""

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.weak import WeakTensorKeyDictionary

from featherweight.errors import ConfigError, NumericsError, ShapeError
from featherweight.quant.foreign_write import ValuelessTensor, watch_optimizers
from featherweight.simulated import device_kind
from featherweight.tiles import tiles

GROUP_SIZE = 256
"""Default number of elements that share a scale."""
LARGEST_CODE = 127
FITTED_CODE = 125
"""Code of the largest element of a group whose scale was just fitted: two codes of headroom for updates."""
SMALLEST_SCALE = 2.0**-100
"""Groups whose scale would be smaller keep this one, far from numbers without full precision."""

# Elements handled at once. On a CPU the buffers of a tile stay in the second-level cache; a GPU wants few launches.
_TILE_ELEMENTS_CPU = 1 << 16
_TILE_ELEMENTS_GPU = 1 << 22


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """References to the codes and scales of one weight; methods that end in an underscore write into them.

    Example:
        >>> weight = Int8Weight.quantize(torch.tensor([[-1.0, 0.5, 0.25]]))
        >>> weight.codes.tolist(), weight.nbytes
        ([[-125, 62, 31]], 7)
    """

    codes: Tensor
    """(M, N) int8."""
    block_scale: Tensor
    """(M, Q) float32; 0 for a group of zeros."""
    group_size: int = GROUP_SIZE

    @classmethod
    def quantize(cls, values: Tensor, group_size: int = GROUP_SIZE) -> "Int8Weight":
        """Quantise to the nearest code, the largest magnitude of each group to code 125.

        Args:
            values: (M, N) float, any device, meta included. Not modified.
            group_size: elements of a row that share a scale; the last group of a row may be shorter.
        Raises:
            ShapeError: if it is no matrix.
            ConfigError: for a group size below 1, or a dtype that is no real floating point.
            NumericsError: for a NaN or infinite value.
        Cost: a few tiles of float32; 1 + 4 / group_size bytes per element are kept.
        """
        if values.ndim != 2:
            raise ShapeError(
                f"Int8Weight.quantize: values={tuple(values.shape)} are no matrix; expected (M, N). Reshape them."
            )
        if group_size < 1 or not values.is_floating_point():
            raise ConfigError(
                f"Int8Weight.quantize: group_size={group_size}, dtype={values.dtype} cannot be; expected "
                "group_size >= 1 and a floating-point dtype. Take group_size=256 and a float weight."
            )
        rows, columns = values.shape
        weight = cls.empty(rows, columns, group_size, device=values.device)
        if not has_values(values):
            return weight
        weight.write_(values)
        if not bool(weight.block_scale.isfinite().all()):
            raise NumericsError(
                f"Int8Weight.quantize: values={tuple(values.shape)} hold NaN, infinity or more than float32 can; "
                "expected finite values. Find out which layer diverged."
            )
        return weight

    @classmethod
    def empty(cls, rows: int, columns: int, group_size: int, *, device: torch.device | str | None) -> "Int8Weight":
        """Return a weight whose codes and scales are still to be written."""
        codes = torch.empty(rows, columns, dtype=torch.int8, device=device)
        scale = torch.empty(rows, math.ceil(columns / group_size), dtype=torch.float32, device=device)
        return cls(codes, scale, group_size)

    @property
    def shape(self) -> torch.Size:
        """(M, N)."""
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.block_scale.nbytes

    @property
    def version(self) -> int | None:
        """A number that changes with the codes; None where torch counts no changes (inference mode)."""
        return None if self.codes.is_inference() else self.codes._version

    def require_version(self, version: int | None) -> None:
        """Refuse to go on with other codes than those of the forward pass, as autograd does for saved tensors.

        Raises:
            NumericsError: if they have changed since `version`.
        """
        if version is not None and self.version != version:
            raise NumericsError(
                f"int8 weight: {tuple(self.shape)} was changed between the forward and the backward pass; expected the "
                "weight of the forward pass. Run forward and backward of a batch in turn, before the optimizer's step."
            )

    def numel(self) -> int:
        """Return M * N."""
        return self.codes.numel()

    def rows(self, start: int, stop: int) -> "Int8Weight":
        """Return a view on some rows."""
        return Int8Weight(self.codes[start:stop], self.block_scale[start:stop], self.group_size)

    def split(self, blocks: int) -> list["Int8Weight"]:
        """Return views on so many equal blocks of rows."""
        height = self.shape[0] // blocks
        return [self.rows(i * height, (i + 1) * height) for i in range(blocks)]

    def row_tiles(self, elements: int | None = None, multiple: int = 1) -> Iterator[tuple[int, int]]:
        """Return the runs of rows as (start, stop).

        Args:
            elements: of a tile, about; None chooses by the device.
            multiple: every run but the last has a multiple of so many rows.
        """
        if elements is None:
            elements = _TILE_ELEMENTS_CPU if device_kind(self.codes.device) == "cpu" else _TILE_ELEMENTS_GPU
        rows, columns = self.shape
        return tiles(rows, max(1, elements // max(1, columns) // multiple) * multiple)

    def parts(self, *tensors: Tensor) -> Iterator[list[Tensor]]:
        """Cut matrices of this weight's shape into groups: views (M, Q, B), the shorter last groups of rows apart.

        Yields:
            codes and scales, (M, Q, B) and (M, Q, 1), then one view of each tensor.
        """
        rows, columns = self.shape
        size = self.group_size
        full = columns // size * size
        matrices = (self.codes, *tensors)
        if full:
            groups = [m[:, :full].unflatten(1, (full // size, size)) for m in matrices]
            yield [groups[0], self.block_scale[:, : full // size].unsqueeze(-1), *groups[1:]]
        if full < columns:
            groups = [m[:, full:].unsqueeze(1) for m in matrices]
            yield [groups[0], self.block_scale[:, full // size :].unsqueeze(-1), *groups[1:]]

    def dequantize(self, dtype: torch.dtype = torch.float32, rows: slice = slice(None)) -> Tensor:
        """Return the values, each rounded at most once.

        Args:
            dtype: of the result; float32 holds the values exactly.
            rows: which rows.
        Returns:
            New (M, N) tensor.
        """
        start, stop, _ = rows.indices(self.shape[0])
        source = self.rows(start, stop)
        result = torch.empty(source.shape, dtype=dtype, device=self.codes.device)
        if not has_values(self.codes):
            return result
        # A CPU converts codes in a buffer of their own.
        whole = None if device_kind(self.codes.device) == "cpu" else self.codes.numel()
        for first, last in source.row_tiles(whole):
            for codes, scale, out in source.rows(first, last).parts(result[first:last]):
                torch.mul(codes, scale, out=out)
        return result

    def gather(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the rows at `index`, dequantised: an embedding's lookup.

        Args:
            index: integers of any shape.
            dtype: of the result.
        Returns:
            (*index.shape, N).
        """
        flat = index.reshape(-1)
        rows = Int8Weight(self.codes[flat], self.block_scale[flat], self.group_size).dequantize(dtype)
        return rows.view(*index.shape, self.shape[1])

    def write_(self, values: Tensor) -> None:
        """Quantise new values into this weight, to nearest.

        Args:
            values: (M, N), any float dtype.
        """
        for start, stop in self.row_tiles():
            self.rows(start, stop)._fit_(values.detach()[start:stop].float())

    def _fit_(self, values_MN: Tensor) -> None:
        for codes, scale, values in self.parts(values_MN):
            fitted = fitted_scale(values.abs().amax(dim=-1, keepdim=True))
            scale.copy_(fitted)
            codes.copy_((values / safe_scale(fitted)).round_().clamp_(-LARGEST_CODE, LARGEST_CODE).nan_to_num_())


def has_values(tensor: Tensor) -> bool:
    """Say whether a tensor has values to compute with; on the meta device and under FakeTensorMode it has none."""
    return tensor.device.type != "meta" and not isinstance(tensor.detach(), FakeTensor)


def fitted_scale(largest: Tensor) -> Tensor:
    """Return the scale that puts a group's largest magnitude at code 125; 0 for 0, NaN for what is not finite."""
    scale = exact_scale(largest / FITTED_CODE).clamp_min_(SMALLEST_SCALE)
    return torch.where(largest > 0, scale, largest.abs())


def exact_scale(scale: Tensor) -> Tensor:
    """Round float32 scales to 17 significant bits, so that their products with all codes are exact in float32."""
    return scale.contiguous().view(torch.int32).add(64).bitwise_and_(-128).view(torch.float32)


def safe_scale(scale: Tensor) -> Tensor:
    """Return the scales with 1 in place of 0, to divide by."""
    return torch.where(scale == 0, 1.0, scale)


# ---- handles


class Int8Owner(Protocol):
    """What holds the codes: a module with buffers."""

    def int8_weight(self) -> Int8Weight:
        """Return references to the present codes and scales."""
        ...


class Int8Handle(ValuelessTensor, nn.Parameter):
    """A parameter that stands for an int8 weight: its shape, dtype, device and gradient; all its values are one NaN.

    No foreign code can write through it, see `featherweight.quant.foreign_write`.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "Int8Handle":
        if id(self) not in memo:
            memo[id(self)] = new_handle(self)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild_handle, (tuple(self.shape), self.dtype, str(self.device), self.requires_grad)


def handle_data(shape: torch.Size | tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return one NaN, seen as a matrix; from now on every optimizer is watched."""
    watch_optimizers()
    return torch.full((1,), math.nan, dtype=dtype, device=device).as_strided(tuple(shape), (0,) * len(shape))


def new_handle(like: Tensor, device: torch.device | str | None = None) -> Int8Handle:
    """Return another handle of the same shape, dtype and need for a gradient."""
    data = handle_data(like.shape, like.dtype, device or like.device)
    return Int8Handle(data, requires_grad=like.requires_grad)


def _rebuild_handle(shape: tuple[int, ...], dtype: torch.dtype, device: str, requires_grad: bool) -> Int8Handle:
    return Int8Handle(handle_data(shape, dtype, device), requires_grad=requires_grad)


_owners: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Weak references to the owner behind each handle."""


def register_int8_weight(handle: Tensor, owner: Int8Owner) -> None:
    """Let a handle stand for the weight of an owner.

    Args:
        handle: a parameter; the table forgets it when it dies.
        owner: asked for its codes whenever they are needed, so they may move and be replaced; only weakly held.
    """
    _owners[handle] = weakref.ref(owner)


def forget_int8_weight(handle: Tensor) -> None:
    """Let a parameter be an ordinary one again."""
    _owners.pop(handle, None)


def is_registered(handle: Tensor) -> bool:
    """Say whether a parameter stands for the weight of an owner that is alive."""
    return handle in _owners and _owners[handle]() is not None


def int8_weight_of(parameter: Tensor) -> Int8Weight | None:
    """Return the int8 weight that a parameter stands for, or None for an ordinary parameter.

    Raises:
        ConfigError: for a handle without a module: the module is gone, or only the handle was copied.
    """
    reference = _owners.get(parameter)
    if reference is None and not isinstance(parameter, Int8Handle):
        return None
    owner = None if reference is None else reference()
    if owner is None:
        raise ConfigError(
            f"int8 weight: handle={tuple(parameter.shape)} stands for no module, or for one that is gone; expected a "
            "living one. Copy model and optimizer together, or build the optimizer from the model's parameters."
        )
    weight: Int8Weight = owner.int8_weight()
    return weight
