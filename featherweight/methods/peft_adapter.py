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
