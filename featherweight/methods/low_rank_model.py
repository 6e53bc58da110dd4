"""Models whose linear layers are of low rank: exchange of layers, the record in the configuration, folders, merging.

The record `low_rank_config` stands in `config.json` and says which modules have which rank and storage, so that a
folder written by `save_pretrained` is complete; `load_low_rank` reads it. WeLore and InRank share the format.

Loaders that know nothing of the record would open such a folder with random weights in place of the factors: see
`sealed_folder`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.sealed_folder import RECORD, read_folder_configuration, watch_saving
from featherweight.nn.low_rank_linear import STORAGES, LowRankLinear, PivotedLinear
from featherweight.nn.module_tree import replace_module

RECORD_VERSION = 1


def low_rank_modules(model: nn.Module) -> dict[str, LowRankLinear | PivotedLinear]:
    """Return all layers of low rank by their full name, in the model's order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LowRankLinear | PivotedLinear)}


def low_rank_record(model: nn.Module) -> dict[str, Any]:
    """Return what a loader must know of a model: rank, storage, and what else the layers have."""
    modules = low_rank_modules(model)
    record: dict[str, Any] = {
        "version": RECORD_VERSION,
        "rank_pattern": {name: module.rank for name, module in modules.items()},
        "storage_pattern": {
            name: "pivoted" if isinstance(module, PivotedLinear) else "factored" for name, module in modules.items()
        },
    }
    factored = [module for module in modules.values() if isinstance(module, LowRankLinear)]
    activations = {module.activation for module in factored if module.activation}
    if activations:
        record["activation"] = activations.pop()
    if any(module.base is not None for module in factored):
        record["base"] = True
    return record


def record_in_config(model: nn.Module) -> None:
    """Write the record into the configuration of a Hugging Face model, or take it out if no layer is of low rank."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return
    if low_rank_modules(model):
        setattr(config, RECORD, low_rank_record(model))
    elif hasattr(config, RECORD):
        delattr(config, RECORD)


def build_low_rank(model: nn.Module, record: Mapping[str, Any]) -> None:
    """Exchange plain linear layers for those that a record names, with weights that wait to be loaded.

    Args:
        model: any device, meta included.
        record: as `low_rank_record` returns it.
    Raises:
        CheckpointError: if the record is damaged, of a newer version, or names a module that is no plain linear layer.
    """
    if record.get("version", 0) > RECORD_VERSION:
        raise CheckpointError(
            f"{RECORD}: version={record['version']} is newer than this program; expected at most {RECORD_VERSION}. "
            "Update featherweight."
        )
    ranks, storages = record.get("rank_pattern"), record.get("storage_pattern")
    if not isinstance(ranks, Mapping) or not isinstance(storages, Mapping) or ranks.keys() - storages.keys():
        raise CheckpointError(
            f"{RECORD}: rank_pattern and storage_pattern do not name the same modules; expected a rank and a storage "
            "of each. The record is damaged: write the folder anew."
        )
    for name, rank in ranks.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1 or storages[name] not in STORAGES[1:]:
            raise CheckpointError(
                f"{RECORD}: module='{name}' has rank={rank!r} and storage={storages[name]!r}; expected rank >= 1 and "
                f"one of {', '.join(STORAGES[1:])}. The record is damaged: write the folder anew."
            )
        try:
            linear = model.get_submodule(name)
        except AttributeError:
            linear = None
        if linear is None or not (type(linear) is nn.Linear or type(linear).__name__ == "Conv1D"):
            raise CheckpointError(
                f"{RECORD}: module='{name}' is {type(linear).__name__} in this model; expected a plain linear layer. "
                "Load the folder with the architecture that wrote it."
            )
        replace_module(model, name, _skeleton(linear, int(rank), record["storage_pattern"][name], record))


def _skeleton(linear: nn.Module, rank: int, storage: str, record: Mapping[str, Any]) -> nn.Module:
    weight, bias = linear.weight, linear.bias
    assert isinstance(weight, torch.Tensor)
    is_transposed = type(linear).__name__ == "Conv1D"
    rows, columns = weight.shape[::-1] if is_transposed else weight.shape
    options: dict[str, Any] = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    layer: LowRankLinear | PivotedLinear
    if storage == "pivoted":
        layer = PivotedLinear(columns, rows, rank, **options)
    else:
        layer = LowRankLinear(columns, rows, rank, activation=record.get("activation"), **options)
        if record.get("base"):
            layer.base = nn.Parameter(torch.empty_like(weight), requires_grad=False)
    layer.is_transposed = is_transposed
    return layer.train(linear.training)


def load_low_rank(folder: str | Path, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Load a model folder of Hugging Face whose linear layers are of low rank.

    Everything but the layers is the business of transformers: shards, tied weights, dtypes, buffers.

    Args:
        folder: as `save_pretrained` wrote it, with `low_rank_config` in its config.json.
        dtype: of the weights; None takes that of the folder.
    Returns:
        A model of its ordinary class on the CPU, in eval mode.
    Raises:
        ConfigError: if the folder holds no such model.
        CheckpointError: if weights are missing, left over, or of another shape.
    """
    with _read_whole(folder):
        config = read_folder_configuration(folder)
    record = getattr(config, RECORD, None)
    if record is None:
        raise ConfigError(
            f"load_low_rank: folder={folder} has no {RECORD} in its config.json; expected a model that was compressed "
            "or trained with low ranks. Load it with transformers."
        )
    kind, pattern = _class_of(config), dict(record)

    class WithLowRank(kind):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, *args: Any, **options: Any) -> None:
            super().__init__(config, *args, **options)
            build_low_rank(self, pattern)

    WithLowRank.__name__ = WithLowRank.__qualname__ = kind.__name__  # which transformers writes into messages
    WithLowRank.__module__ = kind.__module__
    with _read_whole(folder):
        model, loading = WithLowRank.from_pretrained(
            str(folder), config=config, dtype=dtype or "auto", output_loading_info=True, ignore_mismatched_sizes=True
        )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, loading[problem])):
            raise CheckpointError(
                f"load_low_rank: folder={folder} has {len(names)} {problem.replace('_', ' ')}, '{names[0]}' among "
                f"them; expected the weights that {RECORD} names. Write the folder anew."
            )
    model.__class__ = kind
    watch_saving(model)
    return model


@contextmanager
def _read_whole(folder: str | Path) -> Iterator[None]:
    """Turn what goes wrong with a folder into one sentence: missing or cut files, no model_type, no such folder."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        raise CheckpointError(
            f"load_low_rank: folder={folder} cannot be read ({str(error).partition(chr(10))[0]}); expected a complete "
            "model folder. Write it anew."
        ) from error


def _class_of(config: Any) -> Any:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    return next((kind for kind in named if kind is not None), None) or MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


@torch.no_grad()
def merge_low_rank(model: nn.Module) -> int:
    """Turn every layer of low rank into a plain one again, in place; the model then is an ordinary checkpoint.

    Args:
        model: any.
    Returns:
        How many layers were merged.
    Raises:
        ConfigError: if a layer has an activation between its factors, which no plain layer can compute.
    """
    modules = low_rank_modules(model)
    for name, module in modules.items():
        if isinstance(module, LowRankLinear) and module.activation is not None:
            raise ConfigError(
                f"merge_low_rank: '{name}' has activation={module.activation!r} between its factors and is no matrix; "
                "expected factors alone. Keep the model as it is: load_low_rank reads it."
            )
    for name, module in modules.items():
        replace_module(model, name, module.to_linear())
    record_in_config(model)
    return len(modules)
