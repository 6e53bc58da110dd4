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
from featherweight.methods.s2ft.targets import linear_features
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

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Adapter":
        """Read an adapter from its folder.

        Raises:
            CheckpointError: if a file is missing, damaged, or belongs to another method or a newer format.
        """
        with opened(folder) as (config, file):
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return cls._of_tensors(tensors, config, Path(folder))

    @classmethod
    def _of_tensors(cls, tensors: dict[str, Tensor], config: Mapping[str, Any], folder: Path) -> "Adapter":
        modules, extra = {}, dict(tensors)
        for key in tensors:
            if key.endswith(DELTA):
                stem = key.removesuffix(DELTA)
                delta, indices = extra.pop(key), extra.pop(stem + INDICES, None)
                if indices is None or len(indices) != len(delta):
                    raise CheckpointError(
                        f"adapter: file={folder / WEIGHTS_FILE} has no channels that fit '{key}'; expected "
                        f"'{stem + INDICES}' with {len(delta)} of them. Save the adapter again."
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
        from featherweight.methods.s2ft.layer import s2ft_layers

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
    from featherweight.methods.s2ft.module_map import default_axis
    from featherweight.methods.s2ft.targets import matching_pattern

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


def fuse_adapters(adapters: Mapping[str, Adapter], weights: list[float]) -> Adapter:
    """Return the adapter whose change is exactly the weighted sum of the others' changes.

    Args:
        adapters: name -> adapter, all of one base model.
        weights: one for each, of any sign.
    Raises:
        ConfigError: if there are none, or a module is changed along different axes.
        CheckpointError: if they belong to different base models.
    """
    if not adapters or len(adapters) != len(weights):
        raise ConfigError(
            f"fuse: weights={weights} do not fit {len(adapters)} adapters; expected one for each. Give both lists."
        )
    first, *others = adapters.values()
    for other in others:
        require_same_base(first.fingerprint, other.fingerprint, "fuse")
    changes: dict[str, list[ChannelChange]] = {}
    for adapter, weight in zip(adapters.values(), weights, strict=True):
        for name, change in adapter.modules.items():
            changes.setdefault(name, []).append(change._replace(scaling=change.scaling * weight))
    return Adapter({name: joined_change(name, parts) for name, parts in changes.items()}, first.config)


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


# ---- which base an adapter belongs to --------------------------------------------------------------------------------

_SAMPLES = 8
_TOLERANCE = 0.25
"""Relative difference of all samples together. Rounding the base to 4 bits makes 0.1, another training of it 0.05,
another model 1.4."""


def base_fingerprint(weights: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Return shape and some values of each weight: enough to tell another model, not enough to be in the way.

    Args:
        weights: full module name -> (out_features, in_features).
    """
    found: dict[str, list[float]] = {}
    for name, weight in weights.items():
        places = torch.linspace(0, weight.numel() - 1, _SAMPLES, dtype=torch.float64).long()
        rows, columns = places // weight.shape[1], places % weight.shape[1]
        values = weight[rows.to(weight.device), columns.to(weight.device)].float().cpu()
        found[name] = [*map(float, weight.shape), *(float(f"{value:.6g}") for value in values.tolist())]
    return found


def require_same_base(
    known: Mapping[str, list[float]] | None, found: Mapping[str, list[float]] | None, where: str
) -> None:
    """Refuse an adapter of another base.

    Raises:
        CheckpointError: if shapes differ, or values by more than quantisation explains.
    """
    if known is None or found is None:
        return
    both = [name for name in known if name in found]
    for name in both:
        if known[name][:2] != found[name][:2]:
            raise CheckpointError(
                f"{where}: '{name}' has shape={tuple(map(int, found[name][:2]))}, but the adapter was made for "
                f"{tuple(map(int, known[name][:2]))}; expected the adapter's base model. Load that model."
            )
    ours = torch.tensor([value for name in both for value in known[name][2:]], dtype=torch.float64)
    theirs = torch.tensor([value for name in both for value in found[name][2:]], dtype=torch.float64)
    size = max(float(ours.norm()), float(theirs.norm()))
    difference = float((ours - theirs).norm()) / size if size else 0.0
    if difference > _TOLERANCE:
        raise CheckpointError(
            f"{where}: weights differ from those of the adapter's base by difference={difference:.2f} of their size; "
            f"expected at most {_TOLERANCE}. Load the base model that the adapter was trained on."
        )


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weight of every linear layer of a model as (out_features, in_features), by full name."""
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if linear_features(module) is not None and isinstance(weight, Tensor) and weight.dim() == 2:
            found[name] = weight.detach().t() if type(module).__name__ == "Conv1D" else weight.detach()
    return found


def _extra_tensors(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return {key: tensor.detach().clone().cpu() for key, tensor in state.items() if not key.endswith((DELTA, INDICES))}
