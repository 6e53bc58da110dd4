"""What methods that train an adapter of PEFT share: its two files, and its coming and going in a model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from featherweight.config.files import new_file, write_atomically
from featherweight.errors import CheckpointError, ConfigError
from featherweight.selection import classification_head

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT writes before the name of each tensor."""


def write_files(
    folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write an adapter's two files, each complete or not at all, the configuration last.

    Args:
        folder: where to; made if it does not exist.
        config: what stands in adapter_config.json; plain values.
        tensors: by name, `PREFIX` included; contiguous.
        metadata: of the file of tensors, beside PEFT's own.
    Raises:
        CheckpointError: if the folder cannot be written.
    """
    try:
        with new_file(folder / WEIGHTS_FILE) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})
        write_atomically(folder / CONFIG_FILE, f"{json.dumps(config, indent=2, sort_keys=True)}\n")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"adapter: folder={folder} cannot be written ({error}); expected a writable folder with free space. Choose "
            "another folder."
        ) from error


def plain_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a PEFT configuration as JSON holds them: sets become sorted lists."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def require_no_adapter(model: nn.Module, where: str) -> None:
    """Refuse a model that has adapters, as two methods would take each other's for their own.

    Raises:
        ConfigError: if PEFT put an adapter into the model.
    """
    if adapters := getattr(model, "peft_config", None):
        kinds = ", ".join(str(getattr(config.peft_type, "value", config.peft_type)) for config in adapters.values())
        raise ConfigError(
            f"{where}: model={type(model).__name__} has an adapter of PEFT already ({kinds}); expected a plain model. "
            "Choose one method that trains an adapter, or unload the other one first."
        )


def train_head(model: nn.Module) -> None:
    """Let a classifier's head learn whole beside an adapter: it is new, and PEFT does so with SEQ_CLS models."""
    for parameter in _head_parameters(model).values():
        parameter.requires_grad_(True)


def head_settings(model: nn.Module) -> dict[str, Any]:
    """Return what adapter_config.json says of a classifier's head; nothing for other models.

    PEFT makes copies of the modules named there, into which it loads `head_tensors`.
    """
    head = list(classification_head(model))
    return {"task_type": "SEQ_CLS", "modules_to_save": head} if head else {}


def head_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a classifier's head by their key in an adapter's file; empty for other models."""
    found = _head_parameters(model)
    return {f"{PREFIX}{name}": one.detach().clone().contiguous().cpu() for name, one in found.items()}


def _head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return parameters of the head by their full name, but those beside which an adapter stands."""
    return {
        f"{top}.{name}": parameter
        for top, module in classification_head(model).items()
        for name, parameter in module.named_parameters()
        if not {"base_layer", "lora_A", "lora_B"} & set(name.split(".")) and "s2ft_" not in name
    }
