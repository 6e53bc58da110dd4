"""One optimizer step chunk by chunk: keys and values of all layers stay, layer inputs of one chunk alone.

Forward without a graph, all chunks but the last leave their keys and values in every layer. Then the chunks go from
last to first, each through the whole network, forward and backward; what is due to the keys and values of earlier
chunks is added up until these have their turn. Kept for a token are keys, values and their float32 sums in all layers
instead of the inputs of all layers (`layer_major.py`): less where a model has few heads of keys.
Shapes: S tokens of a row, C of a chunk, D hidden, K heads of keys of h numbers, L layers.
Source: OOMB, arXiv 2602.02108, with exact attention and without its pages.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from featherweight.errors import ConfigError
from featherweight.methods.host_weights import streams_weights
from featherweight.optim.backward.layerwise import LayerwiseHandle
from featherweight.optim.backward.window import Part
from featherweight.training.layer_rows import Row, label_count, rows_of
from featherweight.training.noise import Noise
from featherweight.training.separate_layers import SeparateLayers, Stream
from featherweight.training.step_progress import StepProgress, require_chunk_tokens
from featherweight.unwrap import is_distributed


class ChunkMajor:
    """Optimizer steps chunk by chunk, each chunk through the whole network, for rows that are too long for one pass.

    Exact, as `LayerMajor` is, of which it takes the same models and batches. It keeps less for a token where
    ``6 K h < D`` (16-bit weights; 4 instead of 6 in float32), and costs one forward pass more. Each weight moves in the
    last backward pass of the step, so the sums of all of them live until then: cores where a matrix has a subspace.

    Args:
        model: as for `LayerMajor`; one process, weights on the device.
        handle: of `fw.optim.layerwise`. Sums are kept from chunk to chunk whatever its ``accumulation_steps``; with 2
            or more its formula of bytes counts them. None leaves gradients in ``.grad`` for an optimizer of your own.
        chunk_tokens: C.
        progress: told after each chunk how far a step has come.
    Raises:
        ConfigError: for a model whose layers cannot be called alone, weights that are spread over processes or wait on
            the host, several processes, or options out of range.
    Cost: 10 forward-equivalents of the layers' FLOPs in units of 2 a token and weight (8 by layers); memory of
        S L keys, values and their float32 sums, of L C D layer inputs, and of one chunk in one layer.

    Example:
        >>> import featherweight as fw
        >>> from featherweight.models import load_model
        >>> model = load_model("tiny")
        >>> optimizer = fw.optim.AdamW(model.parameters(), lr=1e-3)
        >>> tokens = torch.arange(96)[None] % 250
        >>> with fw.optim.layerwise(model, optimizer) as handle:
        ...     stream = fw.training.ChunkMajor(model, handle, chunk_tokens=32)
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
        progress: Callable[[StepProgress], None] | None = None,
    ) -> None:
        require_chunk_tokens("ChunkMajor", chunk_tokens)
        self.separate = SeparateLayers(model)
        several = handle is not None and handle.world_size > 1
        refused = {
            "is trained by several processes": several or any(is_distributed(one) for one in model.parameters()),
            "has fw.HostWeights": any(streams_weights(layer) for layer in self.separate.layers),
        }
        for what, holds in refused.items():
            if holds:
                raise ConfigError(
                    f"ChunkMajor: model={type(model).__name__} {what}; expected one process with all weights on its "
                    "device, as every chunk reads all of them. Use fw.training.LayerMajor."
                )
        self.handle, self.chunk_tokens, self.progress = handle, chunk_tokens, progress

    def step(
        self, batch: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]], judge: Callable[[Tensor], Any] | None = None
    ) -> Tensor:
        """Run one optimizer step; arguments, result and errors are those of `LayerMajor.step`."""
        batches = [batch] if isinstance(batch, Mapping) else list(batch)
        rows = [row for one in batches for row in rows_of(one, self.chunk_tokens)]
        items = label_count(rows)
        told = nullcontext(_ignore) if self.handle is None else self.handle.parts()
        with ExitStack() as stack:
            stack.enter_context(self.separate.streaming())
            tell = stack.enter_context(told)
            return _Step(self, rows, items, tell, judge).run()


class _Step:
    """One step: the rows, and how far they have come."""

    def __init__(
        self,
        owner: ChunkMajor,
        rows: list[Row],
        items: int,
        tell: Callable[[Part], None],
        judge: Callable[[Tensor], Any] | None,
    ) -> None:
        self.separate, self.progress = owner.separate, owner.progress
        self.rows, self.items, self.tell, self.judge = rows, items, tell, judge
        device = next(self.separate.model.parameters()).device
        self.noise, self.tied = Noise(self.separate.model, device), self.separate.tied()
        self.total = torch.zeros((), dtype=torch.float32, device=device)
        self.chunks, self.passed = sum(len(row.bounds) for row in rows), 0
        self.work, self.done = sum(5 * len(row.bounds) - 1 for row in rows), 0

    def run(self) -> Tensor:
        """Let one row after the other go forward and backward; return the mean loss."""
        for number, row in enumerate(self.rows):
            streams = [row.stream() for _ in self.separate.layers]
            with ExitStack() as stack:
                for stream in streams:
                    stack.enter_context(stream.until_done())
                self._row(number, row, streams)
        return self.total

    def _row(self, number: int, row: Row, streams: Sequence[Stream]) -> None:
        with torch.enable_grad():
            hidden, row.arguments = self.separate.inputs(row.tokens)
        states = hidden.detach()
        self._fill(number, row, states, streams)
        gradient = torch.zeros_like(states)
        for chunk in reversed(range(len(row.bounds))):
            self._chunk(number, chunk, states, gradient, streams)
        if hidden.requires_grad:
            is_last = number + 1 == len(self.rows)
            self.tell(Part(is_first=number == 0, is_last=is_last, begun=self.tied, is_mixed=True))
            hidden.backward(gradient)

    @torch.no_grad()
    def _fill(self, number: int, row: Row, states: Tensor, streams: Sequence[Stream]) -> None:
        """Let all chunks but the last leave their keys and values in every layer."""
        last = len(streams) - 1
        for chunk, (first, behind) in enumerate(row.bounds[:-1]):
            self.noise.note((number, chunk))
            hidden = states[:, first:behind]
            for index, stream in enumerate(streams):
                stream.chunk = chunk
                if index == last:
                    self.separate.fill(index, hidden, row.arguments[index], stream)
                else:
                    hidden = self.separate.run(index, hidden, row.arguments[index], stream)
            self._advance(1, "forward", chunk, len(row.bounds))
        self.noise.note((number, len(row.bounds) - 1))

    def _chunk(self, number: int, chunk: int, states: Tensor, gradient: Tensor, streams: Sequence[Stream]) -> None:
        """Go forward and backward with one chunk, whose followers have gone already."""
        row = self.rows[number]
        own = slice(*row.bounds[chunk])
        start = states[:, own].clone().requires_grad_()
        hidden = start
        with torch.enable_grad(), self.noise.again((number, chunk)):
            for index, stream in enumerate(streams):
                stream.chunk = chunk
                hidden = checkpoint(
                    self.separate.run,
                    index,
                    hidden,
                    row.arguments[index],
                    stream,
                    use_reentrant=False,
                    preserve_rng_state=self.noise.is_needed,
                )
            if row.has_labels(chunk):
                end = self.separate.loss(hidden, row.cut(row.tokens, chunk), row.targets[:, own], self.items)
                self.total += end.detach().float()
            else:  # gradients of its keys and values still arrive, from later chunks
                end = hidden
            self.passed += 1
            if self.passed == self.chunks and self.judge is not None:
                self.judge(self.total)  # before a weight moves
            is_first, is_last = self.passed == 1, self.passed == self.chunks
            self.tell(Part(is_first=is_first, is_last=is_last, unfinished=self.tied, is_mixed=True))
            end.backward(torch.zeros_like(end) if end is hidden else None)
        assert start.grad is not None
        gradient[:, own] = start.grad
        self._advance(4, "backward", chunk, len(row.bounds))

    def _advance(self, amount: int, name: str, chunk: int, chunks: int) -> None:
        self.done += amount
        if self.progress is not None:
            self.progress(StepProgress(self.done / self.work, f"{name}, chunk {chunk + 1} of {chunks}"))


def _ignore(part: Part) -> None:
    """Without a handle nobody asks what comes last."""


__all__ = ["ChunkMajor"]
