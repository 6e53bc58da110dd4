"""Whether what a command was given is there, asked before torch is imported: a slip of the pen is answered at once."""

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


def _hint(path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, siblings, limit=1)
    return f"Did you mean '{close[0]}'?" if close else "Check the path."
