"""An adapter as LoRA in PEFT's layout that vLLM and other engines serve beside its base model.

Such engines read one rank and one factor for all modules: modules of smaller rank are filled up with zeros, and factors
that differ are multiplied into B. What they cannot serve (heads, biases, DoRA, embeddings) is refused by name.
Shapes: R rank, M out_features, N in_features.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.peft_adapter import CONFIG_FILE, PREFIX, WEIGHTS_FILE, write_files
from featherweight.methods.s2ft.export import VLLM_RANKS, export_lora
from featherweight.models.export import require_new, require_room
from featherweight.models.place import require_adapter_folder

_FACTOR = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight")
_ADVICE = "Write a merged copy instead: --to hf:bf16."


def export_adapter(source: str, out: Path) -> dict[str, Any]:
    """Write an adapter folder (LoRA of PEFT, or S2FT) as LoRA that engines serve.

    Args:
        source: the folder.
        out: the folder to make.

    Returns:
        Facts: the folder, modules, the rank, and the max_lora_rank that vLLM must be started with.

    Raises:
        ConfigError: if `out` holds something, or the adapter has a part that engines do not serve.
        CheckpointError: if it is damaged or cannot be written.
    """
    folder = require_adapter_folder(source)
    require_new(out)
    require_room(out, sum(path.stat().st_size for path in folder.glob("*.safetensors")))
    config = _read_config(folder)
    _require_servable(config, source)
    if config.get("peft_type") == "S2FT":
        export_lora(folder, out)
    else:
        _unify(folder, config, out)
    written = _read_config(out)
    rank = int(written["r"])
    needed = next((one for one in VLLM_RANKS if one >= rank), None)
    if needed is None:
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            (out / name).unlink()
        out.rmdir()
        raise ConfigError(
            f"export: rank={rank} of {source} is more than vLLM serves; expected at most {VLLM_RANKS[-1]}. {_ADVICE}"
        )
    return {
        "folder": str(out),
        "base model": written.get("base_model_name_or_path"),
        "modules": len(written["target_modules"]),
        "rank": rank,
        "serve with": f"vllm serve BASE --enable-lora --max-lora-rank {needed} --lora-modules NAME={out}",
    }


def _require_servable(config: Mapping[str, Any], source: str) -> None:
    kind = config.get("peft_type")
    parts = {
        "peft_type": kind not in ("LORA", "S2FT") and kind,
        "use_dora": config.get("use_dora"),
        "bias": config.get("bias", "none") != "none" and config["bias"],
        "modules_to_save": config.get("modules_to_save"),
        "fan_in_fan_out": config.get("fan_in_fan_out"),
        "trainable_token_indices": config.get("trainable_token_indices"),
        "layer_replication": config.get("layer_replication"),
        "lora_bias": config.get("lora_bias"),
    }
    for name, value in parts.items():
        if value:
            raise ConfigError(
                f"export: {name}={value} of the adapter {source} is none that vLLM serves; expected LoRA or S2FT on "
                f"linear layers alone. {_ADVICE}"
            )


def _unify(folder: Path, config: Mapping[str, Any], out: Path) -> None:
    """Write a LoRA adapter with one rank and the factor 1."""
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"export: file={folder / WEIGHTS_FILE} cannot be read ({error}); expected the weights of an adapter. Save "
            "it anew."
        ) from error
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _FACTOR.fullmatch(key)
        if found is None:
            raise ConfigError(
                f"export: tensor='{key}' of the adapter {folder} is none that vLLM serves; expected factors of linear "
                f"layers alone. {_ADVICE}"
            )
        factors.setdefault(found[1], {})[found[2]] = tensor
    if lone := sorted(name for name, pair in factors.items() if pair.keys() != {"A", "B"}):
        raise CheckpointError(
            f"export: module='{lone[0]}' of the adapter {folder} has one factor; expected A and B. Save it anew."
        )
    rank = max(pair["A"].shape[0] for pair in factors.values())
    written: dict[str, Tensor] = {}
    for name, pair in factors.items():
        a_RN, b_MR = pair["A"], pair["B"]
        scale = _scale(config, name, a_RN.shape[0])
        b_MR = (b_MR.to(torch.float64) * scale).to(b_MR.dtype)
        missing = rank - a_RN.shape[0]
        written[f"{PREFIX}{name}.lora_A.weight"] = F.pad(a_RN, (0, 0, 0, missing)).contiguous()
        written[f"{PREFIX}{name}.lora_B.weight"] = F.pad(b_MR, (0, missing)).contiguous()
    settings = {
        "peft_type": "LORA",
        "task_type": config.get("task_type"),
        "base_model_name_or_path": config.get("base_model_name_or_path"),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(factors),
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_files(out, settings, written)


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return the factor on B A of a module, as PEFT computes it."""
    alpha = float(_of_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", rank)))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _of_pattern(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the key that names a module or matches the end of its name."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"export: file={folder / CONFIG_FILE} cannot be read ({error}); expected the description of an adapter. "
            "Save the adapter anew."
        ) from error
