"""Many LoRA adapters of one base model at work: each row of a batch takes its own.

    y += scaling * (x A') B',   for the rows of that adapter alone

Shapes: B rows of a batch, L tokens, N in_features, M out_features, R rank.
Source: Hu et al., LoRA, arXiv 2106.09685; scaling of stabilised ranks: arXiv 2312.03732.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.peft_adapter import CONFIG_FILE, PREFIX, WEIGHTS_FILE
from featherweight.methods.s2ft.targets import linear_features

_PARTS = (".lora_A.weight", ".lora_B.weight")
_UNKNOWN = ("use_dora", "lora_bias", "alora_invocation_tokens")


@dataclass(frozen=True)
class LoraChange:
    """What an adapter adds to one module."""

    a_RN: Tensor
    b_MR: Tensor
    scaling: float


class LoraBank:
    """Serves LoRA adapters of PEFT with one base model.

    Args:
        base: a plain model in evaluation mode; its modules get a hook each, until `close`.
        folders: name -> folder of an adapter; all of them are read at once.

    Raises:
        CheckpointError: if an adapter cannot be read, or does not fit the base.
        ConfigError: if one changes more than linear layers by low ranks.
    Cost: R * (N + M) elements for each module of each adapter.
    """

    def __init__(self, base: nn.Module, folders: dict[str, Path]) -> None:
        self._rows: list[str] | None = None
        self._changes = {name: _read(base, name, folder) for name, folder in folders.items()}
        by_module: dict[str, dict[str, LoraChange]] = {}
        for name, changes in self._changes.items():
            for module, change in changes.items():
                by_module.setdefault(module, {})[name] = change
        self._handles = [
            base.get_submodule(module).register_forward_hook(
                lambda layer, args, output, found=found: self._add(found, args[0], output)
            )
            for module, found in by_module.items()
        ]

    @property
    def names(self) -> list[str]:
        """All adapters that a batch may name."""
        return sorted(self._changes)

    @contextmanager
    def using(self, adapters: Sequence[str]) -> Iterator[None]:
        """Let the rows of every forward pass inside the block take these adapters; "__base__" takes none."""
        self._rows = list(adapters)
        try:
            yield
        finally:
            self._rows = None

    def close(self) -> None:
        """Take the hooks off the base."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _add(self, changes: dict[str, LoraChange], x_BLN: Tensor, output: Tensor) -> Tensor:
        rows = self._rows
        if rows is None or not any(name in changes for name in rows):
            return output
        result = output.clone()
        for name in dict.fromkeys(rows):
            change = changes.get(name)
            if change is not None:
                places = torch.tensor([place for place, one in enumerate(rows) if one == name], device=output.device)
                added = (x_BLN[places].to(change.a_RN.dtype) @ change.a_RN.T) @ change.b_MR.T
                result[places] += (change.scaling * added).to(output.dtype)
        return result


def _read(base: nn.Module, name: str, folder: Path) -> dict[str, LoraChange]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"serve: adapter={name} cannot be read ({error}); expected {CONFIG_FILE} and {WEIGHTS_FILE}. Copy it again."
        ) from error
    extra = [key for key in tensors if not key.endswith(_PARTS)]
    unknown = [key for key in _UNKNOWN if config.get(key)]
    if extra or unknown:
        raise ConfigError(
            f"serve: adapter={name} holds {(unknown or extra)[0]}, which rows of a batch cannot mix; expected changes "
            "of linear layers by low ranks alone. Serve it by itself: fw serve takes its folder as MODEL."
        )
    changes = {}
    for key in [key for key in tensors if key.endswith(_PARTS[0])]:
        module = key.removeprefix(PREFIX).removesuffix(_PARTS[0])
        a_RN, b_MR = tensors[key], tensors[key.replace(*_PARTS)]
        changes[module] = _fitting(base, name, module, a_RN, b_MR, _scaling(config, module, len(a_RN)))
    return changes


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    found = next((value for key, value in patterns.items() if module == key or module.endswith(f".{key}")), None)
    alpha = float(config.get("lora_alpha", rank) if found is None else found)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _fitting(base: nn.Module, name: str, module: str, a_RN: Tensor, b_MR: Tensor, scaling: float) -> LoraChange:
    try:
        layer = base.get_submodule(module)
    except AttributeError:
        layer = None
    sizes = None if layer is None else linear_features(layer)
    if layer is None or sizes != (a_RN.shape[1], b_MR.shape[0]):
        there = "lacks" if sizes is None else f"has from {sizes[0]} to {sizes[1]}"
        raise CheckpointError(
            f"serve: adapter={name} changes '{module}' from {a_RN.shape[1]} to {b_MR.shape[0]} features, which the "
            f"model {there}; expected an adapter of this model. Serve the model that it was trained on."
        )
    first = next(base.parameters())
    dtype = first.dtype if first.is_floating_point() else torch.float32
    return LoraChange(a_RN.to(first.device, dtype), b_MR.to(first.device, dtype), scaling)
