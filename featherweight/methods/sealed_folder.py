"""Model folders that must not open elsewhere: sealed, so that other loaders refuse them instead of drawing weights.

Loaders look for weights by name and fill up what they miss with random ones. Where the weights of a folder are not
those of its class, the settings by which a class is chosen are put aside, and what stands in their place makes every
loader refuse. This package reads sealed folders of low rank; raw weights of other changes belong to the model that
wrote them.
"""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import CheckpointError, ConfigError

RECORD = "low_rank_config"
"""Key in a model's configuration."""

SEALED_TYPE = "featherweight_low_rank"
CHANGED_TYPE = "featherweight_changed"
"""`model_type` of folders with raw weights that only the model that wrote them can take back."""
_SEAL: dict[str, Any] = {
    "model_type": SEALED_TYPE,
    "architectures": ["FeatherweightLowRankForCausalLM"],
    # Classes that are named, not chosen (LlamaForCausalLM.from_pretrained), look at no type, but need this number.
    "num_hidden_layers": "layers of low rank: open them with featherweight.load_low_rank, or copy them with fw export",
}
_SEALED = "sealed"
"""Key in the record: the settings in whose place the seal stands."""


def sealed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a configuration so that only this package opens them; without a record, as they are.

    Args:
        settings: what stands in config.json.
    """
    record = settings.get(RECORD)
    if not isinstance(record, Mapping) or settings.get("model_type") == SEALED_TYPE:
        return dict(settings)
    kept = {name: settings[name] for name in _SEAL if name in settings}
    return {**settings, **_SEAL, RECORD: {**record, _SEALED: kept}}


def unsealed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as they were before `sealed`; others as they are."""
    record = settings.get(RECORD)
    if settings.get("model_type") != SEALED_TYPE or not isinstance(record, Mapping):
        return dict(settings)
    plain = {name: value for name, value in settings.items() if name not in _SEAL}
    return {**plain, **record.get(_SEALED, {}), RECORD: {key: one for key, one in record.items() if key != _SEALED}}


def seal_folder(folder: Path) -> None:
    """Seal the config.json of a folder that is being written, if it has a record."""
    path = folder / "config.json"
    if not path.exists():
        return
    settings = json.loads(path.read_text(encoding="utf-8"))
    if RECORD in settings:
        path.write_text(json.dumps(sealed(settings), indent=2) + "\n", encoding="utf-8")


def seal_changed(folder: Path, changed: Sequence[str]) -> None:
    """Seal a folder with the raw weights of a model that a method has changed, so that no loader fills up the rest."""
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: settings[name] for name in _SEAL if name in settings}
    text = f"the raw weights of a model that featherweight has changed (without '{changed[0]}'); see docs/export.md"
    seal = {"model_type": CHANGED_TYPE, "architectures": ["FeatherweightChangedModel"], "num_hidden_layers": text}
    path.write_text(json.dumps({**settings, **seal, CHANGED_TYPE: {_SEALED: kept}}, indent=2) + "\n", encoding="utf-8")


def read_folder_configuration(folder: str | Path) -> Any:
    """Return the configuration of transformers of a folder or a name of the hub, whether it is sealed or not."""
    from transformers import CONFIG_MAPPING, AutoConfig

    path = Path(folder) / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if isinstance(settings, dict) and settings.get("model_type") == CHANGED_TYPE:
        raise CheckpointError(
            f"load_model: folder={folder} holds {settings.get('num_hidden_layers')}; expected a model that opens by "
            "itself. Write it inside of the method's `saving` block, as fw train does, or remove or merge the method "
            "before it is saved."
        )
    if not isinstance(settings, dict) or settings.get("model_type") != SEALED_TYPE:
        return AutoConfig.from_pretrained(str(folder))
    settings = unsealed(settings)
    if settings.get("model_type") not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{RECORD}: {_SEALED} names model_type={settings.get('model_type')!r}, which transformers does not know; "
            "expected an architecture. The record is damaged, or transformers too old: write the folder anew."
        )
    return CONFIG_MAPPING[settings["model_type"]].from_dict(settings, name_or_path=str(folder))


_SAVE = "save_pretrained"


def watch_saving(model: nn.Module) -> None:
    """Let the model's own `save_pretrained` seal what needs it; a partial object, so that copies and pickles work."""
    if hasattr(type(model), _SAVE) and hasattr(model, "config"):
        vars(model)[_SAVE] = functools.partial(_save, model)


def unwatch_saving(model: nn.Module) -> None:
    """Take that back."""
    vars(model).pop(_SAVE, None)


def _save(model: Any, save_directory: str | os.PathLike[str], **options: Any) -> None:
    """Save a model as its class does, and seal the folder if it needs it.

    Raises:
        ConfigError: if it would be uploaded in the same breath, unsealed.
    """
    changed = changed_weights(model, options.get("state_dict"))
    if options.get("push_to_hub") and changed:
        raise ConfigError(
            f"save_pretrained: push_to_hub=True would upload weights that are not those of {type(model).__name__} "
            f"('{changed[0]}'); expected False. Save it, then upload the folder {os.fspath(save_directory)}, or write "
            "a dense copy by fw export first."
        )
    type(model).save_pretrained(model, save_directory, **options)
    if not changed:
        return
    folder = Path(save_directory)
    config = folder / "config.json"
    if RECORD in json.loads(config.read_text(encoding="utf-8")):
        seal_folder(folder)
    else:
        seal_changed(folder, changed)


def changed_weights(model: Any, written: Mapping[str, Tensor] | None = None) -> Sequence[str]:
    """Return names of weights that a plain model of this class has and this one lacks, or in another shape.

    Args:
        model: of transformers.
        written: what is to be written; None: its state. Of weights that are tied, one is enough.

    Cost: a model without memory is built.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        plain = type(model)(model.config)
    own = {name: tensor.shape for name, tensor in (written or model.state_dict()).items()}
    tied: dict[int, list[str]] = {}
    for name, parameter in plain.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    groups = {name: names for names in tied.values() for name in names}
    return [
        name
        for name, tensor in plain.state_dict().items()
        if not any(own.get(one) == tensor.shape for one in groups.get(name, [name]))
    ]
