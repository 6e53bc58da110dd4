"""Where a source of a model leads, and errors on the way there in one sentence each."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featherweight.errors import CheckpointError, ConfigError, MissingExtraError, did_you_mean
from featherweight.models.quiet import quiet_transformers
from featherweight.models.shapes import SHAPES

ALIASES = ("smollm2", "tiny", "byte-llama")
"""Models with a name of their own."""

ADAPTER_FILE = "adapter_config.json"
"""What makes a folder that of an adapter."""


@dataclass(frozen=True)
class Place:
    """What a source names: exactly one of `path` and `settings` is set."""

    name: str
    path: str | None = None  # folder, or name on the hub
    gguf_file: str | None = None  # file inside `path`
    settings: Mapping[str, Any] | None = None  # configuration of a model with random weights

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of every `from_pretrained` of transformers."""
        return {"pretrained_model_name_or_path": self.path} | ({"gguf_file": self.gguf_file} if self.gguf_file else {})


def require_adapter_folder(source: str) -> Path:
    """Return the folder of an adapter that is to be exported as one.

    Raises:
        ConfigError: if it is none.
    """
    folder = Path(source).expanduser()
    if not (folder / ADAPTER_FILE).exists():
        raise ConfigError(
            f"export: model={source} is no adapter; expected a folder with {ADAPTER_FILE} for --to adapter. Give the "
            "folder runs/<name>/adapter, or write the model: --to hf:bf16."
        )
    return folder


def check_complete(place: Place, missing: set[str], kind: str = "causal language model") -> None:
    """Refuse a model some of whose weights are missing.

    Args:
        place: where it lies.
        missing: names of weights.
        kind: what it should be.
    Raises:
        ConfigError: if there are names in `missing`.
    """
    if missing:
        raise ConfigError(
            f"load_model: source={place.name} lacks {len(missing)} weights of a {kind}, '{min(missing)}' among them; "
            f"expected all of them. Choose a {kind} with its head, in a complete folder."
        )


@contextlib.contextmanager
def explained(
    place: Place,
    kind: str = "causal language model",
    *,
    silence: Callable[[], AbstractContextManager[None]] = quiet_transformers,
) -> Iterator[None]:
    """Run transformers quietly and turn what it raises about a source into one sentence.

    Args:
        place: what is asked for.
        kind: what it should be.
        silence: `quiet_hub` where the hub alone is asked, without an import of transformers.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        with silence():
            yield
    except (CheckpointError, ConfigError, MissingExtraError):
        raise
    except Exception as error:
        # The libraries below raise classes of their own, and tokenizers raises plain Exception.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # The classes of strict configurations put a headline before the reason.
        reason = lines[-1] if isinstance(error, StrictDataclassError) else lines[0]
        expected = f"a complete {kind}" if place.path else "a valid configuration"
        close = did_you_mean(place.name, [*ALIASES, *SHAPES])
        advice = (
            close if close.startswith("Did") else "Check the name, the files and, for a model of the hub, the network."
        )
        raise ConfigError(
            f"load_model: source={place.name} cannot be loaded ({reason.rstrip('.')}); expected {expected}. {advice}"
        ) from error
