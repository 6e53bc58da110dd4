"""The weights of a model on the host, for steps that go layer by layer: its layers, and embedding and head."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from featherweight.errors import ConfigError
from featherweight.nn.weight_slots import WeightSlots
from featherweight.optim.backward.layerwise import LayerwiseHandle
from featherweight.training.separate_layers import SeparateLayers
from featherweight.training.vocabulary_weights import VocabularyWeights


class LayerWeights:
    """Moves the weights of the layers to the host, and lets each have its turn; embedding and head in a step alone.

    Between steps the layers compute, too (an evaluation, generation): each is brought to the device for its call.

    Args:
        separate: the layers.
        handle: of the layer-wise updates, which happen while a layer is on the device.
        slots: layers on the device at a time.
    Raises:
        ConfigError, DeviceError: see `WeightSlots`; also without a handle, or where the norm of all gradients is waited
            for.
    """

    def __init__(self, separate: SeparateLayers, handle: LayerwiseHandle | None, slots: int) -> None:
        if handle is None:
            raise ConfigError(
                "LayerMajor: weights='host' without layer-wise updates; expected a handle, as a weight can only be "
                "updated while it is on the device. Give that of fw.optim.layerwise(model, optimizer)."
            )
        if handle.clip == "projected":
            raise ConfigError(
                "LayerMajor: clip='projected' updates all weights after the last gradient, when those on the host are "
                "gone from the device; expected delayed, per_tensor or norm_growth beside weights='host'. Change clip."
            )
        self.slots = WeightSlots(separate.layers, slots)
        self.vocabulary = VocabularyWeights(separate, self.slots.device)
        self._is_running = False
        for index, layer in enumerate(separate.layers):
            layer.register_forward_pre_hook(self._before(index))
            layer.register_forward_hook(self._after(index), always_call=True)

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Let a step say whose turn it is; at the end, after an exception, too, the layers' weights are on the host."""
        self.slots.close()
        self._is_running = True
        try:
            with self.vocabulary.streaming():
                yield
        finally:
            self._is_running = False
            self.slots.close()

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that all weights take."""
        return self.slots.host_bytes + self.vocabulary.host_bytes

    def traffic_bytes(self) -> tuple[int, int]:
        """Return what a step copies in and out."""
        layers, vocabulary = self.slots.traffic_bytes(), self.vocabulary.traffic_bytes()
        return layers[0] + vocabulary[0], layers[1] + vocabulary[1]

    def bound(self, index: int, following: int, changes: bool) -> AbstractContextManager[None]:
        """See `WeightSlots.bound`."""
        return self.slots.bound(index, following, changes)

    def _before(self, index: int) -> Any:
        def bind(module: nn.Module, args: Any) -> None:
            if self._is_running:
                return
            if torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()):
                raise ConfigError(
                    "LayerMajor: a layer whose weights wait on the host is called for training outside of step(); "
                    "expected step(batch), or torch.no_grad(). For a loop of your own use fw.HostWeights()."
                )
            self.slots.bind(index)
            self.slots.prefetch((index + 1) % len(self.slots.units))

        return bind

    def _after(self, index: int) -> Any:
        def release(module: nn.Module, args: Any, output: Any) -> None:
            if self._is_running or not self.slots.is_bound(index):
                return
            self.slots.release(index, changes=False)
            if index + 1 == len(self.slots.units):
                self.slots.close()  # somebody may load other weights before the next call

        return release
