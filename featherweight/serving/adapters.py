"""Adapters by name for the rows of one batch: S2FT and LoRA side by side, each behind the same small protocol."""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.peft_adapter import CONFIG_FILE
from featherweight.methods.s2ft.adapter import Adapter
from featherweight.methods.s2ft.bank import AdapterBank
from featherweight.methods.s2ft.layer import BASE
from featherweight.serving.lora_bank import LoraBank


class RowAdapters(Protocol):
    """What lets each row of a batch take an adapter of its own."""

    @property
    def names(self) -> list[str]:
        """All that a row may name."""
        ...

    def using(self, adapters: Sequence[str]) -> AbstractContextManager[Any]:
        """Let the rows of every forward pass inside the block take these adapters; "__base__" takes none."""
        ...

    def close(self) -> None:
        """Leave the base model as it was."""
        ...


class Adapters:
    """Several sources of adapters as one; each row takes the one that it names.

    Args:
        sources: whose names differ.

    Raises:
        ConfigError: if two sources have an adapter of one name.
    """

    def __init__(self, sources: Sequence[RowAdapters]) -> None:
        self._sources = list(sources)
        self._source_of: dict[str, int] = {}
        for place, source in enumerate(self._sources):
            for name in source.names:
                if name in self._source_of:
                    raise ConfigError(f"serve: adapter={name!r} is there twice; expected different names. Rename one.")
                self._source_of[name] = place

    @property
    def names(self) -> list[str]:
        """All that a row may name."""
        return sorted(self._source_of)

    @contextmanager
    def using(self, adapters: Sequence[str]) -> Iterator[None]:
        """Let the rows of every forward pass inside the block take these adapters; "__base__" takes none."""
        with ExitStack() as stack:
            for place, source in enumerate(self._sources):
                own = [name if self._source_of.get(name) == place else BASE for name in adapters]
                if any(name != BASE for name in own):
                    stack.enter_context(source.using(own))
            yield

    def close(self) -> None:
        """Leave the base model as it was."""
        for source in self._sources:
            source.close()


def open_adapters(model: nn.Module, store: Path, *, slots: int) -> Adapters:
    """Return the adapters of a folder: each sub-folder with an adapter is one, by its name.

    Args:
        model: that they belong to, in evaluation mode; its modules get hooks.
        store: the folder.
        slots: adapters of S2FT on the device at a time, at least as many as a batch has rows.

    Raises:
        ConfigError: if the folder does not exist, holds none, or one of a method that rows cannot mix.
        CheckpointError: if one is damaged, or of another model.
    """
    if not store.is_dir():
        raise ConfigError(
            f"serve: adapters={store} is no folder; expected one whose sub-folders are adapters. Check it."
        )
    folders = [path for path in sorted(store.iterdir()) if (path / CONFIG_FILE).is_file()]
    if not folders:
        raise ConfigError(
            f"serve: adapters={store} holds no adapter; expected sub-folders with {CONFIG_FILE}. Save adapters there."
        )
    kinds = {folder: _kind(folder) for folder in folders}
    other = next((folder for folder, kind in kinds.items() if kind not in ("S2FT", "LORA")), None)
    if other is not None:
        raise ConfigError(
            f"serve: peft_type={kinds[other]!r} of {other.name} is not mixed in a batch; expected S2FT or LORA. Serve "
            "it by itself."
        )
    sources: list[RowAdapters] = []
    s2ft = {folder.name: Adapter.load(folder) for folder, kind in kinds.items() if kind == "S2FT"}
    if s2ft:
        bank = AdapterBank(model, slots=slots)
        for name, adapter in s2ft.items():
            bank.add(name, adapter)
        for name in s2ft:
            bank.prefetch([name])  # one of another model is told before a request names it
        sources.append(bank)
    lora = {folder.name: folder for folder, kind in kinds.items() if kind == "LORA"}
    if lora:
        sources.append(LoraBank(model, lora))
    return Adapters(sources)


def _kind(folder: Path) -> str:
    try:
        return str(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("peft_type"))
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"serve: adapter={folder.name} cannot be read ({error}); expected its {CONFIG_FILE}. Copy it again."
        ) from error
