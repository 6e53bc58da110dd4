"""One optimizer step layer by layer: each layer sees all chunks of all rows before the next one begins.

A step of micro-batches runs the whole network for each; this one runs each layer for all of them. Kept are the input of
every layer (as activation checkpointing does, on the host if asked), keys and values of one layer, and the gradient of
one boundary; a layer's weights are updated in its last backward pass, so no gradient and no sum outlives its layer, and
a basis that is due is fitted to the whole sum.
Shapes: S tokens of a row, C of a chunk, D hidden, L layers.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError, did_you_mean
from featherweight.nn.streamed_attention import KeyValueStore
from featherweight.optim.backward.layerwise import LayerwiseHandle
from featherweight.optim.backward.window import Part
from featherweight.training.separate_layers import Arguments, SeparateLayers, Stream

INPUTS = ("input_ids", "labels", "attention_mask", "position_ids")
IGNORED = -100
"""A label that counts for nothing, as everywhere in transformers."""


@dataclass
class _Row:
    """One row of a batch: its chunks, and what is kept of them."""

    tokens: dict[str, Tensor]
    """Arguments of the model, (1, S) each."""
    targets: Tensor
    """(1, S), shifted: what each token is to predict."""
    documents: Tensor
    """(S,) on the CPU; -1 for padding."""
    bounds: list[tuple[int, int]]
    """Chunks that hold anything but padding."""
    arguments: list[Arguments] = field(default_factory=list)
    """Of each layer."""
    boundaries: list[list[Tensor | None]] = field(default_factory=list)
    """Input of each layer, and last what the last one returns, by chunk: (1, C, D)."""
    gradients: list[Tensor] = field(default_factory=list)
    """Of the boundary that the backward pass has reached, by chunk."""

    def stream(self) -> Stream:
        return Stream(KeyValueStore(self.bounds), self.documents)

    def cut(self, tensors: Mapping[str, Tensor], chunk: int) -> dict[str, Tensor]:
        first, behind = self.bounds[chunk]
        return {name: tensor[:, first:behind] for name, tensor in tensors.items()}


class LayerMajor:
    """Optimizer steps layer by layer, for sequences that are too long, or rows that are too many, for one pass.

    Exact: loss and gradients are those of whole sequences. Attention spans the whole row; documents (from restarting
    `position_ids`), padding (`attention_mask`) and windows are kept.

    Args:
        model: causal language model of transformers; MsT, int8 weights, core gradients, LoRA may stand on it.
        handle: of `fw.optim.layerwise`, with ``accumulation_steps=1``: each weight is then updated as soon as its
            gradient is complete, and freed. None leaves gradients in ``.grad`` for an optimizer of your own.
        chunk_tokens: C.
        inputs: where the inputs of the layers wait: "device", or "host".
    Raises:
        ConfigError: for a model whose layers cannot be called alone, or options out of range.
    Cost: 8 forward-equivalents of the layers' FLOPs in units of 2 a token and weight, as activation checkpointing;
        memory of (L + 1) S D layer inputs, of one layer's keys, values and their float32 sums, and of one chunk in one
        layer.
    Source: the order is ours; chunks over a prefix follow OOMB, arXiv 2602.02108.

    Example:
        >>> import featherweight as fw
        >>> from featherweight.models import load_model
        >>> model = load_model("tiny")
        >>> optimizer = fw.optim.AdamW(model.parameters(), lr=1e-3)
        >>> tokens = torch.arange(96)[None] % 250
        >>> with fw.optim.layerwise(model, optimizer) as handle:
        ...     stream = fw.training.LayerMajor(model, handle, chunk_tokens=32)
        ...     losses = [float(stream.step({"input_ids": tokens, "labels": tokens})) for _ in range(3)]
        >>> losses[2] < losses[0], handle.steps
        (True, 3)
    """

    def __init__(
        self,
        model: nn.Module,
        handle: LayerwiseHandle | None = None,
        *,
        chunk_tokens: int = 8192,
        inputs: Literal["device", "host"] = "device",
    ) -> None:
        if not isinstance(chunk_tokens, int) or isinstance(chunk_tokens, bool) or chunk_tokens < 1:
            raise ConfigError(
                f"LayerMajor: chunk_tokens={chunk_tokens!r} is not allowed; expected a whole number >= 1. Take 8192 if "
                "in doubt."
            )
        if inputs not in ("device", "host"):
            raise ConfigError(f"LayerMajor: inputs={inputs!r} is unknown; expected device or host. Change inputs.")
        if handle is not None and (handle.accumulation_steps != 1 or handle.world_size != 1):
            raise ConfigError(
                f"LayerMajor: handle has accumulation_steps={handle.accumulation_steps} and "
                f"world_size={handle.world_size}; expected 1 and 1, as one call of step() is one optimizer step of all "
                "its rows. Give step() the rows of all micro-batches, in one process."
            )
        self.separate = SeparateLayers(model)
        self.handle, self.chunk_tokens, self.inputs = handle, chunk_tokens, inputs
        self.training_model = model

    def step(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Run one optimizer step: forward, backward and, with a handle, the updates.

        Args:
            batch: `input_ids` and `labels` (B, S) as for transformers, not shifted; `attention_mask` (B, S) and
                `position_ids` (B, S) if there are some. Rows of any number and length, one step for all of them.
        Returns:
            Mean loss over all labels of the batch, detached.
        Raises:
            ConfigError: for other arguments, shapes that do not fit, a batch without labels, attention that is not
                known; before anything is updated.
        """
        rows = self._rows(batch)
        items = sum(int((row.targets != IGNORED).sum()) for row in rows)
        if items == 0:
            raise ConfigError(
                "LayerMajor: labels hold nothing but -100; expected a token to predict in each step. Leave this batch "
                "out."
            )
        noise = _Noise(self.separate.model)
        told = nullcontext(_ignore) if self.handle is None else self.handle.parts()
        with self.separate.streaming(), told as tell:
            self._forward(rows, noise)
            loss = self._head(rows, items, tell)
            for index in reversed(range(len(self.separate.layers))):
                self._layer_backward(index, rows, noise, tell)
            self._embedding_backward(rows, noise, tell)
        return loss

    # ---- rows

    def _rows(self, batch: Mapping[str, Tensor]) -> list[_Row]:
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
        return [self._row({name: tensor[i : i + 1] for name, tensor in batch.items()}) for i in range(shape[0])]

    def _row(self, row: dict[str, Tensor]) -> _Row:
        labels = row["labels"]
        targets = torch.full_like(labels, IGNORED)
        targets[:, :-1] = labels[:, 1:]
        length = labels.shape[1]
        documents = torch.zeros(length, dtype=torch.long)
        if "position_ids" in row:
            position = row["position_ids"][0].cpu()
            documents[1:] = (position[1:] != position[:-1] + 1).cumsum(0)
        if "attention_mask" in row:
            documents[row["attention_mask"][0].cpu() == 0] = -1
        starts = range(0, length, self.chunk_tokens)
        bounds = [(start, min(start + self.chunk_tokens, length)) for start in starts]
        live = [(first, behind) for first, behind in bounds if bool((documents[first:behind] >= 0).any())]
        tokens = {name: tensor for name, tensor in row.items() if name != "labels"}
        return _Row(tokens, targets, documents, live)

    # ---- forward

    @torch.no_grad()
    def _forward(self, rows: list[_Row], noise: "_Noise") -> None:
        for number, row in enumerate(rows):
            noise.note(("embedding", number))
            hidden, row.arguments = self.separate.inputs(row.tokens)
            row.boundaries.append([self._kept(hidden[:, first:behind].clone()) for first, behind in row.bounds])
        for index in range(len(self.separate.layers)):
            for number, row in enumerate(rows):
                found: list[Tensor | None] = []
                stream = row.stream()
                for chunk, kept in enumerate(row.boundaries[index]):
                    stream.chunk = chunk
                    noise.note((index, number, chunk))
                    output = self.separate.run(index, self._taken(kept), row.arguments[index], stream)
                    found.append(self._kept(output))
                row.boundaries.append(found)

    def _kept(self, hidden: Tensor) -> Tensor:
        return hidden.to("cpu") if self.inputs == "host" else hidden

    def _taken(self, kept: Tensor | None) -> Tensor:
        assert kept is not None
        return kept.to(next(self.separate.model.parameters()).device)

    # ---- backward

    def _head(self, rows: list[_Row], items: int, tell: Callable[[Part], None]) -> Tensor:
        parts = [(row, chunk) for row in rows for chunk in range(len(row.bounds))]
        labelled = [
            (row, chunk) for row, chunk in parts if bool((row.targets[:, slice(*row.bounds[chunk])] != IGNORED).any())
        ]
        total = torch.zeros((), dtype=torch.float32, device=rows[0].targets.device)
        tied, done = self.separate.tied(), 0
        for row, chunk in parts:
            hidden = self._taken(row.boundaries[-1][chunk]).detach().requires_grad_()
            row.boundaries[-1][chunk] = None
            targets = row.targets[:, slice(*row.bounds[chunk])]
            if not bool((targets != IGNORED).any()):
                # Gradients of keys and values still arrive there, from later chunks.
                row.gradients.append(self._kept(torch.zeros_like(hidden)))
                continue
            tell(Part(is_first=done == 0, is_last=done + 1 == len(labelled), unfinished=tied))
            done += 1
            with torch.enable_grad():
                loss = self.separate.loss(hidden, row.cut(row.tokens, chunk), targets, items)
                loss.backward()
            total += loss.detach().float()
            gradient = hidden.grad if hidden.grad is not None else torch.zeros_like(hidden)
            row.gradients.append(self._kept(gradient))
        return total

    def _layer_backward(self, index: int, rows: list[_Row], noise: "_Noise", tell: Callable[[Part], None]) -> None:
        count, done = sum(len(row.bounds) for row in rows), 0
        for number, row in enumerate(rows):
            stream, arguments = row.stream(), row.arguments[index]
            with torch.no_grad():
                for chunk, kept in enumerate(row.boundaries[index]):
                    stream.chunk = chunk
                    self.separate.fill(index, self._taken(kept), arguments, stream)
            for chunk in reversed(range(len(row.bounds))):
                stream.chunk = chunk
                hidden = self._taken(row.boundaries[index][chunk]).detach().requires_grad_()
                row.boundaries[index][chunk] = None
                tell(Part(is_first=done == 0, is_last=done + 1 == count))
                done += 1
                with torch.enable_grad(), noise.again((index, number, chunk)):
                    output = self.separate.run(index, hidden, arguments, stream)
                    output.backward(self._taken(row.gradients[chunk]))
                assert hidden.grad is not None
                row.gradients[chunk] = self._kept(hidden.grad)

    def _embedding_backward(self, rows: list[_Row], noise: "_Noise", tell: Callable[[Part], None]) -> None:
        tied = self.separate.tied()
        for number, row in enumerate(rows):
            with torch.enable_grad(), noise.again(("embedding", number)):
                hidden, _ = self.separate.inputs(row.tokens)
                if not hidden.requires_grad:
                    return
                gradient = torch.zeros_like(hidden)
                for (first, behind), part in zip(row.bounds, row.gradients, strict=True):
                    gradient[:, first:behind] = self._taken(part)
                tell(Part(is_first=number == 0, is_last=number + 1 == len(rows), begun=tied))
                hidden.backward(gradient)


class _Noise:
    """States of the random numbers, so that a repeated computation draws the dropout of the first one."""

    def __init__(self, model: Any) -> None:
        options: dict[str, Any] = model.config.to_dict()
        drops = any("drop" in name and isinstance(p, float) and p > 0 for name, p in options.items())
        drops = drops or any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
        self._is_needed = model.training and drops
        self._device = next(model.parameters()).device
        self._states: dict[Any, tuple[Tensor, Tensor | None]] = {}

    def note(self, key: Any) -> None:
        """Note the state before a computation."""
        if self._is_needed:
            cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
            self._states[key] = (torch.get_rng_state(), cuda)

    @contextmanager
    def again(self, key: Any) -> Iterator[None]:
        """Draw what was drawn from that state on, and leave the generators as they are."""
        if not self._is_needed:
            yield
            return
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            state, cuda = self._states.pop(key)
            torch.set_rng_state(state)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, self._device)
            yield


def _ignore(part: Part) -> None:
    """Without a handle nobody asks what comes last."""
