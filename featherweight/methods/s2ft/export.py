"""An S2FT adapter as a LoRA adapter that any LoRA engine serves.

On the input axis A selects the channels (one 1 in each row) and B is the change; on the output axis the other way
round.
Every entry of B A is then one product with 1: the export is exact, and its rank is the number of channels.
Shapes: S channels, K the other axis, N in_features, M out_features, R rank.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.peft_adapter import PREFIX, write_files
from featherweight.methods.s2ft.adapter import Adapter
from featherweight.methods.s2ft.base_slices import ChannelChange
from featherweight.report import Report

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM accepts as max_lora_rank."""


def export_lora(
    adapter: Adapter | nn.Module | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    adapter_name: str = "default",
    max_rank: int | None = None,
    dtype: torch.dtype | None = None,
) -> Report:
    """Write an adapter as LoRA, exactly, or with a bounded rank and a known error.

    All modules get the rank of the largest one, filled up with zeros: engines such as llama.cpp know one lora_alpha and
    divide it by the rank of each module's own tensors.

    Args:
        adapter: a folder, a loaded adapter, or a model with S2FT layers.
        folder: where the LoRA adapter goes; `peft` opens it without featherweight.
        adapter_name: which adapter of a model.
        max_rank: None exports exactly. A number keeps the leading singular vectors of changes with more channels.
        dtype: of the file; None keeps that of the change.
    Returns:
        Ranks, the max_lora_rank that vLLM has to be started with, and with `max_rank` the error of each module.
    Raises:
        ConfigError: if `max_rank` is below 1 or the model has no such adapter.
        CheckpointError: if the adapter is damaged, or a file cannot be read or written.
        NumericsError: if it holds NaN or infinite numbers.
    """
    if max_rank is not None and max_rank < 1:
        raise ConfigError(f"export_lora: max_rank={max_rank} is too small; expected >= 1, or None. Leave it out.")
    source = _loaded(adapter, adapter_name)
    source.require_sound("export_lora: adapter")
    shapes = {name: _features(source, name, change) for name, change in source.modules.items()}
    tensors: dict[str, Tensor] = dict(source.extra)
    most = max(len(change.indices) for change in source.modules.values())
    rank = most if max_rank is None else min(most, max_rank)
    rows = []
    for name, change in source.modules.items():
        a_RN, b_MR, error = lora_factors(change, shapes[name], max_rank)
        filled = (F.pad(a_RN, (0, 0, 0, rank - len(a_RN))), F.pad(b_MR, (0, rank - len(a_RN))))
        for side, factor in zip("AB", filled, strict=True):
            tensors[f"{PREFIX}{name}.lora_{side}.weight"] = factor.to(dtype or factor.dtype).contiguous().cpu()
        rows.append([name, change.axis, len(change.indices), len(a_RN), error])
    write_files(Path(folder), _lora_config(source, rank), tensors)
    return _report(rows, rank, max_rank)


def lora_factors(change: ChannelChange, features: int, max_rank: int | None = None) -> tuple[Tensor, Tensor, float]:
    """Return A (R, N), B (M, R) and the relative error of B A, in the Frobenius norm.

    Args:
        change: of one module.
        features: size of the axis that the channels lie on.
        max_rank: see `export_lora`.
    Example:
        >>> change = ChannelChange("input", torch.tensor([2]), torch.tensor([[5.0, 7.0]]))
        >>> a, b, error = lora_factors(change, features=3)
        >>> (b @ a).tolist(), error
        ([[0.0, 0.0, 5.0], [0.0, 0.0, 7.0]], 0.0)
    """
    delta = change.delta.detach() * change.scaling if change.scaling != 1.0 else change.delta.detach()
    channels = len(change.indices)
    selection = torch.zeros(channels, features, dtype=delta.dtype, device=delta.device)
    selection[torch.arange(channels, device=delta.device), change.indices.long()] = 1
    error = 0.0
    if max_rank is not None and channels > max_rank:
        left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
        total = float(values.norm())
        error = float(values[max_rank:].norm()) / total if total else 0.0
        root = values[:max_rank].sqrt()
        selection = ((left[:, :max_rank] * root).T.to(selection.dtype)) @ selection
        delta = (root[:, None] * right[:max_rank]).to(delta.dtype)
    return (selection, delta.t(), error) if change.axis == "input" else (delta, selection.t(), error)


def _loaded(adapter: Any, adapter_name: str) -> Adapter:
    if isinstance(adapter, Adapter):
        return adapter
    if isinstance(adapter, nn.Module):
        return Adapter.of_model(adapter, adapter_name)
    return Adapter.load(adapter)


def _features(source: Adapter, name: str, change: ChannelChange) -> int:
    """Return the size of the axis of a change, from the shapes that the adapter was saved with."""
    known = (source.fingerprint or {}).get(name)
    if known is None:
        raise CheckpointError(
            f"export_lora: '{name}' has no shape in base_fingerprint; expected the shapes of the base. Load the "
            "adapter onto its base and export the model."
        )
    return int(known[1] if change.axis == "input" else known[0])


def _lora_config(source: Adapter, rank: int) -> dict[str, Any]:
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(source.modules),
        modules_to_save=source.config.get("modules_to_save"),
        fan_in_fan_out=bool(source.config.get("fan_in_fan_out", False)),
        bias={"s2ft_only": "lora_only"}.get(source.config.get("bias", "none"), source.config.get("bias", "none")),
        task_type=source.config.get("task_type"),
        base_model_name_or_path=source.config.get("base_model_name_or_path"),
        inference_mode=True,
    ).to_dict()
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return dict(json.loads(json.dumps(config)))


def _report(rows: list[list[Any]], rank: int, max_rank: int | None) -> Report:
    report = Report("LoRA export")
    needed = next((one for one in VLLM_RANKS if one >= rank), None)
    facts = {"modules": len(rows), "largest rank": rank, "vLLM max_lora_rank": needed or "above 512: set max_rank"}
    if max_rank is not None:
        facts["largest relative error"] = max(row[-1] for row in rows)
    report.add_facts(facts)
    report.add_table("Modules", ["module", "axis", "channels", "rank", "relative error"], rows)
    return report
