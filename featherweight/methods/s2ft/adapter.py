"""An adapter by itself, without the model: the changes of its modules, and its two files.

The files are those that PEFT writes and reads: adapter_config.json and adapter_model.safetensors with
``base_model.model.<module>.s2ft_delta`` (S, K) and ``.s2ft_indices`` (S,). Channels are those of the model as it is
published, ascending; no layout of a run ever gets into a file.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from featherweight.errors import LISTED, CheckpointError, ConfigError, did_you_mean
from featherweight.methods.peft_adapter import CONFIG_FILE, PREFIX, WEIGHTS_FILE, plain_settings, write_files
from featherweight.methods.s2ft.base_slices import ChannelChange, sum_changes
from featherweight.methods.s2ft.config import S2FTConfig
from featherweight.methods.s2ft.fingerprint import fingerprint_shapes, require_same_base
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.methods.s2ft.module_map import default_axis
from featherweight.methods.s2ft.soundness import require_finite, require_sound
from featherweight.methods.s2ft.targets import matching_pattern
from featherweight.methods.s2ft.whole_tensors import Weighted, combined, parameter_name, require_finite_weights
from featherweight.nn.channel_delta import Axis

FORMAT_VERSION = 1
"""Written into the file of weights; grows when the content changes so that older code cannot read it."""
FORMAT = {"s2ft_format_version": str(FORMAT_VERSION)}
DELTA, INDICES = ".s2ft_delta", ".s2ft_indices"


@dataclass(frozen=True)
class Adapter:
    """Changes of the channels of some modules.

    Example:
        >>> change = ChannelChange("input", torch.tensor([1, 4]), torch.ones(2, 3))
        >>> Adapter({"layers.0.down_proj": change}).parameters
        6
    """

    modules: Mapping[str, ChannelChange]
    """By full name of the module, as the base model has it. Scalings are part of it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What adapter_config.json holds."""
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Other tensors of the file: biases and modules_to_save, by their key in the file."""

    @property
    def parameters(self) -> int:
        """Trained numbers of the changes."""
        return sum(change.delta.numel() for change in self.modules.values())

    @property
    def fingerprint(self) -> Mapping[str, list[float]] | None:
        """Shapes and samples of the base weights; see `base_fingerprint`."""
        return self.config.get("base_fingerprint")

    def require_sound(self, subject: str, shapes: Mapping[str, tuple[int, int]] | None = None) -> None:
        """Refuse an adapter that no training can have made; whoever reads, writes, adds or serves one asks.

        Args:
            subject: who is at work and with what, the beginning of a message: ``merge: adapter``.
            shapes: (out_features, in_features) by module; None takes those that the adapter was saved with.
        Raises:
            CheckpointError: if channels stand twice or outside of a module, or a width is not the module's.
            NumericsError: if a number is NaN or infinite.
        """
        require_sound(self.modules, subject, fingerprint_shapes(self.fingerprint) if shapes is None else shapes)
        require_finite(self.extra, subject)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Adapter":
        """Read an adapter from its folder.

        Raises:
            CheckpointError: if a file is missing, damaged, or belongs to another method or a newer format.
            NumericsError: if a number is NaN or infinite.
        """
        with opened(folder) as (config, file):
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        adapter = cls._of_tensors(tensors, config, Path(folder))
        adapter.require_sound(f"adapter: folder={folder}")
        return adapter

    @classmethod
    def _of_tensors(cls, tensors: dict[str, Tensor], config: Mapping[str, Any], folder: Path) -> "Adapter":
        modules, extra = {}, dict(tensors)
        for key in tensors:
            if key.endswith(DELTA):
                stem = key.removesuffix(DELTA)
                delta, indices = extra.pop(key), extra.pop(stem + INDICES, None)
                if indices is None:
                    raise CheckpointError(
                        f"adapter: file={folder / WEIGHTS_FILE} has no channels for '{key}'; expected "
                        f"'{stem + INDICES}' with one for each row. Save the adapter again."
                    )
                name = stem.removeprefix(PREFIX)
                modules[name] = ChannelChange(axis_of(config, name), indices, delta)
        if not modules:
            raise CheckpointError(
                f"adapter: file={folder / WEIGHTS_FILE} holds no change of any module; expected keys that end in "
                f"'{DELTA}'. Choose the folder of an S2FT adapter."
            )
        return cls(modules, config, extra)

    @classmethod
    def of_model(cls, model: nn.Module, adapter_name: str = "default") -> "Adapter":
        """Take an adapter out of a model; its scaling becomes part of the change.

        Args:
            model: from `peft.get_peft_model`, or one into which an adapter was injected.
            adapter_name: which one.
        Raises:
            ConfigError: if the model has no such adapter.
        """
        layers = s2ft_layers(model)
        known = sorted({name for layer in layers.values() for name in layer.s2ft_delta})
        if adapter_name not in known:
            raise ConfigError(
                f"s2ft: adapter_name={adapter_name!r} is no adapter of this model; expected one of {known}. "
                f"{did_you_mean(adapter_name, known, otherwise=LISTED)}"
            )
        modules = {}
        for name, layer in layers.items():
            if adapter_name in layer.s2ft_delta:
                change = layer.change(adapter_name)
                delta = change.delta.detach() * change.scaling if change.scaling != 1.0 else change.delta.detach()
                modules[name] = ChannelChange(change.axis, change.indices.detach().cpu(), delta.clone().cpu())
        config = model.peft_config[adapter_name].to_dict()  # type: ignore[union-attr, index]
        return cls(modules, plain_settings(config), _extra_tensors(model, adapter_name))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the two files; `peft.PeftModel.from_pretrained(base, folder)` opens them after `import featherweight`.

        Raises:
            CheckpointError: if the folder cannot be written; older files there stay as they were.
        """
        folder = Path(folder)
        tensors = dict(self.extra)
        for name, change in self.modules.items():
            delta = change.delta if change.scaling == 1.0 else change.delta * change.scaling
            tensors[f"{PREFIX}{name}{DELTA}"] = delta.detach().contiguous().cpu()
            tensors[f"{PREFIX}{name}{INDICES}"] = change.indices.to(torch.int32).contiguous().cpu()
        write_files(folder, self.complete_config(), tensors, FORMAT)
        return folder

    def complete_config(self) -> dict[str, Any]:
        """Return what stands in adapter_config.json: amounts, axes and names as the changes have them."""
        settings = S2FTConfig(
            target_modules=sorted(self.modules),
            num_channels=max(len(change.indices) for change in self.modules.values()),
            axis_pattern={re_escape(name): change.axis for name, change in self.modules.items()},
        )
        config = plain_settings(settings.to_dict())
        kept = ("base_model_name_or_path", "revision", "task_type", "base_fingerprint", "modules_to_save", "bias")
        config.update({key: self.config[key] for key in kept if self.config.get(key) is not None})
        config["fan_in_fan_out"] = bool(self.config.get("fan_in_fan_out", False))
        config["module_channels"] = {name: len(change.indices) for name, change in self.modules.items()}
        return {**config, "selection": "stored", "inference_mode": True}


def re_escape(name: str) -> str:
    """Return a module's name as a regular expression of itself, dots aside, so that a reader recognises it."""
    return name.replace(".", r"\.")


def axis_of(config: Mapping[str, Any], name: str) -> Axis:
    """Return the axis of a module under a saved configuration."""
    patterns = config.get("axis_pattern") or {}
    pattern = matching_pattern(patterns, name)
    if pattern is not None:
        return "input" if patterns[pattern] == "input" else "output"
    return default_axis(name)


@contextmanager
def opened(folder: str | os.PathLike[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Give the configuration of an adapter's folder and its open, memory-mapped file of tensors.

    Raises:
        CheckpointError: if one is missing, damaged, or belongs to another method or a newer format.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG_FILE} holds no settings")
        if config.get("peft_type") != "S2FT":
            raise CheckpointError(
                f"adapter: peft_type={config.get('peft_type')!r} of {folder} is another method; expected 'S2FT'. "
                "Open it with peft itself."
            )
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            version = int((file.metadata() or {}).get("s2ft_format_version", FORMAT_VERSION))
            if version > FORMAT_VERSION:
                raise CheckpointError(
                    f"adapter: s2ft_format_version={version} of {folder} is newer than this program; expected at most "
                    f"{FORMAT_VERSION}. Update featherweight."
                )
            yield config, file
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"adapter: folder={folder} cannot be read ({error}); expected {CONFIG_FILE} and {WEIGHTS_FILE}. Give the "
            "folder that save_pretrained wrote."
        ) from error


def fuse_adapters(
    adapters: Mapping[str, Adapter], weights: list[float], *, base: nn.Module | Mapping[str, Tensor] | None = None
) -> Adapter:
    """Return the adapter whose change is exactly the weighted sum of the others' changes.

    Heads (`modules_to_save`) and biases are changes too, of their whole tensors: adapters that share one need weights
    whose sum is 1, or the base.

    Args:
        adapters: name -> adapter, all of one base model.
        weights: one for each, of any sign.
        base: the plain base model or its state dict; only needed for heads and biases with other weights.
    Raises:
        ConfigError: if there are none, a module is changed along different axes, or the base is needed.
        CheckpointError: if they belong to different base models, or one is damaged.
        NumericsError: if one holds NaN or infinite numbers.
    """
    if not adapters or len(adapters) != len(weights):
        raise ConfigError(
            f"fuse: weights={weights} do not fit {len(adapters)} adapters; expected one for each. Give both lists."
        )
    require_finite_weights(weights)
    first, *others = adapters.values()
    for name, adapter in adapters.items():
        adapter.require_sound(f"fuse: adapter={name!r}")
    for other in others:
        require_same_base(first.fingerprint, other.fingerprint, "fuse")
    changes: dict[str, list[ChannelChange]] = {}
    for adapter, weight in zip(adapters.values(), weights, strict=True):
        for name, change in adapter.modules.items():
            changes.setdefault(name, []).append(change._replace(scaling=change.scaling * weight))
    parts = [Weighted(one.extra, weight) for one, weight in zip(adapters.values(), weights, strict=True)]
    values = base.state_dict() if isinstance(base, nn.Module) else base
    return Adapter(
        {name: joined_change(name, found) for name, found in changes.items()},
        {**first.config, **_joined_settings([one.config for one in adapters.values()])},
        combined(parts, values, "fuse"),
    )


_BIASES = ("none", "s2ft_only", "all")


def _joined_settings(configs: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings that say what a sum of adapters holds."""
    saved = {name for config in configs for name in config.get("modules_to_save") or ()}
    fingerprints = [config["base_fingerprint"] for config in configs if config.get("base_fingerprint")]
    return {
        "modules_to_save": sorted(saved) or None,
        "bias": max((str(config.get("bias") or "none") for config in configs), key=_BIASES.index),
        "base_fingerprint": {name: one for found in fingerprints for name, one in found.items()} or None,
    }


def joined_change(name: str, changes: list[ChannelChange]) -> ChannelChange:
    """Return the sum of changes of one module.

    Raises:
        ConfigError: if they lie along different axes.
    """
    if len({change.axis for change in changes}) > 1:
        raise ConfigError(
            f"fuse: axis of '{name}' differs among the adapters; expected one axis for a module. Make them active "
            "together instead: model.set_adapter takes a list."
        )
    indices, delta = sum_changes(changes)
    order = indices.argsort()
    return ChannelChange(changes[0].axis, indices[order].to(torch.int32), delta[order])


def _extra_tensors(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    found = {key: tensor for key, tensor in state.items() if not key.endswith((DELTA, INDICES))}
    return {key: tensor.detach().clone().cpu() for key, tensor in found.items() if parameter_name(key) is not None}
