"""The rows of a step that goes layer by layer: their chunks, their documents, and what is kept of them.

Shapes: B rows of a batch, S tokens of a row, C of a chunk, D hidden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from featherweight.errors import ConfigError, did_you_mean
from featherweight.nn.prefix_store import AttentionResults, KeyValueStore
from featherweight.quant.int8_weight import has_values
from featherweight.training.separate_layers import Arguments, Stream

INPUTS = ("input_ids", "labels", "attention_mask", "position_ids")
IGNORED = -100
"""A label that counts for nothing, as everywhere in transformers."""


@dataclass
class Row:
    """One row of a batch: its chunks, and what is kept of them."""

    tokens: dict[str, Tensor]
    """Arguments of the model, (1, S) each."""
    targets: Tensor
    """(1, S), shifted: what each token is to predict."""
    documents: Tensor | None
    """(S,) on the CPU; -1 for padding. None for one document."""
    bounds: list[tuple[int, int]]
    """Chunks that hold anything but padding."""
    arguments: list[Arguments] = field(default_factory=list)
    """Of each layer."""
    boundaries: list[list[Tensor | None]] = field(default_factory=list)
    """Input of each layer, and last what the last one returns, by chunk: (1, C, D)."""
    attention: dict[int, AttentionResults] = field(default_factory=dict)
    """Of each layer, where it is not to be repeated."""
    gradients: list[Tensor] = field(default_factory=list)
    """Of the boundary that the backward pass has reached, by chunk."""

    def stream(self, layer: int | None = None) -> Stream:
        """Return what the attention of one layer works on."""
        results = None if layer is None else self.attention.get(layer)
        return Stream(KeyValueStore(self.bounds), self.documents, results=results)

    def cut(self, tensors: Mapping[str, Tensor], chunk: int) -> dict[str, Tensor]:
        """Return the tokens of a chunk."""
        first, behind = self.bounds[chunk]
        return {name: tensor[:, first:behind] for name, tensor in tensors.items()}

    def has_labels(self, chunk: int) -> bool:
        """Say whether a token of a chunk is to predict anything; of labels that have no values, as in a simulation."""
        targets = self.targets[:, slice(*self.bounds[chunk])]
        return not has_values(targets) or bool((targets != IGNORED).any())


NO_LABELS = "LayerMajor: labels hold nothing but -100; expected a token to predict in each step. Leave this batch out."


def label_count(rows: Sequence[Row], *, is_alone: bool = True) -> int:
    """Return how many tokens of some rows are to predict one.

    Args:
        rows: of this process.
        is_alone: whether no other process may have labels.
    Raises:
        ConfigError: if none is, and nobody else may have some.
    """
    if all(not has_values(row.targets) for row in rows):
        return sum(row.targets.shape[1] - 1 for row in rows)
    items = sum(int((row.targets != IGNORED).sum()) for row in rows)
    if items == 0 and is_alone:
        raise ConfigError(NO_LABELS)
    return items


def rows_of(batch: Mapping[str, Tensor], chunk_tokens: int) -> list[Row]:
    """Cut a batch into rows.

    Args:
        batch: see `LayerMajor.step`.
        chunk_tokens: C.
    Raises:
        ConfigError: for an unknown argument, one that is missing, or shapes that do not fit.
    """
    for name in batch:
        if name not in INPUTS:
            raise ConfigError(
                f"LayerMajor: {name} is no argument of a step; expected {', '.join(INPUTS)}. "
                f"{did_you_mean(name, INPUTS)}"
            )
    missing = [name for name in ("input_ids", "labels") if name not in batch]
    if missing:
        raise ConfigError(f"LayerMajor: {missing[0]} is missing; expected (B, S) tokens. Add it to the batch.")
    shape = batch["input_ids"].shape
    for name, tensor in batch.items():
        if tensor.ndim != 2 or tensor.shape != shape:
            raise ConfigError(
                f"LayerMajor: {name} has shape={tuple(tensor.shape)}; expected (B, S)={tuple(shape)}. A mask of "
                "four axes cannot be cut: give the two-dimensional one."
            )
    every = [{name: tensor[i : i + 1] for name, tensor in batch.items()} for i in range(shape[0])]
    return [_row(one, chunk_tokens) for one in every]


def _row(row: dict[str, Tensor], chunk_tokens: int) -> Row:
    labels = row["labels"]
    targets = torch.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    length, documents = labels.shape[1], _documents(row)
    bounds = [(start, min(start + chunk_tokens, length)) for start in range(0, length, chunk_tokens)]
    if documents is not None:
        bounds = [(first, behind) for first, behind in bounds if bool((documents[first:behind] >= 0).any())]
    tokens = {name: tensor for name, tensor in row.items() if name != "labels"}
    return Row(tokens, targets, documents, bounds)


def _documents(row: Mapping[str, Tensor]) -> Tensor | None:
    """Return the document of each token on the CPU; None if all are of one."""
    if "position_ids" not in row and "attention_mask" not in row:
        return None
    documents = torch.zeros(row["input_ids"].shape[1], dtype=torch.long)
    if "position_ids" in row:
        position = row["position_ids"][0].cpu()
        documents[1:] = (position[1:] != position[:-1] + 1).cumsum(0)
    if "attention_mask" in row:
        documents[row["attention_mask"][0].cpu() == 0] = -1
    return documents if bool((documents != documents[0]).any()) or bool(documents[0] < 0) else None
