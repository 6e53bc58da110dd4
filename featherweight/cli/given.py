"""Whether what a command was given is there, asked before torch is imported: a slip of the pen is answered at once."""

import json
from pathlib import Path
from typing import Any

from featherweight.config import parse_bytes, read_mapping
from featherweight.errors import LISTED, CheckpointError, ConfigError, did_you_mean, nearest
from featherweight.memory.cards import find_card
from featherweight.models.place import ALIASES
from featherweight.models.shapes import BYTE_LLAMA, SHAPES
from featherweight.models.sources import find_place

PLAN_TAGS = ("bf16-weights", "8-bit-states", "low-rank", "int8-weights", "4bit-weights", "few-parameters")
"""What `fw plan --exclude` knows: the keys of `featherweight.planner.TAGS`, whose import takes seconds."""
PLAN_UNKNOWNS = ("max_seq_len", "micro_batch", "rank", "min_memory")
"""What `fw plan --solve` knows: `featherweight.planner.solve.UNKNOWNS`."""


def require_recipe(path: Path | None) -> Path | None:
    """Return the path of a recipe that can be read; None stays None. Its keys are judged later.

    Raises:
        ConfigError: if the file is missing or broken.
    """
    if path is not None:
        read_mapping(path)
    return path


def require_adapter(folder: Path) -> Path:
    """Return the folder of an adapter; what stands in it is read later.

    Raises:
        CheckpointError: if there is no such folder, or none with a description of an adapter.
    """
    if (folder / "adapter_config.json").exists():
        return folder
    found = "holds no adapter_config.json" if folder.is_dir() else "is no folder" if folder.exists() else "is not there"
    raise CheckpointError(
        f"adapter: folder={folder} {found}; expected adapter_config.json and adapter_model.safetensors in it. "
        "Give the folder that save_pretrained wrote."
    )


def require_adapters(folders: list[Path]) -> list[Path]:
    """Return the folders of adapters, each as `require_adapter` does."""
    return [require_adapter(folder) for folder in folders]


def require_model(source: str | None) -> str | None:
    """Return a model's source if it leads somewhere; files are read later. None stays None.

    Raises:
        ConfigError: if a path does not exist or is a folder without a model, or a name is none of the shapes and the
            hub, which is asked for others, cannot be reached.
    """
    if source is None:
        return None
    path = Path(source).expanduser()
    is_path = path.is_absolute() or source.startswith((".", "~")) or path.suffix in (".gguf", ".json")
    _require_finished_run(source, path)
    if (is_path or source.count("/") > 1) and not path.exists():
        raise ConfigError(
            f"load_model: source={source} does not exist; expected a model folder, a .gguf or .json file, a name of "
            f"the hub, or a shape such as llama-60m. {_hint(path)}"
        )
    if path.is_dir() and not (path / "config.json").exists():
        raise ConfigError(
            f"load_model: source={source} is a folder without config.json; expected a model folder of Hugging Face. "
            "Choose the folder that holds config.json."
        )
    if path.is_dir():
        _require_settings(path / "config.json", source)
    if not path.exists() and source not in ALIASES:
        find_place(source)
    return source


def _require_settings(file: Path, source: str) -> None:
    """Refuse a model whose settings are no JSON object."""
    try:
        settings, reason = json.loads(file.read_text(encoding="utf-8")), "it holds no object"
    except (OSError, ValueError, RecursionError) as error:
        settings, reason = None, str(error)
    if not isinstance(settings, dict):
        raise ConfigError(
            f"load_model: source={source} has a config.json that cannot be read ({reason}); expected a JSON object. "
            "Load or save the model anew."
        )


def _require_finished_run(source: str, path: Path) -> None:
    """Refuse the model of a run that has none yet, and the folder of a run in place of its model's."""
    run = path.parent
    if path.name in ("model", "adapter") and not path.exists() and (run / "recipe.yaml").is_file():
        is_done = (run / "summary.json").is_file()
        state = "wrote none" if is_done else "has not ended"
        advice = f"Wait for it, or go on with it: fw train {run / 'recipe.yaml'} --out {run} --resume"
        raise ConfigError(
            f"load_model: source={source} is not there: the run in {run} {state}; expected a finished "
            f"run with its model. {'Train with save_model=true.' if is_done else advice}"
        )
    if (path / "recipe.yaml").is_file() and not (path / "config.json").exists():
        raise ConfigError(
            f"load_model: source={source} is the folder of a run; expected that of a model. Write {path / 'model'}."
        )


def require_exportable(source: str) -> str:
    """Return a model's source as `require_model` does, or the folder of an adapter."""
    if (Path(source).expanduser() / "adapter_config.json").exists():
        return source
    return require_model(source) or source


def require_template(source: str, command: str = "fw chat") -> None:
    """Refuse a model that is known to have no chat template; other sources are judged when they are loaded.

    Args:
        source: of the model.
        command: opens the message.
    Raises:
        ConfigError: if there is none.
    """
    if has_no_template(source):
        raise ConfigError(
            f"{command}: model={source} has no chat template (a base model); expected one that was trained on "
            'conversations. Let it continue a text: fw generate MODEL --prompt "..."'
            f"{', or add --template chatml' if command == 'fw chat' else ''}."
        )


def has_no_template(source: str) -> bool:
    """Say whether a source is known to have a tokenizer without a chat template: a folder, or bytes."""
    if source == "bytes" or source in ALIASES[1:] or source in SHAPES:
        return True
    folder = Path(source).expanduser()
    if not folder.is_dir() or (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return False
    settings = folder / "tokenizer_config.json"
    try:
        has_template = bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        # A tokenizer that is missing or damaged is named as such when it is loaded.
        return False
    return not has_template and not any((folder / "additional_chat_templates").glob("default.jinja"))


def require_tags(tags: str) -> str:
    """Return what a plan shall leave out if its parts are known.

    Raises:
        ConfigError: for an unknown one.
    """
    for tag in (part.strip() for part in tags.split(",")):
        if tag and tag not in PLAN_TAGS:
            raise ConfigError(
                f"plan: exclude={tag!r} is no tag; expected some of {', '.join(PLAN_TAGS)}. "
                f"{did_you_mean(tag, PLAN_TAGS, otherwise=LISTED)}"
            )
    return tags


def require_size(size: str | None) -> str | None:
    """Return a size of memory if it is one with a unit; None stays None.

    Raises:
        ConfigError: if it is not.
    """
    if size is not None:
        parse_bytes(size)
    return size


def require_device(device: str | None) -> str | None:
    """Return the name of a device if torch or the table of cards knows it; None stays None.

    Raises:
        ConfigError: if neither does.
    """
    if device is not None and device != "cpu" and not device.startswith("cuda"):
        find_card(device)
    return device


def require_length(model: str | None, seq_len: int | None) -> None:
    """Refuse a row that is longer than the model reads, where a name or a file tells how long that is.

    Raises:
        ConfigError: if it is too long.
    """
    longest = None if model is None else longest_row(model)
    if longest is not None and seq_len is not None and seq_len > longest:
        raise ConfigError(
            f"plan: --seq-len={seq_len} is longer than max_position_embeddings={longest} of the model {model}; "
            f"expected 2 <= seq_len <= {longest}. Lower it, plan a recipe with task.max_positions={seq_len}, or choose "
            "another model."
        )


def longest_row(model: str) -> int | None:
    """Return the tokens that a model reads at once, where its name or a file says so."""
    settings: Any = {"tiny": BYTE_LLAMA, "byte-llama": BYTE_LLAMA, **SHAPES}.get(model)
    path = Path(model).expanduser()
    if settings is None and path.suffix != ".gguf" and path.exists():
        try:
            settings = json.loads((path / "config.json" if path.is_dir() else path).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # named as damaged when the model is loaded
    longest = settings.get("max_position_embeddings") if isinstance(settings, dict) else None
    return longest if isinstance(longest, int) else None


def require_unknown(unknown: str | None) -> str | None:
    """Return what a plan is to be solved for if that can be asked.

    Raises:
        ConfigError: if it cannot.
    """
    if unknown is not None and unknown not in PLAN_UNKNOWNS:
        raise ConfigError(
            f"solve: unknown={unknown!r} cannot be solved for; expected one of {', '.join(PLAN_UNKNOWNS)}. "
            f"{did_you_mean(unknown, PLAN_UNKNOWNS, otherwise=LISTED)}"
        )
    return unknown


def _hint(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, siblings, limit=1)
    return f"Did you mean '{close[0]}'?" if close else "Check the path."
