"""Weights of the layers in host memory, for training loops of one's own: each layer comes to the device for its turn.

In the forward pass a layer is on the device while it computes, and keeps its input alone; in the backward pass it comes
again, is repeated, goes backward and is updated, and what is trained goes back when the next layer comes. Steps over
many rows or chunks move less by `LayerMajor(weights="host")`, where a layer comes twice a step and not twice a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.autograd import Variable
from torch.utils.checkpoint import checkpoint

from featherweight.errors import ConfigError
from featherweight.methods.forward_patch import (
    is_patched,
    original_forward,
    patch_forward,
    require_outermost,
    settings_of,
    unpatch_forward,
)
from featherweight.methods.layer_structure import decoder_layers
from featherweight.methods.method import Method
from featherweight.nn.host_tensors import HostTensors
from featherweight.nn.weight_slots import WeightSlots
from featherweight.optim.state_dict import device_states
from featherweight.ownership import Part, owner_of, refuse_owned
from featherweight.report import Report


class HostWeights(Method):
    """Keep the weights of the layers in host memory and bring each to the device for its turn.

    For a loop of one's own: `loss.backward()` as always, with `fw.optim.layerwise`, so that each weight is updated
    while it is on the device. Layers are checkpointed: they keep their input and are repeated in the backward pass.
    Training is bit by bit that of weights on the device. Embedding, head, final norm and optimizer states stay there.
    Between passes all weights are ordinary tensors on the host.

    Example:
        >>> import featherweight as fw
        >>> from featherweight.models import load_model
        >>> model = load_model("tiny")
        >>> report = fw.apply(model, HostWeights(slots=2))
        >>> optimizer = fw.optim.AdamW(model.parameters(), lr=1e-3)
        >>> tokens = torch.arange(64)[None]
        >>> with fw.optim.layerwise(model, optimizer) as handle:
        ...     model(input_ids=tokens, labels=tokens).loss.backward()
        >>> handle.steps
        1
        >>> fw.remove(model, HostWeights())
    """

    keeps_parameters: ClassVar[bool] = True
    needs_layerwise: ClassVar[bool] = True

    slots: int = Field(default=2, ge=1)
    """Layers that are on the device at a time: with 2 the next one is copied while the present one computes."""

    def apply(self, model: nn.Module, calibration: Any = None) -> Report:
        """Change the model in place; see `fw.apply`.

        Raises:
            ConfigError: for a model without decoder layers, one whose layers are changed by another method already, or
                tensors that share memory.
            DeviceError: if the host cannot hold the weights, or refuses to pin memory.
        """
        layers = list(decoder_layers(model))
        if not layers:
            raise ConfigError(
                f"HostWeights: model={type(model).__name__} has no decoder layers that are called one after another; "
                "expected a language model of transformers. Leave its weights on the device."
            )
        for name, layer in layers:
            refuse_owned(Part.FORWARD, layer, "HostWeights", name=name)
        turns = _Turns([layer for _, layer in layers], self.slots)
        for index, (name, layer) in enumerate(layers):
            patch_forward(layer, _forward, _Settings(turns, index), method="HostWeights", name=name)
        report = Report("HostWeights")
        found = turns.slots
        report.add_facts({"layers": len(layers), "host (bytes)": found.host_bytes, "slots (bytes)": found.slot_bytes})
        return report

    def remove(self, model: nn.Module) -> None:
        """Bring the weights back to the device; see `fw.remove`.

        Raises:
            ConfigError: if something else was wrapped around a changed layer since.
        """
        ours = [one for one in model.modules() if streams_weights(one)]
        for layer in ours:
            require_outermost(layer)
        turns: list[_Turns] = [settings_of(layer).turns for layer in ours]
        for layer in ours:
            unpatch_forward(layer)
        for one in dict.fromkeys(turns):
            one.slots.bring_back()


def streams_weights(layer: nn.Module) -> bool:
    """Tell whether the weights of a layer come to the device for its calls."""
    return is_patched(layer) and isinstance(settings_of(layer), _Settings)


@dataclass
class _Settings:
    turns: "_Turns"
    index: int


class _Turns:
    """Which layer is on the device, in a forward and in a backward pass."""

    def __init__(self, layers: Sequence[nn.Module], count: int) -> None:
        self.layers, self.slots = layers, WeightSlots(layers, count)
        self.states = HostTensors(self.slots.device)
        self.repeated: int | None = None  # the layer that the backward pass has reached

    def forward(self, index: int, call: Any, *args: Any, **named: Any) -> Any:
        """Run a layer: for the first time, or once more in the backward pass."""
        if torch._C._current_graph_task_id() == -1:
            self.end()  # of a backward pass that was broken off
            with self.slots.bound(index, index + 1):
                return call(*args, **named)
        if self.repeated is None:
            Variable._execution_engine.queue_callback(self.end)
        elif self.repeated != index:
            # Gradients are accumulated, and weights updated, before the pass goes on to the layer below.
            self.slots.release(self.repeated, changes=True)
        if self.repeated != index:
            self.slots.bind(index)
            self.slots.prefetch(index - 1)
            self._have_states(index)
            self.repeated = index
        return call(*args, **named)

    def _have_states(self, index: int) -> None:
        """Have states on the device that a checkpoint has left beside resting weights."""
        for parameter in self.layers[index].parameters():
            if (updates := owner_of(Part.GRADIENT, parameter)) is not None:
                self.states.come(device_states(updates.optimizer, [parameter]))

    def end(self) -> None:
        """End a backward pass: all weights are on the host."""
        if self.repeated is not None:
            self.slots.close()
            self.repeated = None


def _forward(layer: nn.Module, *args: Any, **named: Any) -> Any:
    settings: _Settings = settings_of(layer)
    turns, index, call = settings.turns, settings.index, original_forward(layer)
    if not torch.is_grad_enabled():
        result = turns.forward(index, call, *args, **named)
        if index + 1 == len(turns.slots.units):
            turns.slots.close()  # somebody may load other weights before the next call
        return result
    _require_updates(layer)
    if getattr(layer, "gradient_checkpointing", False) and layer.training:  # then the model repeats this call
        return turns.forward(index, call, *args, **named)
    return checkpoint(turns.forward, index, call, *args, use_reentrant=False, **named)


def _require_updates(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        if parameter.requires_grad:
            updates = owner_of(Part.GRADIENT, parameter)
            if updates is None or updates.window.waits_for_all:
                what = "without layer-wise updates" if updates is None else "beside clip='projected'"
                raise ConfigError(
                    f"HostWeights: {type(layer).__name__} is called for training {what}; expected updates while a "
                    "weight is on the device. Use fw.optim.layerwise(model, optimizer) with clip='delayed', or "
                    "torch.no_grad()."
                )
            return
