"""Which models a GGUF file is written of, told from their files before torch is imported and anything is loaded.

llama.cpp knows far more architectures than are written here; a dense copy is what its own converter reads.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featherweight.errors import ConfigError
from featherweight.models.place import ADAPTER_FILE, ALIASES
from featherweight.models.shapes import SHAPES

FAMILY = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's name of each architecture of transformers that is written."""


def require_gguf_source(source: str, base: str | None = None) -> None:
    """Refuse a model whose files show that it has no place in a GGUF file; what they do not show comes later.

    Args:
        source: a model, or the folder of an adapter.
        base: the model under an adapter; None takes the one that it names.
    Raises:
        ConfigError: for another architecture, a setting that the format cannot say, or a tokenizer of another kind.
    """
    if source in ALIASES[1:] or source in SHAPES:
        raise _unnamed(source, "bytes")
    folder = Path(source).expanduser()
    if (adapter := _read(folder / ADAPTER_FILE)) and (under := base or adapter.get("base_model_name_or_path")):
        require_gguf_source(str(under))
        return
    settings = _read(folder / "config.json")
    # A folder of low rank is sealed: its architecture is told when it is opened.
    if isinstance(settings.get("model_type"), str) and "low_rank_config" not in settings:
        require_family(settings, source)
    tokenizer = _read(folder / "tokenizer.json")
    model, pre_tokenizer = tokenizer.get("model"), json.dumps(tokenizer.get("pre_tokenizer"))
    if isinstance(model, dict) and (model.get("type", "BPE") != "BPE" or model.get("byte_fallback")):
        kind = f"{model.get('type', 'BPE')}{' with bytes as a fallback' if model.get('byte_fallback') else ''}"
        raise _unnamed(source, f"{kind}, {'byte-level' if 'ByteLevel' in pre_tokenizer else 'not byte-level'}")


def require_family(settings: Mapping[str, Any], source: str) -> None:
    """Refuse an architecture, or a setting of it, that the file could not say.

    Args:
        settings: of config.json, or those of a configuration of transformers.
        source: name of the model, for messages.
    Raises:
        ConfigError: as described.
    """
    kind = settings["model_type"]
    if kind not in FAMILY:
        raise ConfigError(
            f"export: model_type={kind} of {source} is none that is written as GGUF here; expected one of "
            f"{', '.join(FAMILY)}. Write a dense copy (--to hf:bf16), which llama.cpp's own converter reads."
        )
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    # Longer contexts of Llama 3 are factors in a tensor.
    rope_types = ("default", "llama3") if FAMILY[kind] == "llama" else ("default",)
    window = settings.get("sliding_window") if settings.get("use_sliding_window", True) else None
    odd = {
        "rope_type": rope_type not in rope_types and rope_type,
        "attention_bias": settings.get("attention_bias", False),
        "mlp_bias": settings.get("mlp_bias", False),
        "hidden_act": settings.get("hidden_act", "silu") != "silu" and settings["hidden_act"],
        "sliding_window": window is not None and window < settings.get("max_position_embeddings", 0) and window,
    }
    for name, value in odd.items():
        if value:
            raise ConfigError(
                f"export: {name}={value} of {source} is not written as GGUF here; expected a {kind} without it. Write "
                "a dense copy (--to hf:bf16), which llama.cpp's own converter reads."
            )


def _unnamed(source: str, found: str) -> ConfigError:
    return ConfigError(
        f"export: tokenizer={source} ({found}) is none that a GGUF file can name; expected a byte-level BPE as GPT-2, "
        "SmolLM2, Llama 3 or Qwen 2 have. Write a dense copy: --to hf:bf16."
    )


def _read(file: Path) -> dict[str, Any]:
    """Return what a JSON file holds; nothing of one that is missing or damaged, which is named when it is loaded."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
