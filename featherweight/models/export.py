"""Copies of a model for other programs: dense folders of Hugging Face in a chosen type, from whatever there is.

What other programs cannot read is worked in before: layers of low rank become plain matrices, adapters are merged.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from featherweight.config.files import new_folder
from featherweight.errors import ConfigError
from featherweight.methods.low_rank_model import low_rank_modules, merge_low_rank
from featherweight.models.facts import model_facts
from featherweight.models.load import load_model, load_tokenizer
from featherweight.models.save import write_model_files
from featherweight.models.tokenizer import Tokenizer
from featherweight.report.formatting import format_bytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Types of a dense copy, by name."""

SHARD_SIZE = "5GB"
"""Weights are written in files of at most this size."""


def dense_model(source: str, *, base: str | None = None, dtype: torch.dtype = torch.float32) -> tuple[Any, Tokenizer]:
    """Return a model whose layers are all plain, and its tokenizer.

    Args:
        source: a model, or the folder of an adapter (S2FT, or any of PEFT that can be merged).
        base: the model under the adapter; None takes the one that the adapter names.
        dtype: of the weights. Merging is done in float32 and rounded once.

    Returns:
        A `transformers.PreTrainedModel` in evaluation mode, and the tokenizer.

    Raises:
        ConfigError: if the model cannot be loaded or merged, or `base` is given for what is no adapter.
        CheckpointError: if files are damaged.
    """
    folder = Path(source).expanduser()
    if (folder / "adapter_config.json").exists():
        model, tokenizer = _merged(folder, base)
    elif base is not None:
        raise ConfigError(
            f"export: base={base} is given, and {source} is no adapter; expected a folder with adapter_config.json. "
            "Leave --base out."
        )
    else:
        is_low_rank = _is_low_rank(folder)
        tokenizer = load_tokenizer(source)
        model = load_model(source, dtype=torch.float32 if is_low_rank else dtype, tokenizer=tokenizer)
    if low_rank_modules(model):
        merge_low_rank(model)
    return model.to(dtype).eval(), tokenizer


def export_folder(source: str, out: Path, *, dtype: torch.dtype, base: str | None = None) -> dict[str, Any]:
    """Write a dense copy of a model as a Hugging Face folder, which appears complete or not at all.

    Args:
        source: as for `dense_model`.
        out: the folder to make; it must not exist yet, or be empty.
        dtype: of the weights.
        base: as for `dense_model`.

    Returns:
        Facts: the folder, parameters, bytes and files of the weights.

    Raises:
        ConfigError: if `out` holds something, cannot be written or the disk has no room; as `dense_model`.

    Cost: memory of the whole model in `dtype`; in float32 where something is merged.
    """
    require_new(out)
    require_room(out, count_parameters(source, base) * dtype.itemsize)
    model, tokenizer = dense_model(source, base=base, dtype=dtype)
    try:
        with new_folder(out) as folder:
            write_model_files(model, tokenizer, folder, max_shard_size=SHARD_SIZE)
    except (OSError, SafetensorError) as error:
        raise cannot_write(out, error) from error
    files = sorted(out.glob("*.safetensors"))
    return {
        "folder": str(out),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights on disk (bytes)": sum(file.stat().st_size for file in files),
        "files of weights": len(files),
    }


def require_new(out: Path) -> None:
    """Refuse a place where something is: an export replaces nothing.

    Raises:
        ConfigError: if there is a file or a folder that is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"export: out={out} is there already; expected a new place. Choose another name.")


def require_room(out: Path, needed_bytes: float, *, where: str = "export") -> None:
    """Refuse a result that the disk has no room for, before the work begins.

    Args:
        out: where to.
        needed_bytes: of the result, roughly.
        where: opens the message.

    Raises:
        ConfigError: if less is free.
    """
    existing = next(parent for parent in [out.absolute(), *out.absolute().parents] if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    # Tokenizer, headers and the blocks of the file system come on top.
    needed = math.ceil(needed_bytes * 1.02) + 2**20
    if needed > free_bytes:
        raise ConfigError(
            f"{where}: out={out} needs about {format_bytes(needed)}, and its disk has {format_bytes(free_bytes)} free; "
            "expected room for all of it. Free some space, choose another disk, or a smaller result."
        )


def count_parameters(source: str, base: str | None = None) -> int:
    """Return how many parameters the dense model has; no weights are read."""
    folder = Path(source).expanduser()
    if (folder / "adapter_config.json").exists():
        return model_facts(_base_of(folder, base)).parameters
    if not _is_low_rank(folder):
        return model_facts(source).parameters
    from transformers import AutoModelForCausalLM

    from featherweight.methods.sealed_folder import read_folder_configuration

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read_folder_configuration(folder))
    return sum(parameter.numel() for parameter in model.parameters())


def cannot_write(out: Path, error: Exception) -> ConfigError:
    """Return the sentence for a disk that is full or cannot be written."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return ConfigError(
        f"export: out={out} cannot be written ({reason}); expected a writable place with free space. Choose another, "
        "or free some space."
    )


def _is_low_rank(folder: Path) -> bool:
    from featherweight.methods.sealed_folder import RECORD

    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # No folder, or one that is refused in a sentence when it is loaded.
        return False
    return isinstance(settings, dict) and RECORD in settings


def _base_of(adapter: Path, base: str | None) -> str:
    try:
        named = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"export: file={adapter / 'adapter_config.json'} cannot be read ({error}); expected the description of an "
            "adapter. Save the adapter anew."
        ) from error
    found = base or named
    if not found:
        raise ConfigError(f"export: base=None, and {adapter} names no base model; expected a model. Give --base.")
    return str(found)


def _merged(adapter: Path, base: str | None) -> tuple[Any, Tokenizer]:
    """Return the model under an adapter with the adapter merged, in float32."""
    source = _base_of(adapter, base)
    tokenizer = load_tokenizer(str(adapter) if (adapter / "tokenizer_config.json").exists() else source)
    model: Any = load_model(source)
    kind = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("peft_type")
    if kind == "S2FT":
        from featherweight.methods.s2ft import Adapter
        from featherweight.methods.s2ft.merge import merge_into

        merge_into(model, Adapter.load(adapter))
        return model, tokenizer
    from peft import PeftModel

    merge_low_rank(model)
    try:
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(), tokenizer
    except Exception as error:  # classes of peft, safetensors and torch
        raise ConfigError(
            f"export: adapter={adapter} of type {kind} cannot be merged ({str(error).partition(chr(10))[0]}); expected "
            f"an adapter of {source} that can. Give its own base model by --base."
        ) from error
