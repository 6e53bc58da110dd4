"""Tensors that wait for the backward pass in host memory instead of on the device.

While a layer computes, the input of the layer before is copied out; while a layer goes backward, the input of the layer
below is copied in. So at most two of them are on the device. On a CPU the same code copies into memory of its own,
which a test can follow.
Source: arXiv 2407.15892, section 3.3, and arXiv 2506.13996 (checkpoint offload).
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import DeviceError
from featherweight.simulated import device_kind, simulated_device


class HostRing:
    """Copies saved tensors out in the forward pass and in again, one ahead, in the backward pass.

    Args:
        count: how many tensors of one size a forward pass will store; asked before the first, for the memory check.
    Example:
        >>> ring, x = HostRing(count=1), torch.ones(3, requires_grad=True)
        >>> with ring.storing():
        ...     y = x.square().sum()
        >>> ring.host_bytes
        12
        >>> y.backward()
        >>> x.grad
        tensor([2., 2., 2.])
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._last: weakref.ref[_Stored] | None = None
        self._stored: weakref.WeakSet[_Stored] = weakref.WeakSet()
        self._in_flight: list[tuple[Tensor, Any]] = []
        self._checked_bytes = 0
        self._stream: Any = None

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that graphs hold now."""
        return sum(stored.host.nbytes for stored in self._stored)

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Store what autograd saves inside the block; parameters and whole numbers stay where they are."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            yield

    def __deepcopy__(self, memo: dict[int, Any]) -> "HostRing":
        return HostRing(self.count)

    def _pack(self, tensor: Tensor) -> Any:
        if not tensor.is_floating_point() or isinstance(tensor, torch.nn.Parameter) or not tensor.numel():
            return tensor
        self._check(tensor)
        stored = _Stored(tensor, self._last() if self._last is not None else None)
        with self._side_stream(tensor.device):
            stored.host.copy_(tensor.detach(), non_blocking=True)
        if tensor.device.type == "cuda":
            # Two may be on their way; the third waits for the first, so that the device holds two at most.
            if len(self._in_flight) >= 2:
                self._in_flight.pop(0)[1].synchronize()
            self._in_flight.append((tensor, self._stream.record_event()))
        self._last = weakref.ref(stored)
        self._stored.add(stored)
        return stored

    def _unpack(self, packed: Any) -> Tensor:
        if not isinstance(packed, _Stored):
            return packed
        self._in_flight.clear()
        self._last = None
        tensor = self._fetch(packed)
        packed.fetched = None
        below = packed.below() if packed.below is not None else None
        if below is not None:
            below.fetched = None  # a prefetch of an earlier walk over the same graph
            self._fetch(below)
        return tensor

    def _fetch(self, stored: "_Stored") -> Tensor:
        """Return the tensor on its device; one that was fetched ahead is there already."""
        if stored.fetched is None:
            with self._side_stream(stored.device):
                tensor = torch.empty(stored.host.shape, dtype=stored.host.dtype, device=stored.device)
                tensor.copy_(stored.host, non_blocking=True)
            stored.fetched = tensor
            stored.ready = self._stream.record_event() if stored.device.type == "cuda" else None
            return tensor
        tensor = stored.fetched
        if stored.ready is not None:
            torch.cuda.current_stream(stored.device).wait_event(stored.ready)
            tensor.record_stream(torch.cuda.current_stream(stored.device))
        return tensor

    @contextmanager
    def _side_stream(self, device: torch.device) -> Iterator[None]:
        if device.type != "cuda":
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            yield

    def _check(self, tensor: Tensor) -> None:
        """Fail before a forward pass that the host cannot hold, and not in the middle of it."""
        if tensor.nbytes <= self._checked_bytes or simulated_device() is not None:  # of another host than this one
            return
        needed_bytes, free_bytes = self.count * tensor.nbytes, available_host_bytes()
        if free_bytes is not None and needed_bytes > free_bytes:
            raise DeviceError(
                f"offload: {self.count} tensors of {tuple(tensor.shape)} take host memory={needed_bytes / 2**30:.2f} "
                f"GiB; expected at most the {free_bytes / 2**30:.2f} GiB that are free. Shorten the sequences or use "
                "checkpoint=True."
            )
        self._checked_bytes = tensor.nbytes


class _Stored:
    """A tensor in host memory, and the one that was stored before it."""

    def __init__(self, tensor: Tensor, below: "_Stored | None") -> None:
        self.device = tensor.device
        self.host = _host_memory(tensor)
        self.below = None if below is None else weakref.ref(below)
        self.fetched: Tensor | None = None
        self.ready: Any = None


def _host_memory(tensor: Tensor) -> Tensor:
    """Return uninitialised host memory of a tensor's shape, pinned if a GPU copies into it."""
    if device_kind(tensor.device) == "cuda" and tensor.device.type != "cuda":
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")  # a simulated GPU's host: not its memory
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.device.type == "cuda")


def to_host(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor in host memory; on a CPU the tensor itself.

    On a GPU the copy is in order with the present stream, as is the one back, so nobody waits for either.

    Raises:
        DeviceError: if the system refuses pinned memory.
    """
    if device_kind(tensor.device) == "cpu":
        return tensor
    try:
        host = _host_memory(tensor)
    except RuntimeError as error:
        raise refused_pinning(tensor.nbytes, error) from error
    return host.copy_(tensor.detach(), non_blocking=True)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return what `to_host` has given on the device; on a CPU the tensor itself."""
    if tensor.device == device:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device).copy_(tensor, non_blocking=True)


def refused_pinning(size_bytes: int, error: Exception) -> DeviceError:
    """Return the error for memory that the system does not pin."""
    reason = str(error).partition("\n")[0].rstrip(".")
    return DeviceError(
        f"host memory: pinned memory={size_bytes / 2**30:.2f} GiB was refused by the system ({reason}); expected "
        "memory that a GPU can copy from. Raise the limit of locked memory (ulimit -l), shorten the sequences, or keep "
        "what waits on the device."
    )


def require_host_bytes(where: str, what: str, needed_bytes: int, way_out: str) -> None:
    """Fail before work begins that the host cannot hold.

    Raises:
        DeviceError: says what is needed, what is free, and `way_out`.
    """
    free_bytes = available_host_bytes()
    if free_bytes is not None and needed_bytes > free_bytes:
        raise DeviceError(
            f"{where}: {what} take host memory={needed_bytes / 2**30:.2f} GiB; expected at most the "
            f"{free_bytes / 2**30:.2f} GiB that are free. {way_out}"
        )


def available_host_bytes() -> int | None:
    """Return how much host memory new allocations may take, or None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None
