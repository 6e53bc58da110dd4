"""Many adapters of one base model at work: each row of a batch takes its own, and those in use wait on the device.

Adapters lie in folders, memory-mapped. A bank holds some of them in slots: for each module one tensor with the
changes of
all slots. The one not used for longest makes room. The base model is not changed: the bank hangs on forward hooks.
Shapes: B rows of a batch, A slots, S most channels of an adapter in a module, M out_features.
Source: arXiv 2412.06289, section 5.4.
"""

import importlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import LISTED, ConfigError, did_you_mean
from featherweight.methods.s2ft.adapter import CONFIG_FILE, Adapter
from featherweight.methods.s2ft.base_slices import ChannelChange
from featherweight.methods.s2ft.fingerprint import base_fingerprint, base_weights, linear_shapes, require_same_base
from featherweight.methods.s2ft.layer import BASE
from featherweight.methods.s2ft.targets import linear_features
from featherweight.nn.channel_delta import mixed_delta


class AdapterBank:
    """Serves many S2FT adapters with one base model; a context manager.

    Threads may share a bank: one forward pass or `generate` runs at a time, and no adapter is exchanged during it.

    Args:
        base: a plain model in evaluation mode; its modules get a hook each, until `close`.
        store: folder whose sub-folders are adapters, by name; None takes only those that `add` is given.
        slots: adapters on the device at a time, at least as many as one batch names.
        tokenizer: lets `generate` take and return text.
        dtype: of the changes on the device; None takes the base's.
    Raises:
        ConfigError: if the store does not exist or holds no adapter.
    Cost: slots * S * M elements for each module that the adapters change.
    """

    def __init__(
        self,
        base: nn.Module,
        store: str | os.PathLike[str] | None = None,
        *,
        slots: int = 64,
        tokenizer: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if slots < 1:
            raise ConfigError(
                f"AdapterBank: slots={slots} is too small; expected >= 1. Give one for each adapter in use."
            )
        self.base, self.slots, self.tokenizer = base, slots, tokenizer
        self._dtype = dtype or next(base.parameters()).dtype
        self._folders = _folders(store) if store is not None else {}
        self._known: dict[str, Adapter] = {}
        self._slot_of: OrderedDict[str, int] = OrderedDict()
        self._modules: dict[str, _Module] = {}
        self._rows: Tensor | None = None
        self._lock = threading.RLock()
        self._fingerprint: dict[str, list[float]] = {}  # of the base, as far as adapters asked for it

    @property
    def names(self) -> list[str]:
        """All adapters that a batch may name."""
        return sorted({*self._folders, *self._known})

    @property
    def loaded(self) -> list[str]:
        """Adapters in slots, the least recently used first."""
        return list(self._slot_of)

    def add(self, name: str, adapter: Adapter) -> None:
        """Give the bank an adapter that lies in memory; one of the same name is replaced.

        Raises:
            ConfigError: for the name of the base itself.
        """
        if name == BASE:
            raise ConfigError(f"AdapterBank: name={name!r} means the base itself; expected another name. Rename it.")
        with self._lock:
            self._known[name] = adapter
            self._slot_of.pop(name, None)

    def prefetch(self, names: Sequence[str]) -> None:
        """Bring adapters into slots before they are asked for.

        Raises:
            ConfigError: if one is unknown or there are more than slots.
            CheckpointError: if one belongs to another base.
        """
        with self._lock:
            self._place(names)

    @contextmanager
    def using(self, adapters: Sequence[str]) -> Iterator[nn.Module]:
        """Let the rows of every forward pass inside the block take these adapters; "__base__" takes none.

        Args:
            adapters: a name for each row. Beams of a row stand side by side, as `generate` has them.
        Returns:
            The base model.
        Raises:
            ConfigError: if an adapter is unknown, or they are more than slots.
        """
        with self._lock:
            slot_of = self._place([name for name in dict.fromkeys(adapters) if name != BASE])
            device = next(self.base.parameters()).device
            self._rows = torch.tensor([slot_of.get(name, -1) for name in adapters], device=device)
            try:
                yield self.base
            finally:
                self._rows = None

    def __call__(self, *args: Any, adapters: Sequence[str], **kwargs: Any) -> Any:
        """Run a forward pass; see `using`."""
        with self.using(adapters) as model, torch.no_grad():
            return model(*args, **kwargs)

    def generate(self, prompts: Sequence[str] | Tensor, *, adapters: Sequence[str], **options: Any) -> Any:
        """Generate with an adapter for each prompt; see `featherweight.models.adapters.generate_with_adapters`.

        Args:
            prompts: texts, if the bank has a tokenizer, or token ids (B, L).
            adapters: a name for each prompt.
            options: of `transformers`' generate: max_new_tokens, num_beams, attention_mask, ...
        Returns:
            Texts of what was added for texts, else what `generate` returns.
        Raises:
            ConfigError: if texts come without a tokenizer, or the numbers of prompts and adapters differ.
        """
        # Named, not imported: tokens and text are the business of the row above this one.
        home = importlib.import_module("featherweight.models.adapters")
        return home.generate_with_adapters(self, prompts, adapters=adapters, tokenizer=self.tokenizer, **options)

    def close(self) -> None:
        """Take the hooks off the base and free the slots."""
        with self._lock:
            for module in self._modules.values():
                module.handle.remove()
            self._modules.clear()
            self._slot_of.clear()

    def __enter__(self) -> "AdapterBank":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _place(self, names: Sequence[str]) -> dict[str, int]:
        """Return the slot of each adapter, after loading those that have none."""
        if len(set(names)) > self.slots:
            raise ConfigError(
                f"AdapterBank: adapters={len(set(names))} in one batch are more than slots={self.slots}; expected "
                "at most those. Raise slots, or split the batch."
            )
        for name in names:
            if name in self._slot_of:
                self._slot_of.move_to_end(name)
        for name in names:
            if name not in self._slot_of:
                adapter = self._read(name)
                slot = self._free_slot(keep=set(names))
                for module in self._modules.values():
                    module.clear_(slot)
                for module_name, change in adapter.modules.items():
                    self._module(module_name, len(change.indices)).write_(slot, change)
                self._slot_of[name] = slot
        return {name: self._slot_of[name] for name in names}

    def _free_slot(self, keep: set[str]) -> int:
        used = set(self._slot_of.values())
        free = [slot for slot in range(self.slots) if slot not in used]
        if free:
            return free[0]
        oldest = next(name for name in self._slot_of if name not in keep)
        return self._slot_of.pop(oldest)

    def _read(self, name: str) -> Adapter:
        if name not in self._known and name not in self._folders:
            raise ConfigError(
                f"AdapterBank: adapter={name!r} is unknown; expected one of {self.names} or '{BASE}'. "
                f"{did_you_mean(name, self.names, otherwise=LISTED)}"
            )
        adapter = self._known[name] if name in self._known else Adapter.load(self._folders[name])
        where = f"AdapterBank '{name}'"
        adapter.require_sound(where, linear_shapes(self.base, adapter.modules, where))
        rows = next((one for one, change in adapter.modules.items() if change.axis != "input"), None)
        if rows is not None:
            raise ConfigError(
                f"AdapterBank: adapter={name!r} changes rows of '{rows}'; expected changes of input channels, which "
                "rows of a batch can mix. Serve it with PeftModel and adapter_names."
            )
        new = [key for key in adapter.fingerprint or () if key not in self._fingerprint]
        self._fingerprint |= base_fingerprint(base_weights(self.base, new))
        require_same_base(adapter.fingerprint, self._fingerprint, where)
        if adapter.extra:
            raise ConfigError(
                f"AdapterBank: adapter={name!r} also trains {sorted(adapter.extra)[0]}; expected changes of "
                "channels alone. Serve it by itself, with PeftModel."
            )
        return adapter

    def _module(self, name: str, channels: int) -> "_Module":
        found = self._modules.get(name)
        if found is not None and channels <= found.indices.shape[1]:
            return found
        layer = self.base.get_submodule(name)
        sizes = linear_features(layer)
        assert sizes is not None, "checked when the adapter was read"
        fresh = _Module(self.slots, channels, sizes[1], self._dtype, layer.weight.device)  # type: ignore[arg-type]
        if found is not None:
            fresh.take_(found)
            found.handle.remove()
        fresh.handle = layer.register_forward_hook(lambda module, args, output: self._add(fresh, args[0], output))
        self._modules[name] = fresh
        return fresh

    def _add(self, module: "_Module", x: Tensor, output: Tensor) -> Tensor:
        if self._rows is None:
            return output
        rows = self._rows
        if len(x) != len(rows):
            if len(x) % len(rows):
                raise ConfigError(
                    f"AdapterBank: adapters={len(rows)} do not fit a batch of {len(x)} rows; expected one for "
                    "each row, or a whole number of beams. Give one name for each prompt."
                )
            rows = rows.repeat_interleave(len(x) // len(rows))
        return module.add(x, output, rows)


class _Module:
    """The changes of one module in all slots."""

    handle: Any

    def __init__(self, slots: int, channels: int, out_features: int, dtype: torch.dtype, device: torch.device) -> None:
        self.deltas = torch.zeros(slots, channels, out_features, dtype=dtype, device=device)
        self.indices = torch.full((slots, channels), -1, dtype=torch.int64, device=device)

    def clear_(self, slot: int) -> None:
        self.deltas[slot] = 0
        self.indices[slot] = -1

    def write_(self, slot: int, change: ChannelChange) -> None:
        count = len(change.indices)
        scaled = change.delta.detach() if change.scaling == 1.0 else change.delta.detach() * change.scaling
        self.deltas[slot, :count] = scaled.to(self.deltas)
        self.indices[slot, :count] = change.indices.to(self.indices)

    def take_(self, other: "_Module") -> None:
        count = other.indices.shape[1]
        self.deltas[:, :count] = other.deltas
        self.indices[:, :count] = other.indices

    def add(self, x: Tensor, output: Tensor, rows: Tensor) -> Tensor:
        in_order = len(rows) == len(self.deltas) and bool((rows == torch.arange(len(rows), device=rows.device)).all())
        if in_order:  # the usual case of a full batch: nothing has to be copied
            return output + mixed_delta(x, self.deltas, self.indices).to(output.dtype)
        busy = rows >= 0
        if not bool(busy.any()):
            return output
        chosen = rows[busy]
        term = mixed_delta(x[busy], self.deltas[chosen], self.indices[chosen])
        result = output.clone()
        result[busy] += term.to(output.dtype)
        return result


def _folders(store: str | os.PathLike[str]) -> dict[str, Path]:
    root = Path(store)
    if not root.is_dir():
        raise ConfigError(
            f"AdapterBank: store={root} is no folder; expected one whose sub-folders are adapters. Correct the path."
        )
    found = {path.name: path for path in sorted(root.iterdir()) if (path / CONFIG_FILE).is_file()}
    if not found:
        raise ConfigError(
            f"AdapterBank: store={root} holds no adapter; expected sub-folders with {CONFIG_FILE}. Save adapters "
            "there first."
        )
    return found
