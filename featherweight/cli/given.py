"""Whether what a command was given is there, asked before torch is imported: a slip of the pen is answered at once."""

import json
from pathlib import Path

from featherweight.config import read_mapping
from featherweight.errors import CheckpointError, ConfigError, nearest


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
    """Return a model's source unless it is a path that leads nowhere; the hub is asked for a name later. None stays.

    Raises:
        ConfigError: if the path does not exist, or is a folder without a model.
    """
    if source is None:
        return None
    path = Path(source).expanduser()
    is_path = path.is_absolute() or source.startswith((".", "~")) or path.suffix in (".gguf", ".json")
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
    return source


def require_exportable(source: str) -> str:
    """Return a model's source as `require_model` does, or the folder of an adapter."""
    if (Path(source).expanduser() / "adapter_config.json").exists():
        return source
    return require_model(source) or source


def require_template(source: str) -> None:
    """Refuse a model folder whose tokenizer has no chat template; other sources are judged when they are loaded.

    Raises:
        ConfigError: if there is none.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir() or (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return
    settings = folder / "tokenizer_config.json"
    try:
        has_template = bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        # A tokenizer that is missing or damaged is named as such when it is loaded.
        return
    if not has_template and not any((folder / "additional_chat_templates").glob("default.jinja")):
        raise ConfigError(
            f"fw chat: model={source} has no chat template (a base model); expected one that was trained on "
            'conversations. Let it continue a text: fw generate MODEL --prompt "...", or add --template chatml.'
        )


def _hint(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, siblings, limit=1)
    return f"Did you mean '{close[0]}'?" if close else "Check the path."
