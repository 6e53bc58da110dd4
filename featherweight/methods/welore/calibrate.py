"""What the layers of a model read, block by block, so that only one block's moments are in memory at a time.

The model runs once over the batches to learn what each block is given besides the hidden states; from then on single
blocks run, on hidden states that are kept between them.
Shapes: B batch, L length, D hidden, T = tokens that count.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.methods.welore.whiten import Moments

OnInput = Callable[[str, Tensor, int], None]
"""Is told the full name of a layer, its input (T, N), and the number of the batch."""


@dataclass
class Stream:
    """Hidden states between two blocks, one tensor for each batch."""

    hidden: list[Tensor]
    arguments: list[list[tuple[tuple[Any, ...], dict[str, Any]]]]
    """By batch and block: what a block is given besides the hidden states."""
    masks: list[Tensor | None]
    """By batch: (B, L), which positions count; None for all."""

    def copy(self) -> "Stream":
        """Return a stream that moves on by itself; the tensors are shared."""
        return Stream(list(self.hidden), self.arguments, self.masks)

    @property
    def tokens(self) -> int:
        """Positions that count, over all batches."""
        counts = (
            int(mask.sum()) if mask is not None else hidden.shape[0] * hidden.shape[1]
            for hidden, mask in zip(self.hidden, self.masks, strict=True)
        )
        return sum(counts)


@dataclass
class Blocks:
    """The repeated blocks of a model, or the model as a whole where there are none."""

    names: list[str]
    modules: list[nn.Module]
    targets: list[list[str]] = field(default_factory=list)
    """By block: full names of the layers of interest."""


def find_blocks(model: nn.Module, targets: Iterable[str]) -> Blocks:
    """Return the list of blocks that holds all layers of interest.

    Raises:
        ConfigError: if a layer is outside of every list of blocks.
    """
    wanted = list(targets)
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    for name, blocks in lists:  # outer lists come first
        if all(target.startswith(f"{name}.") for target in wanted) and len(blocks):
            names = [f"{name}.{i}" for i in range(len(blocks))]
            inside = [[target for target in wanted if target.startswith(f"{one}.")] for one in names]
            return Blocks(names, list(blocks), inside)
    raise ConfigError(
        f"WeLore: target_modules selects '{wanted[0]}', and no list of blocks holds all selected layers; expected "
        "layers of repeated blocks, because calibration runs block by block. Select those, or use method='plain'."
    )


@torch.no_grad()
def start(model: nn.Module, blocks: Blocks, batches: Iterable[Any]) -> Stream:
    """Run the model over the batches and keep what its first block reads.

    Args:
        model: a causal language model of transformers.
        blocks: of `find_blocks`.
        batches: token ids (B, L), or mappings with `input_ids` and possibly `attention_mask`.
    Raises:
        ConfigError: if there is no batch.
    """
    stream = Stream([], [], [])
    device = next(model.parameters()).device
    for batch in batches:
        values = {"input_ids": batch} if isinstance(batch, Tensor) else dict(batch)
        values = {name: values[name].to(device) for name in ("input_ids", "attention_mask") if name in values}
        given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def remember(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Any] = given
        ) -> None:
            given.append((args, kwargs))

        handles = [one.register_forward_pre_hook(remember, with_kwargs=True) for one in blocks.modules]
        try:
            model(**values, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        first_args, first_kwargs = given[0]
        stream.hidden.append(first_args[0] if first_args else first_kwargs["hidden_states"])
        stream.arguments.append([(args[1:], _without_hidden(kwargs)) for args, kwargs in given])
        mask = values.get("attention_mask")
        stream.masks.append(mask.bool() if mask is not None and mask.ndim == 2 else None)
    if not stream.hidden:
        raise ConfigError("WeLore: calibration=[] holds no batch; expected token ids. Give some text.")
    return stream


@torch.no_grad()
def run_block(
    block: nn.Module,
    index: int,
    stream: Stream,
    names: Mapping[str, str] | None = None,
    on_input: OnInput | None = None,
) -> list[Tensor]:
    """Run one block over a stream and return the hidden states behind it, without moving the stream.

    Args:
        block: the module.
        index: its number.
        stream: what it reads.
        names: name inside the block -> full name, of the layers that are watched.
        on_input: is told what these read; positions that do not count are left out.
    """
    outputs = []
    for number, (hidden, mask) in enumerate(zip(stream.hidden, stream.masks, strict=True)):
        args, kwargs = stream.arguments[number][index]
        with _watched(block, names or {}, on_input, mask, number):
            output = block(hidden, *args, **kwargs)
        outputs.append(output[0] if isinstance(output, tuple) else output)
    return outputs


def moments_of(block: nn.Module, index: int, stream: Stream, names: Mapping[str, str]) -> dict[str, Moments]:
    """Return the moments of what each watched layer reads; layers that read the same tensor share one object.

    Also moves the stream behind the block.
    """
    moments: dict[str, Moments] = {}
    leaders: dict[str, str] = {}
    seen: dict[int, tuple[Tensor, str]] = {}
    last = -1

    def add(name: str, x_TN: Tensor, number: int) -> None:
        nonlocal last
        if number != last:
            seen.clear()
            last = number
        # `seen` keeps the tensors, so that no other one can have the same address meanwhile.
        leader = leaders.setdefault(name, seen.get(x_TN.data_ptr(), (x_TN, name))[1])
        seen.setdefault(x_TN.data_ptr(), (x_TN, name))
        if leader == name:
            moments.setdefault(name, Moments.zeros(x_TN.shape[1], x_TN.device)).add_(x_TN)

    stream.hidden = run_block(block, index, stream, names, add)
    return {name: moments[leader] for name, leader in leaders.items()}


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def inner_names(block_name: str, targets: Sequence[str]) -> dict[str, str]:
    """Return name inside the block -> full name."""
    return {name.removeprefix(f"{block_name}."): name for name in targets}


def _without_hidden(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "hidden_states"}


@contextmanager
def _watched(
    block: nn.Module, names: Mapping[str, str], on_input: OnInput | None, mask: Tensor | None, number: int
) -> Iterator[None]:
    flattened: dict[int, tuple[Tensor, Tensor]] = {}

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            assert on_input is not None
            x = args[0]
            if id(x) not in flattened:
                counts = mask is not None and x.shape[:2] == mask.shape
                flattened[id(x)] = (x, x[mask] if counts and mask is not None else x.reshape(-1, x.shape[-1]))
            on_input(name, flattened[id(x)][1], number)

        return hook

    watched = names.items() if on_input is not None else ()
    handles = [block.get_submodule(inner).register_forward_pre_hook(hook_for(full)) for inner, full in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
