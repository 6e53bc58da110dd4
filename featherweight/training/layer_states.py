"""The optimizer states of a model on the host, for steps that go layer by layer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.nn.host_tensors import HostTensors
from featherweight.nn.offload import require_host_bytes
from featherweight.optim.backward.layerwise import LayerwiseHandle
from featherweight.optim.state_dict import device_states
from featherweight.simulated import simulated_device
from featherweight.training.separate_layers import SeparateLayers


class LayerStates:
    """Brings the states of each layer, of the head and of the embedding to the device for their updates.

    Args:
        separate: the layers, in the order of the forward pass, and embedding and head.
        handle: of the layer-wise updates.
        device: where they happen.
        on_host: whether states leave the device afterwards; else those come that a checkpoint has left on the host.
    Raises:
        ConfigError: where weights are not updated in the turn of their layer.
        DeviceError: if the host cannot hold the states.
    """

    def __init__(
        self, separate: SeparateLayers, handle: LayerwiseHandle | None, device: torch.device, on_host: bool
    ) -> None:
        if on_host and (handle is None or handle.clip == "projected"):
            how = "without layer-wise updates" if handle is None else "beside clip='projected'"
            raise ConfigError(
                f"LayerMajor: states='host' {how}; expected updates in the turn of each layer, as its states are only "
                "then on the device. Give the handle of fw.optim.layerwise(model, optimizer), with another clip."
            )
        self.handle, self.on_host = handle, on_host
        embedding, head = separate.vocabulary()
        # A head that is shared with the embedding moves where the embedding does.
        shared = set(embedding.parameters())
        heads = [] if head is None else [p for p in head.parameters() if p not in shared]
        groups = [*(list(layer.parameters()) for layer in separate.layers), heads, list(embedding.parameters())]
        self.parameters = [[p for p in group if p.requires_grad] for group in groups]
        self.head, self.embedding = len(groups) - 2, len(groups) - 1
        """Where their states stand among those of the layers."""
        self.waiting = HostTensors(device)
        if (
            on_host and simulated_device() is None and device.type == "cuda"
        ):  # elsewhere they are in this memory already
            way_out = "Use states of 8 bits, a lower rank or a smaller model, or leave the states on the device."
            require_host_bytes("LayerMajor", "optimizer states", self.host_bytes, way_out)

    @property
    def host_bytes(self) -> int:
        """Bytes of all of these states by formula; none of those that stay on the device."""
        if self.handle is None or not self.on_host:
            return 0
        optimizer = self.handle.optimizer
        groups = {p: group for group in optimizer.param_groups for p in group["params"]}
        own = [p for each in self.parameters for p in each if p in groups]
        return sum(optimizer.step_of(p).nbytes(optimizer.state.get(p, {}), groups[p]) for p in own)

    @contextmanager
    def bound(self, index: int) -> Iterator[None]:
        """Have the states of a layer, or of head or embedding, on the device for a while, whatever comes."""
        if self.handle is None:
            yield
            return
        self.waiting.come(self._states(index))
        try:
            yield
        finally:
            if self.on_host:
                self.waiting.leave(self._states(index))

    def settle(self) -> None:
        """Wait until the host holds all states that wait there."""
        if self.on_host:
            self.waiting.settle()

    def _states(self, index: int) -> list[Tensor]:
        assert self.handle is not None
        return list(device_states(self.handle.optimizer, self.parameters[index]))
