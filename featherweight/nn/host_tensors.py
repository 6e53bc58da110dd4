"""Tensors that wait on the host and are on the device for a while only, such as the optimizer states of one layer.

They stay the same objects: their memory is exchanged. On a CPU both places are memory of their own, which a test can
follow. Copies are in order with the present stream: nobody waits for them, and they do not run beside the computation.
Source: MegaTrain, arXiv 2604.05091, keeps states on the host and updates there; that they come to the device is ours.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from featherweight.nn.offload import refused_pinning
from featherweight.simulated import device_kind, simulated_device


class HostTensors:
    """Moves tensors between host and device.

    Args:
        device: where they are used.

    Example:
        >>> waiting, moment = HostTensors(torch.device("cpu")), torch.ones(3)
        >>> waiting.leave([moment])
        >>> waiting.come([moment])
        >>> moment.add_(1), waiting.read_bytes, waiting.written_bytes
        (tensor([2., 2., 2.]), 12, 12)
    """

    poison = False
    """For tests: fill the memory of the device with NaN as soon as its tensor is gone, so that nothing reads it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.read_bytes = self.written_bytes = 0
        self._host = WeakIdKeyDictionary()  # the memory of each tensor that has been on the host
        self._away = WeakIdKeyDictionary()  # those that are there now

    def come(self, tensors: Iterable[Tensor]) -> None:
        """Have tensors on the device; those that are there stay."""
        for tensor in tensors:
            if tensor not in self._away and tensor.device == self.device:
                continue
            self._away.pop(tensor, None)
            waiting = self._host.get(tensor, tensor.detach())
            placed = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
            tensor.data = placed.copy_(waiting, non_blocking=True)
            self.read_bytes += tensor.nbytes

    def leave(self, tensors: Iterable[Tensor], changed: bool = True) -> None:
        """Have tensors wait on the host.

        Args:
            tensors: those that wait there already stay.
            changed: False for what has been there before and is as it was: it is not copied again.
        Raises:
            DeviceError: if the system refuses pinned memory.
        """
        for tensor in tensors:
            if tensor in self._away:
                continue
            used = tensor.detach()
            before = self._host.get(tensor)
            waiting = self._memory(tensor)
            if changed or waiting is not before:
                waiting.copy_(used, non_blocking=True)
                self.written_bytes += waiting.nbytes
            tensor.data = _shape_alone(used) if waiting.device.type == "meta" else waiting
            self._away[tensor] = True
            if self.poison:
                used.view(-1).view(torch.uint8).fill_(255)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor waits on the host now."""
        return tensor in self._away

    def settle(self) -> None:
        """Wait until the host holds everything that has left."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _memory(self, tensor: Tensor) -> Tensor:
        found: Tensor | None = self._host.get(tensor)
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            is_simulated_gpu = simulated_device() is not None and device_kind(tensor.device) == "cuda"
            place, pinned = "meta" if is_simulated_gpu else "cpu", self.device.type == "cuda"
            try:
                found = torch.empty(tensor.shape, dtype=tensor.dtype, device=place, pin_memory=pinned)
            except RuntimeError as error:
                raise refused_pinning(tensor.nbytes, error) from error
            self._host[tensor] = found
        return found


def _shape_alone(tensor: Tensor) -> Tensor:
    """Return what has a tensor's shape and takes no memory of the simulated device."""
    return tensor.new_empty(()).expand(tensor.shape)
