"""How an optimizer keeps a tensor: dense, as 8- or 4-bit codes, or as uniform codes for a basis.

A storage never owns tensors. It describes how a tensor is held as plain named tensors (`parts`), so that a state dict
contains nothing else and loads with ``weights_only=True``. Keys are suffixes of the state's name: "" for the dense
tensor, "codes", "block_scale", "zero_point" for quantised ones. Arithmetic always happens on what `read` returns.
Source: arXiv 2110.02861 (8 bits), arXiv 2309.01507 (4 bits), arXiv 2407.08296 (uniform codes for a basis).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from featherweight.errors import ConfigError, ShapeError
from featherweight.quant.blockwise import (
    CodeTable,
    block_count,
    code_bytes,
    dequantize_blockwise,
    dequantize_uniform,
    dynamic_table,
    empty_codes,
    quantize_blockwise,
    quantize_uniform,
    require_bits,
)

Shape = torch.Size | tuple[int, ...]
Parts = dict[str, Tensor]

# Smaller tensors stay dense: their codes save nothing worth the rounding (norms, biases).
MIN_QUANTIZED_NUMEL = 4096


class StateStorage(Protocol):
    """One way to hold a tensor. Implementations are final, hold no tensors and compare by value."""

    @property
    def name(self) -> str:
        """Word for reports and state dicts."""
        ...

    @property
    def granularity(self) -> int:
        """Slices must begin at multiples of this many elements."""
        ...

    def zeros(self, shape: Shape, *, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Parts:
        """Allocate parts that read as zeros."""
        ...

    def read(self, parts: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Return the values, float32 (float64 if stored so). A dense float32 or float64 tensor is returned itself."""
        ...

    def write_(self, parts: Mapping[str, Tensor], values: Tensor) -> None:
        """Store `values` in place; nothing happens if `values` is the stored tensor itself."""
        ...

    def slice(self, parts: Mapping[str, Tensor], start: int, stop: int) -> Parts:
        """Return views on the elements [start, stop) of the flattened tensor, to be read with shape (stop - start,)."""
        ...

    def nbytes(self, shape: Shape, dtype: torch.dtype = torch.float32) -> int:
        """Return the bytes of all parts of a tensor of this shape, exactly."""
        ...


@dataclass(frozen=True)
class DenseStorage:
    """The tensor itself, one part named "".

    Args:
        dtype: storage type; None keeps the dtype given to `zeros` (no conversion, reads are aliases).
    """

    dtype: torch.dtype | None = None

    @property
    def name(self) -> str:
        """Word for reports and state dicts."""
        return "dense" if self.dtype is None else f"dense_{str(self.dtype).removeprefix('torch.')}"

    @property
    def granularity(self) -> int:
        """Slices may begin anywhere."""
        return 1

    def zeros(self, shape: Shape, *, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Parts:
        """Allocate a tensor of zeros."""
        return {"": torch.zeros(shape, device=device, dtype=self.dtype or dtype)}

    def read(self, parts: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Return the stored tensor itself if it is float32 or float64 (in-place changes last), else a float32 copy."""
        stored = _require_shape(self.name, parts[""], shape)
        return stored if stored.dtype in (torch.float32, torch.float64) else stored.float()

    def write_(self, parts: Mapping[str, Tensor], values: Tensor) -> None:
        """Copy `values` into the stored tensor; nothing happens if they are the stored tensor."""
        stored = parts[""]
        if values is not stored:
            stored.copy_(values.view(stored.shape))

    def slice(self, parts: Mapping[str, Tensor], start: int, stop: int) -> Parts:
        """Return a flat view."""
        return {"": parts[""].view(-1)[start:stop]}

    def nbytes(self, shape: Shape, dtype: torch.dtype = torch.float32) -> int:
        """Return the bytes of a tensor of this shape."""
        return torch.Size(shape).numel() * (self.dtype or dtype).itemsize


@dataclass(frozen=True)
class DynamicStorage:
    """Dynamic 8- or 4-bit codes with one float32 scale per block: parts "codes" and "block_scale".

    An unsigned storage (second moments) never reads a positive value as 0: it takes the smallest positive code, even
    where 0 is nearer. Differs from arXiv 2110.02861: under a first moment that is not 0, a second moment of 0 would
    make Adam divide by eps alone; too large a second moment only makes one step shorter.

    Args:
        bits: 8 (block of 256) or 4 (block of 128).
        signed: whether negative values occur.
    Raises:
        ConfigError: for other widths.
    """

    bits: int
    signed: bool

    def __post_init__(self) -> None:
        require_bits("DynamicStorage", self.bits)

    @property
    def name(self) -> str:
        """Word for reports and state dicts."""
        return f"dynamic{self.bits}_{'signed' if self.signed else 'unsigned'}"

    @property
    def granularity(self) -> int:
        """The block size: slices hold whole blocks."""
        return 256 if self.bits == 8 else 128

    @property
    def table(self) -> CodeTable:
        """The values of the codes."""
        return dynamic_table(self.bits, signed=self.signed, positive_stays_positive=not self.signed)

    def zeros(self, shape: Shape, *, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Parts:
        """Allocate codes and scales that read as zeros; `dtype` has no effect."""
        codes, block_scale = empty_codes(torch.Size(shape).numel(), self.bits, self.granularity, device)
        zero = self.table.zero_code
        codes.fill_(zero if self.bits == 8 else zero | zero << 4)
        return {"codes": codes, "block_scale": block_scale.zero_()}

    def read(self, parts: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Return a new float32 tensor."""
        return dequantize_blockwise(parts["codes"], parts["block_scale"], self.table, self.granularity, shape)

    def write_(self, parts: Mapping[str, Tensor], values: Tensor) -> None:
        """Quantise `values` into the parts."""
        _require_numel(self.name, parts, values, self.bits, self.granularity)
        quantize_blockwise(values, self.table, self.granularity, out=(parts["codes"], parts["block_scale"]))

    def slice(self, parts: Mapping[str, Tensor], start: int, stop: int) -> Parts:
        """Return views on whole blocks."""
        return _slice_blocks(self.name, parts, start, stop, self.bits, self.granularity)

    def nbytes(self, shape: Shape, dtype: torch.dtype = torch.float32) -> int:
        """Return the bytes of codes and scales: 1 + 4/256 per element for 8 bits, 1/2 + 4/128 for 4, rounded up."""
        numel = torch.Size(shape).numel()
        return code_bytes(numel, self.bits) + 4 * block_count(numel, self.granularity)


@dataclass(frozen=True)
class UniformStorage:
    """Uniform 8- or 4-bit codes in blocks of 256: parts "codes", "block_scale" and "zero_point". Made for bases.

    A basis that was rounded to 4 bits is not orthonormal: eigenvalues of ``P^T P`` lie in about [0.86, 1.17].

    Args:
        bits: 8 or 4.
        renorm: keep the norm of each column of the rounded matrix as well, part "column_norm", and divide by it when
            reading, so that columns have unit length. The stored matrices must then have columns of unit length.
    Raises:
        ConfigError: for other widths.
    """

    bits: int
    renorm: bool = False

    def __post_init__(self) -> None:
        require_bits("UniformStorage", self.bits)

    @property
    def name(self) -> str:
        """Word for reports and state dicts."""
        return f"uniform{self.bits}{'_renorm' if self.renorm else ''}"

    @property
    def granularity(self) -> int:
        """The block size: slices hold whole blocks."""
        return 256

    def zeros(self, shape: Shape, *, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Parts:
        """Allocate codes, scales and zero points that read as zeros; `dtype` has no effect."""
        codes, block_scale = empty_codes(torch.Size(shape).numel(), self.bits, self.granularity, device)
        zero_point = torch.zeros(block_scale.shape, dtype=torch.uint8, device=device)
        parts = {"codes": codes.zero_(), "block_scale": block_scale.zero_(), "zero_point": zero_point}
        if self.renorm:
            parts["column_norm"] = torch.ones(shape[-1], dtype=torch.float16, device=device)
        return parts

    def read(self, parts: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """Return a new float32 tensor."""
        values = dequantize_uniform(
            parts["codes"], parts["block_scale"], parts["zero_point"], self.bits, self.granularity, shape
        )
        return values.div_(parts["column_norm"].float()) if self.renorm else values

    def write_(self, parts: Mapping[str, Tensor], values: Tensor) -> None:
        """Quantise `values` into the parts."""
        _require_numel(self.name, parts, values, self.bits, self.granularity)
        out = parts["codes"], parts["block_scale"], parts["zero_point"]
        quantize_uniform(values, self.bits, self.granularity, out=out)
        if self.renorm:
            rounded = dequantize_uniform(*out, self.bits, self.granularity, values.shape)
            parts["column_norm"].copy_(torch.linalg.vector_norm(rounded, dim=-2).clamp_min_(0.5))

    def slice(self, parts: Mapping[str, Tensor], start: int, stop: int) -> Parts:
        """Return views on whole blocks; not possible with column norms."""
        if self.renorm:
            raise ShapeError(
                f"StateStorage '{self.name}': slice [{start}, {stop}) cuts columns, whose norms are stored; expected "
                "the whole matrix. Read it as a whole."
            )
        return _slice_blocks(self.name, parts, start, stop, self.bits, self.granularity)

    def nbytes(self, shape: Shape, dtype: torch.dtype = torch.float32) -> int:
        """Return the bytes of codes, scales and zero points: bits/8 + 5/256 per element, rounded up; 2 per column."""
        numel = torch.Size(shape).numel()
        norms = 2 * shape[-1] if self.renorm else 0
        return code_bytes(numel, self.bits) + 5 * block_count(numel, self.granularity) + norms


def storage_for(bits: int, *, signed: bool, numel: int) -> StateStorage:
    """Return the storage of an optimizer state.

    Args:
        bits: 32 (dense in the compute dtype), 16 (dense bf16), 8 or 4 (dynamic codes).
        signed: whether the state can be negative: True for first, False for second moments.
        numel: elements of the tensor. Below `MIN_QUANTIZED_NUMEL` it stays dense in the compute dtype at any width.
    Raises:
        ConfigError: for other widths.
    """
    _require_width("storage_for", bits)
    if bits == 32 or numel < MIN_QUANTIZED_NUMEL:
        return DenseStorage()
    return DenseStorage(torch.bfloat16) if bits == 16 else DynamicStorage(bits, signed)


def basis_storage_for(bits: int, renorm: bool = False) -> StateStorage:
    """Return the storage of a basis: 32 dense in the compute dtype, 16 dense bf16, 8 or 4 uniform codes.

    Args:
        bits: 32, 16, 8 or 4.
        renorm: keep columns at unit length in 8 or 4 bits; no effect on dense storages.
    Raises:
        ConfigError: for other widths.
    """
    _require_width("basis_storage_for", bits)
    if bits == 32:
        return DenseStorage()
    return DenseStorage(torch.bfloat16) if bits == 16 else UniformStorage(bits, renorm)


def _require_width(where: str, bits: int) -> None:
    if bits not in (32, 16, 8, 4):
        raise ConfigError(f"{where}: bits={bits!r} is no storage width; expected 32, 16, 8 or 4. Choose one of these.")


def _require_shape(name: str, stored: Tensor, shape: Shape) -> Tensor:
    if stored.shape == torch.Size(shape):
        return stored
    if stored.numel() != torch.Size(shape).numel():
        raise ShapeError(
            f"StateStorage '{name}': stored={tuple(stored.shape)} cannot be read as shape={tuple(shape)}; expected "
            f"{stored.numel()} elements. Pass the shape that was given to zeros()."
        )
    return stored.view(shape)


def _require_numel(name: str, parts: Mapping[str, Tensor], values: Tensor, bits: int, block_size: int) -> None:
    numel = values.numel()
    codes, block_scale = parts["codes"], parts["block_scale"]
    if codes.numel() != code_bytes(numel, bits) or block_scale.numel() != block_count(numel, block_size):
        raise ShapeError(
            f"StateStorage '{name}': values={tuple(values.shape)} do not fit codes={tuple(codes.shape)}, "
            f"block_scale={tuple(block_scale.shape)}; expected as many elements as were given to zeros(). "
            f"Write the whole tensor, or slice() first."
        )


def _slice_blocks(name: str, parts: Mapping[str, Tensor], start: int, stop: int, bits: int, block_size: int) -> Parts:
    code_stop = code_bytes(stop, bits)
    is_end = code_stop == parts["codes"].numel()
    if (
        start % block_size
        or not (stop % block_size == 0 or is_end)
        or not start <= stop
        or code_stop > parts["codes"].numel()
    ):
        raise ShapeError(
            f"StateStorage '{name}': slice [{start}, {stop}) cuts a block or leaves the tensor; expected multiples of "
            f"{block_size} or the end. Round the limits to the storage's granularity."
        )
    blocks = slice(start // block_size, block_count(stop, block_size))
    codes = slice(code_bytes(start, bits), code_stop)
    return {key: part[codes if key == "codes" else blocks] for key, part in parts.items()}
