"""What is compared before a kernel is launched: it believes every size that it is given."""

from typing import NamedTuple

import torch
from torch import Tensor

from featherweight.errors import ShapeError


class Argument(NamedTuple):
    """A tensor, and what the kernel takes it for."""

    name: str
    tensor: Tensor
    numel: int
    dtype: torch.dtype | None
    """None for any of at most 32 bits that is floating-point."""


def check_launch(kernel: str, device: torch.device, *arguments: Argument) -> None:
    """Refuse tensors that a kernel would read or write beyond their end, or take for what they are not.

    Args:
        kernel: its name, for messages.
        device: where it runs.
        arguments: every tensor that it gets.
    Raises:
        ShapeError: for another number of elements, dtype or device, or elements that do not follow each other.
    """
    for name, tensor, numel, dtype in arguments:
        is_type = tensor.dtype == dtype if dtype is not None else tensor.is_floating_point() and tensor.itemsize <= 4
        if tensor.numel() != numel or not is_type or tensor.device != device or not tensor.is_contiguous():
            raise ShapeError(
                f"kernels.{kernel}: {name}={tuple(tensor.shape)} {tensor.dtype} on {tensor.device} does not fit; "
                f"expected {numel} contiguous elements of {dtype or 'floating point in at most 32 bits'} on {device}. "
                "Pass tensors of one parameter."
            )
