"""Weights of a stack of layers that wait in host memory and come to the device into few slots, each for its turn.

At rest all weights are ordinary tensors in host memory, so whoever saves, loads or averages them finds what he expects.
For its turn a layer is `bound`: its tensors point into a slot, to which its bytes were copied while the layer before
computed, and afterwards what has changed is copied back. Parameters and buffers stay the same objects throughout, so
hooks, groups of optimizers and methods do not notice. A graph that was made while a layer was bound must be gone when
the slot is used again: such layers are recomputed (`LayerMajor`, `fw.HostWeights`).
On a CPU the slots are memory of their own, too, which a test can follow.
Source: MegaTrain, arXiv 2604.05091, section 3 (two buffers, stateless layers); the update on the device is ours.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError, DeviceError
from featherweight.nn.offload import refused_pinning, require_host_bytes
from featherweight.quant.int8_weight import has_values, int8_weight_of
from featherweight.simulated import device_kind, simulated_device
from featherweight.unwrap import is_distributed

ALIGNMENT = 64
"""Bytes at multiples of which tensors begin: enough for every dtype and for vector loads."""


@dataclass(frozen=True)
class _Entry:
    """A tensor of a layer and its place in the layer's bytes."""

    tensor: Tensor
    start: int
    dtype: torch.dtype
    shape: torch.Size

    def place_in(self, memory: Tensor) -> Tensor:
        """Return what stands at its place in some memory, as a view."""
        size = self.shape.numel() * self.dtype.itemsize
        return memory[self.start : self.start + size].view(self.dtype).view(self.shape)

    def rest_in(self, host: Tensor) -> Tensor:
        """Return the same of host memory as a tensor with a storage of its own: savers refuse parts of a larger one."""
        size = self.shape.numel() * self.dtype.itemsize
        return torch.from_numpy(host.numpy()[self.start : self.start + size]).view(self.dtype).view(self.shape)


class _Unit:
    """The weights of one layer: all its tensors in one flat piece of host memory, those that are trained first."""

    def __init__(self, tensors: Sequence[Tensor], trained: Sequence[Tensor], pinned: bool) -> None:
        is_trained = {id(one) for one in trained}
        ordered = sorted(tensors, key=lambda one: id(one) not in is_trained)
        self.entries: list[_Entry] = []
        self.size_bytes = self.trained_bytes = 0
        for tensor in ordered:
            self.entries.append(_Entry(tensor, self.size_bytes, tensor.dtype, tensor.shape))
            self.size_bytes += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
            if id(tensor) in is_trained:
                self.trained_bytes = self.size_bytes
        self.written: Any = None  # event: the host holds what was last trained
        if simulated_device() is not None:
            self._simulate()
            return
        try:
            self.host = torch.zeros(self.size_bytes, dtype=torch.uint8, device="cpu", pin_memory=pinned)
        except RuntimeError as error:
            raise refused_pinning(self.size_bytes, error) from error
        self.trained_host = self.host[: self.trained_bytes]
        self._rest = [entry.rest_in(self.host) for entry in self.entries]
        for entry, place in zip(self.entries, self._rest, strict=True):
            place.copy_(entry.tensor.detach())

    def _simulate(self) -> None:
        """Take the memory that it would take: none of a simulated GPU."""
        tensors = [entry.tensor.detach() for entry in self.entries]
        if device_kind(tensors[0].device) == "cpu":
            self.host, self._rest = torch.empty(self.size_bytes, dtype=torch.uint8), tensors
            self.trained_host = self.host[: self.trained_bytes]
        else:
            self.host, self.trained_host = (
                torch.empty(size, dtype=torch.uint8, device="meta") for size in (self.size_bytes, self.trained_bytes)
            )
            self._rest = [one.new_empty(()).expand(one.shape) for one in tensors]

    def __getstate__(self) -> dict[str, Any]:
        return {
            "tensors": [entry.tensor for entry in self.entries],
            "trained": sum(entry.start < self.trained_bytes for entry in self.entries),
            "pinned": self.host.is_pinned(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take memory of one's own: a copy of a model has weights of its own."""
        tensors = state["tensors"]
        self.__init__(tensors, tensors[: state["trained"]], state["pinned"])  # type: ignore[misc]
        self.rest()

    def come_to(self, memory: Tensor) -> None:
        """Let all tensors be what stands in a slot."""
        for entry in self.entries:
            entry.tensor.data = entry.place_in(memory)

    def rest(self) -> None:
        """Let all tensors be what stands on the host."""
        for entry, place in zip(self.entries, self._rest, strict=True):
            entry.tensor.data = place


class _Slot:
    """Memory of the device for one layer."""

    def __init__(self, size_bytes: int, device: torch.device) -> None:
        self.memory = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        self.unit: int | None = None  # whose bytes it holds
        self.is_bound = False
        self.age = 0
        self.ready: Any = None  # event: the bytes have arrived
        self.free: Any = None  # event: nobody reads or writes them any more


class WeightSlots:
    """The weights of some layers in host memory, and the slots in which they are used.

    Args:
        layers: in the order of the forward pass; they are moved to host memory.
        count: slots, at least 1; with 2 the next layer is copied while the present one computes.
    Raises:
        ConfigError: for tensors that share memory, or that are distributed over processes.
        DeviceError: if the host cannot hold the weights, or refuses to pin memory; the layers are then as before.

    Example:
        >>> layers = [nn.Linear(4, 4) for _ in range(3)]
        >>> slots = WeightSlots(layers, 2)
        >>> with torch.no_grad():
        ...     for index, layer in enumerate(layers):
        ...         with slots.bound(index, index + 1):
        ...             y = layer(torch.ones(4))
        >>> slots.read_bytes == slots.host_bytes
        True
    """

    poison = False
    """For tests: fill a slot with NaN as soon as its layer has had its turn, so that nothing reads it unnoticed."""

    def __init__(self, layers: Sequence[nn.Module], count: int) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ConfigError(
                f"HostWeights: slots={count!r} is not allowed; expected a whole number >= 1. Take 2, so that one layer "
                "is copied while another one computes."
            )
        tensors = [tensors_of(layer) for layer in layers]
        _require_plain(tensors)
        every = [one for each in tensors for one in each]
        self.device = every[0].device
        on_gpu = self.device.type == "cuda"
        needed = sum(one.nbytes for one in every)
        way_out = "Use int8 weights (fw.Int8()) or a smaller model, or leave the weights on the device."
        if on_gpu:  # elsewhere they are in this memory already
            require_host_bytes("HostWeights", f"weights of {len(layers)} layers", needed, way_out)
        self.units = [_Unit(each, trained_of(layer, each), on_gpu) for each, layer in zip(tensors, layers, strict=True)]
        self.count, self.read_bytes, self.written_bytes = count, 0, 0
        self._slots: list[_Slot] = []
        self._clock = 0
        self._incoming = torch.cuda.Stream(self.device) if on_gpu else None
        self._outgoing = torch.cuda.Stream(self.device) if on_gpu else None
        for unit in self.units:
            unit.rest()

    def __getstate__(self) -> dict[str, Any]:
        self.close()
        streams = dict.fromkeys(("_incoming", "_outgoing"))
        return {**vars(self), **streams}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.device.type == "cuda":
            self._incoming, self._outgoing = torch.cuda.Stream(self.device), torch.cuda.Stream(self.device)

    def bring_back(self) -> None:
        """Move the weights to the device, and be used no more."""
        self.close()
        for unit in self.units:
            for entry in unit.entries:
                entry.tensor.data = entry.tensor.detach().to(self.device, copy=True)

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that the weights take."""
        return sum(unit.size_bytes for unit in self.units)

    @property
    def slot_bytes(self) -> int:
        """Bytes of the device that all slots take while they are in use."""
        return self.count * max(unit.size_bytes for unit in self.units)

    def traffic_bytes(self) -> tuple[int, int]:
        """Return what a step layer by layer copies in and out: the layers where it turns are not copied in again."""
        sizes = [unit.size_bytes for unit in self.units]
        turning = 0 if self.poison else sum(sizes[-self.count :])
        return 2 * sum(sizes) - turning, sum(unit.trained_bytes for unit in self.units)

    # ---- turns

    @contextmanager
    def bound(self, index: int, following: int | None = None, changes: bool = False) -> Iterator[None]:
        """Have a layer on the device for a while.

        Args:
            index: of the layer.
            following: of the one that is copied meanwhile; one that does not exist is left out.
            changes: what is trained is copied back at the end, after an exception, too.
        """
        self.bind(index)
        if following is not None and 0 <= following < len(self.units):
            self.prefetch(following)
        try:
            yield
        finally:
            self.release(index, changes)

    def bind(self, index: int) -> None:
        """Let a layer's tensors be those in a slot."""
        slot = self._loaded(index)
        slot.is_bound = True
        if slot.ready is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.ready)
        self.units[index].come_to(slot.memory)

    def prefetch(self, index: int) -> None:
        """Begin to copy a layer into a free slot, if there is one."""
        if any(slot.unit == index for slot in self._slots) or not self._free_slots():
            return
        self._loaded(index)

    def release(self, index: int, changes: bool) -> None:
        """Let a layer's tensors be those on the host, and copy back what is trained if it changes."""
        slot, unit = next(slot for slot in self._slots if slot.unit == index and slot.is_bound), self.units[index]
        unit.rest()
        slot.is_bound = False
        with self._on(self._outgoing) if changes else nullcontext():
            if changes:
                unit.trained_host.copy_(slot.memory[: unit.trained_bytes], non_blocking=True)
                self.written_bytes += unit.trained_bytes
            if self._outgoing is not None:
                slot.free = torch.cuda.current_stream(self.device).record_event()
                unit.written = slot.free if changes else unit.written
        if self.poison:
            slot.unit = None
            slot.memory.fill_(255)  # NaN in every float, -1 in codes

    def close(self) -> None:
        """Give the slots back and wait until the host holds everything."""
        for slot in self._slots:
            if slot.is_bound and slot.unit is not None:
                self.release(slot.unit, changes=True)
        if self._outgoing is not None:
            self._outgoing.synchronize()
        self._slots = []

    def is_bound(self, index: int) -> bool:
        """Whether a layer is on the device now."""
        return any(slot.unit == index and slot.is_bound for slot in self._slots)

    @property
    def is_open(self) -> bool:
        """Whether any slot holds memory of the device."""
        return bool(self._slots)

    # ---- copies

    def _free_slots(self) -> list[_Slot]:
        if not self._slots:
            size = max(unit.size_bytes for unit in self.units)
            self._slots = [_Slot(size, self.device) for _ in range(self.count)]
        return [slot for slot in self._slots if not slot.is_bound]

    def _loaded(self, index: int) -> _Slot:
        """Return the slot that holds a layer; copy it into the one that was used longest ago if none does."""
        self._clock += 1
        for slot in self._slots:
            if slot.unit == index:
                slot.age = self._clock
                return slot
        free = self._free_slots()
        if not free:
            raise ConfigError(
                f"HostWeights: slots={self.count} are all in use when layer {index} is called; expected layers that "
                "are called one after another. Raise slots."
            )
        slot, unit = min(free, key=lambda one: one.age), self.units[index]
        slot.unit, slot.age = index, self._clock
        with self._on(self._incoming, slot.free, unit.written):
            slot.memory[: unit.size_bytes].copy_(unit.host, non_blocking=True)
            if self._incoming is not None:
                slot.ready = self._incoming.record_event()
        self.read_bytes += unit.size_bytes
        return slot

    @contextmanager
    def _on(self, stream: Any, *events: Any) -> Iterator[None]:
        """Run on a stream of copies: after some events, or after what the present stream has been given if none."""
        if stream is None:
            yield
            return
        waits = [event for event in events if event is not None]
        if not events:
            stream.wait_stream(torch.cuda.current_stream(self.device))
        for event in waits:
            stream.wait_event(event)
        context: AbstractContextManager[Any] = torch.cuda.stream(stream)
        with context:
            yield


def tensors_of(layer: nn.Module) -> list[Tensor]:
    """Return all parameters and buffers with values of their own, each once."""
    found = [*layer.parameters(), *layer.buffers()]
    return [one for one in dict.fromkeys(found) if one.untyped_storage().nbytes() >= one.nbytes > 0]


def trained_of(layer: nn.Module, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return those that an optimizer step changes: trained parameters, and the codes behind trained handles."""
    found = {id(p) for p in layer.parameters() if p.requires_grad}
    for parameter in layer.parameters():
        if parameter.requires_grad and (int8 := int8_weight_of(parameter)) is not None:
            storages = {one.untyped_storage()._cdata for one in (int8.codes, int8.block_scale)}
            found |= {id(one) for one in tensors if one.untyped_storage()._cdata in storages}
    return [one for one in tensors if id(one) in found]


def _require_plain(tensors: Sequence[Sequence[Tensor]]) -> None:
    seen: set[int] = set()
    for index, layer in enumerate(tensors):
        for one in layer:
            words = f"layer {index} has a tensor {tuple(one.shape)} "
            if is_distributed(one):
                raise ConfigError(
                    f"HostWeights: {words}that is distributed over processes; expected one of this process alone. Use "
                    "sharding none or ddp."
                )
            if not has_values(one) and simulated_device() is None:
                raise DeviceError(
                    f"HostWeights: {words}on device={one.device} without values; expected weights. Load them first."
                )
            storage = one.untyped_storage()._cdata
            if storage in seen:
                raise ConfigError(
                    f"HostWeights: {words}that shares its memory with another one; expected tensors of their own. "
                    "Leave the weights of this model on the device."
                )
            seen.add(storage)
