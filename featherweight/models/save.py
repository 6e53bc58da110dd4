"""Models written as folders of Hugging Face that appear complete or not at all."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from featherweight.config.files import new_folder
from featherweight.errors import ConfigError
from featherweight.methods.sealed_folder import seal_folder
from featherweight.models.quiet import quiet_transformers
from featherweight.models.tokenizer import Tokenizer


def save_model_folder(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model and tokenizer as one Hugging Face folder that appears complete or not at all.

    Args:
        model: a `transformers.PreTrainedModel`.
        tokenizer: its tokenizer.
        folder: where to; parents are made. An older model folder there is replaced.
    Raises:
        ConfigError: if the folder holds other files than a model, or cannot be written.
    """
    if folder.exists() and not (folder / "config.json").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"save_model: folder={folder} holds something else than a model; expected a new, an empty or a model "
            "folder. Choose another folder."
        )

    try:
        with new_folder(folder, replace=True) as temporary:
            write_model_files(model, tokenizer, temporary)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"save_model: folder={folder} cannot be written ({reason}); expected a writable folder with free space. "
            "Choose another folder or free some space."
        ) from error


def write_model_files(model: Any, tokenizer: Tokenizer, folder: Path, **options: Any) -> None:
    """Write the files of a model and its tokenizer into a folder; one of low rank is sealed against other loaders.

    Args:
        model: as for `save_model_folder`.
        tokenizer: its tokenizer.
        folder: exists.
        options: those of `save_pretrained` for the model, such as max_shard_size.
    """
    with quiet_transformers():
        model.save_pretrained(str(folder), **options)
        tokenizer.save_pretrained(str(folder))
    seal_folder(folder)
