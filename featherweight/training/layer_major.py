"""One optimizer step layer by layer: each layer sees all chunks of all rows before the next one begins.

A step of micro-batches runs the whole network for each; this one runs each layer for all of them. Kept are the input of
every layer (as activation checkpointing does, on the host if asked), keys and values of one layer, and the gradient of
one boundary; a layer's weights are updated in its last backward pass, so no gradient and no sum outlives its layer, and
a basis that is due is fitted to the whole sum. Each layer's weights are needed twice a step, whatever the number of
rows: they may wait on the host, too (`featherweight.nn.weight_slots`).
Shapes: S tokens of a row, C of a chunk, D hidden, L layers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from featherweight.distributed.world import common
from featherweight.errors import ConfigError
from featherweight.methods.host_weights import streams_weights
from featherweight.nn.offload import require_host_bytes, to_device, to_host
from featherweight.nn.prefix_store import AttentionResults
from featherweight.optim.backward.layerwise import LayerwiseHandle
from featherweight.optim.backward.window import Part
from featherweight.simulated import simulated_device
from featherweight.training.layer_rows import IGNORED, NO_LABELS, Row, label_count, rows_of
from featherweight.training.layer_states import LayerStates
from featherweight.training.layer_weights import LayerWeights
from featherweight.training.noise import Noise
from featherweight.training.separate_layers import SeparateLayers, Stream
from featherweight.training.step_progress import StepProgress, require_chunk_tokens
from featherweight.unwrap import is_distributed

Place = Literal["device", "host"]


class LayerMajor:
    """Optimizer steps layer by layer, for sequences that are too long, or rows that are too many, for one pass.

    Exact: loss and gradients are those of whole sequences. Attention spans the whole row; documents (from restarting
    `position_ids`), padding (`attention_mask`) and windows are kept.

    Args:
        model: causal language model of transformers; MsT, int8 weights, core gradients, LoRA may stand on it.
        handle: of `fw.optim.layerwise`, with ``accumulation_steps=1``: each weight is then updated as soon as its
            gradient is complete, and freed; after ``fw.distributed.shard(model, "ddp")`` as soon as the processes have
            averaged what a layer has left of it. None leaves gradients in ``.grad`` for an optimizer of your own.
        chunk_tokens: C.
        inputs: where the inputs of the layers wait: "device", or "host".
        weights: where the weights of the layers wait: "device", or "host", from where each comes into one of few slots
            for its turn and goes back when it has changed; needs a handle. Between steps they are ordinary tensors.
            Embedding and head wait there, too, while others have their turn.
        states: where the optimizer states of layers, embedding and head wait: "device", or "host", from where they come
            for the updates of their weights; needs a handle.
        slots: layers that are on the device at a time.
        attention: "repeat" makes it again in the backward pass; "keep" keeps what it has made, where the inputs wait.
        progress: told now and then how far a step has come; after each chunk of each layer.
    Raises:
        ConfigError: for a model whose layers cannot be called alone, or options out of range.
        DeviceError: if the host cannot hold weights or states, or refuses to pin memory.
    Cost: 8 forward-equivalents of the layers' FLOPs in units of 2 a token and weight, as activation checkpointing;
        memory of (L + 1) S D layer inputs, of one layer's keys, values and their float32 sums, and of one chunk in one
        layer. Weights on the host are copied in 2 - slots / L times and out once a step, states in and out once.
    Source: the order is ours; chunks over a prefix follow OOMB, arXiv 2602.02108; weights from the host follow
        MegaTrain, arXiv 2604.05091, whose update runs on the host.

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
        inputs: Place = "device",
        weights: Place = "device",
        states: Place = "device",
        slots: int = 2,
        attention: Literal["repeat", "keep"] = "repeat",
        progress: Callable[[StepProgress], None] | None = None,
    ) -> None:
        require_chunk_tokens("LayerMajor", chunk_tokens)
        for name, value in (("inputs", inputs), ("weights", weights), ("states", states)):
            if value not in ("device", "host"):
                raise ConfigError(f"LayerMajor: {name}={value!r} is unknown; expected device or host. Change {name}.")
        if attention not in ("repeat", "keep"):
            raise ConfigError(f"LayerMajor: attention={attention!r} is unknown; expected repeat or keep. Change it.")
        if handle is not None and handle.accumulation_steps != 1:
            raise ConfigError(
                f"LayerMajor: handle has accumulation_steps={handle.accumulation_steps}; expected 1, as one call of "
                "step() is one optimizer step of all its rows. Give step() the rows of all micro-batches."
            )
        if any(is_distributed(one) for one in model.parameters()):
            raise ConfigError(
                f"LayerMajor: model={type(model).__name__} has its weights spread over processes; expected whole ones, "
                'as layers are called apart from their gathering. Call fw.distributed.shard(model, "ddp") instead.'
            )
        self.separate = SeparateLayers(model)
        if any(streams_weights(layer) for layer in self.separate.layers):
            raise ConfigError(
                f"LayerMajor: model={type(model).__name__} has fw.HostWeights, which brings each layer for each call; "
                "expected weights that one step at a time moves. Call fw.remove(model, fw.HostWeights()), and give "
                "weights='host' here."
            )
        self.handle, self.chunk_tokens, self.inputs, self.progress = handle, chunk_tokens, inputs, progress
        self.keeps_attention = attention == "keep"
        self.training_model = model
        self.device = next(self.separate.model.parameters()).device
        self.layer_weights: LayerWeights | None = None
        """The weights that wait on the host, and what was copied; None with ``weights="device"``."""
        if weights == "host":
            self.layer_weights = LayerWeights(self.separate, handle, slots)
        self.layer_states = LayerStates(self.separate, handle, self.device, on_host=states == "host")
        """The optimizer states that wait on the host, and what was copied."""

    def step(
        self, batch: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]], judge: Callable[[Tensor], Any] | None = None
    ) -> Tensor:
        """Run one optimizer step: forward, backward and, with a handle, the updates.

        Args:
            batch: `input_ids` and `labels` (B, S) as for transformers, not shifted; `attention_mask` (B, S) and
                `position_ids` (B, S) if there are some; or several such batches. Rows of any number and length, one
                step for all of them.
            judge: called with the loss before any weight moves; what it raises leaves all weights as they were.
        Returns:
            Mean loss over all labels of the batch, in all processes, detached.
        Raises:
            ConfigError: for other arguments, shapes that do not fit, a batch without labels, attention that is not
                known; before anything is updated.
            DeviceError: if layer inputs on the host need more memory than it has; before anything is computed.
        """
        batches = [batch] if isinstance(batch, Mapping) else list(batch)
        rows = [row for one in batches for row in rows_of(one, self.chunk_tokens)]
        items = self._mean_over_processes(label_count(rows, is_alone=self._is_alone))
        if not items:  # in no process
            raise common(ConfigError(NO_LABELS))
        if self.inputs == "host":
            self._require_host_memory(rows)
        told = nullcontext(_ignore) if self.handle is None else self.handle.parts()
        with ExitStack() as stack:
            stack.enter_context(self.separate.streaming())
            if self.layer_weights is not None:
                stack.enter_context(self.layer_weights.streaming())
            stack.callback(self.layer_states.settle)
            tell = stack.enter_context(told)
            return _Step(self, rows, items, tell, judge).run()

    @property
    def _is_alone(self) -> bool:
        return self.handle is None or self.handle.world_size == 1

    def _mean_over_processes(self, count: int) -> int | float:
        """Return the mean of a count: the mean over processes of what is divided by it is the mean over all."""
        if self.handle is None or self._is_alone:
            return count
        found = torch.tensor([float(count)], dtype=torch.float64, device=self.device)
        self.handle.reducer.mean_([found])
        return float(found)

    @property
    def boundary_bytes_per_token(self) -> int:
        """Bytes of one token between two layers."""
        parameter = next(p for p in self.separate.model.parameters() if p.is_floating_point())
        width: int = self.separate.model.config.get_text_config().hidden_size
        return width * parameter.element_size()

    @property
    def attention_bytes_per_token(self) -> int:
        """Bytes that are kept of the attention of one token and layer."""
        if not self.keeps_attention:
            return 0
        config = self.separate.model.config.get_text_config()
        heads = config.num_attention_heads
        size = getattr(config, "v_head_dim", None) or getattr(config, "head_dim", None) or config.hidden_size // heads
        number = self.boundary_bytes_per_token // config.hidden_size
        return heads * (size * number + max(4, number))  # log-sum-exps are in float32, or in float64

    def _require_host_memory(self, rows: Sequence[Row]) -> None:
        if simulated_device() is not None:
            return
        layers = len(self.separate.layers)
        by_token = (layers + 1) * self.boundary_bytes_per_token + layers * self.attention_bytes_per_token
        tokens = sum(behind - first for row in rows for first, behind in row.bounds)
        way_out = f"Each token takes {by_token / 2**20:.2f} MiB: give fewer or shorter rows, or keep inputs='device'."
        require_host_bytes("LayerMajor", f"layer inputs of {tokens} tokens", by_token * tokens, way_out)


class _Step:
    """One step: the rows, and how far they have come."""

    def __init__(
        self,
        owner: LayerMajor,
        rows: list[Row],
        items: int | float,
        tell: Callable[[Part], None],
        judge: Callable[[Tensor], Any] | None,
    ) -> None:
        self.separate, self.weights, self.states = owner.separate, owner.layer_weights, owner.layer_states
        self.device, self.handle = owner.device, owner.handle
        self.on_host, self.progress = owner.inputs == "host", owner.progress
        self.keeps_attention = owner.keeps_attention
        self.rows, self.items, self.tell, self.judge = rows, items, tell, judge
        self.noise = Noise(self.separate.model, self.device)
        self.tied = self.separate.tied()
        chunks = sum(len(row.bounds) for row in rows)
        self.work, self.done = chunks * (4 * len(self.separate.layers) + 1), 0

    def run(self) -> Tensor:
        """Go forward and backward; return the mean loss."""
        self._forward()
        with self.weights.vocabulary.bound_head() if self.weights is not None else nullcontext():
            with self.states.bound(self.states.head):
                loss = self._head()
                self._exchange()
        for index in reversed(range(len(self.separate.layers))):
            with self._bound(index, index - 1, changes=True), self.states.bound(index):
                self._layer_backward(index)
                self._exchange()
        with self.states.bound(self.states.embedding):
            self._embedding_backward()
            self._exchange()
        return loss

    def _exchange(self) -> None:
        """With other processes: average what a layer has left, and update it while its weights are here."""
        if self.handle is not None:
            self.handle.exchange()

    @contextmanager
    def _bound(self, index: int, following: int, changes: bool = False) -> Iterator[None]:
        """Have the weights of a layer at hand, and those of the next one on their way."""
        if self.weights is None:
            yield
            return
        with self.weights.bound(index, following, changes):
            yield

    def _advance(self, amount: int, *words: Any) -> None:
        self.done += amount
        if self.progress is not None:
            name, layer, chunk, chunks = words
            where = f", layer {layer + 1} of {len(self.separate.layers)}" if layer is not None else ""
            self.progress(StepProgress(self.done / self.work, f"{name}{where}, chunk {chunk + 1} of {chunks}"))

    def _kept(self, hidden: Tensor) -> Tensor:
        return to_host(hidden) if self.on_host else hidden

    def _taken(self, kept: Tensor | None) -> Tensor:
        assert kept is not None
        return to_device(kept, self.device) if self.on_host else kept

    # ---- forward

    @torch.no_grad()
    def _forward(self) -> None:
        for number, row in enumerate(self.rows):
            self.noise.note(("embedding", number))
            hidden, row.arguments = self.separate.inputs(row.tokens)
            row.boundaries.append([self._kept(hidden[:, first:behind].clone()) for first, behind in row.bounds])
        if self.weights is not None:
            self.weights.vocabulary.between()
        for index in range(len(self.separate.layers)):
            with self._bound(index, index + 1):
                for number, row in enumerate(self.rows):
                    row.boundaries.append(self._layer_forward(index, number, row))

    def _layer_forward(self, index: int, number: int, row: Row) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        if self.keeps_attention:
            row.attention[index] = AttentionResults(self.on_host)
        stream = row.stream(index)
        for chunk, kept in enumerate(row.boundaries[index]):
            stream.chunk = chunk
            self.noise.note((index, number, chunk))
            output = self.separate.run(index, self._taken(kept), row.arguments[index], stream)
            found.append(self._kept(output))
            self._advance(1, "forward", index, chunk, len(row.bounds))
        return found

    # ---- backward

    def _head(self) -> Tensor:
        parts = [(row, chunk) for row in self.rows for chunk in range(len(row.bounds))]
        labelled = {number for number, (row, chunk) in enumerate(parts) if row.has_labels(chunk)}
        labelled = labelled or {len(parts) - 1}  # other processes have labels: the head takes part with a loss of 0
        last = max(labelled)
        total = torch.zeros((), dtype=torch.float32, device=self.device)
        is_first = True
        for number, (row, chunk) in enumerate(parts):
            hidden = self._taken(row.boundaries[-1][chunk]).detach().requires_grad_()
            row.boundaries[-1][chunk] = None
            if number not in labelled:
                # Gradients of keys and values still arrive there, from later chunks.
                row.gradients.append(self._kept(torch.zeros_like(hidden)))
                continue
            targets = row.targets[:, slice(*row.bounds[chunk])]
            with torch.enable_grad():
                own = row.cut(row.tokens, chunk)
                loss = self.separate.loss(hidden, own, targets, self.items, embeds=self.weights is None)
                total += loss.detach().float()
                if number == last:
                    self._share(total)
                self.tell(Part(is_first=is_first, is_last=number == last, unfinished=self.tied))
                loss.backward()
            is_first = False
            gradient = hidden.grad if hidden.grad is not None else torch.zeros_like(hidden)
            row.gradients.append(self._kept(gradient))
            self._advance(1, "head", None, chunk, len(row.bounds))
        return total

    def _share(self, total: Tensor) -> None:
        """Let all processes have the loss, and somebody judge it, before a weight moves."""
        if self.handle is not None:
            self.handle.reducer.mean_([total])
        if self.judge is not None:
            self.judge(total)

    def _layer_backward(self, index: int) -> None:
        count, done = sum(len(row.bounds) for row in self.rows), 0
        for number, row in enumerate(self.rows):
            stream = row.stream(index)
            with stream.until_done():
                done = self._row_backward(index, number, stream, done, count)

    def _row_backward(self, index: int, number: int, stream: Stream, done: int, count: int) -> int:
        """Let the chunks of a row go backward through a layer; return how many of all have gone."""
        row, arguments = self.rows[number], self.rows[number].arguments[index]
        with torch.no_grad():
            for chunk, kept in enumerate(row.boundaries[index][:-1]):  # the last one's are made in its own turn
                stream.chunk = chunk
                self.separate.fill(index, self._taken(kept), arguments, stream)
        for chunk in reversed(range(len(row.bounds))):
            stream.chunk = chunk
            hidden = self._taken(row.boundaries[index][chunk]).detach().requires_grad_()
            row.boundaries[index][chunk] = None
            self.tell(Part(is_first=done == 0, is_last=done + 1 == count))
            done += 1
            with torch.enable_grad(), self.noise.again((index, number, chunk)):
                output = self.separate.run(index, hidden, arguments, stream)
                output.backward(self._taken(row.gradients[chunk]))
            if stream.results is not None:
                stream.results.drop(chunk)
            assert hidden.grad is not None
            row.gradients[chunk] = self._kept(hidden.grad)
            self._advance(3, "backward", index, chunk, len(row.bounds))
        return done

    def _embedding_backward(self) -> None:
        if self.weights is not None:
            if not self.weights.vocabulary.trains_outside:
                return
            self.weights.vocabulary.bind_embedding()
        for number, row in enumerate(self.rows):
            with torch.enable_grad(), self.noise.again(("embedding", number)):
                hidden, _ = self.separate.inputs(row.tokens)
                if not hidden.requires_grad:
                    return
                gradient = torch.zeros_like(hidden)
                for (first, behind), part in zip(row.bounds, row.gradients, strict=True):
                    gradient[:, first:behind] = self._taken(part)
                self.tell(Part(is_first=number == 0, is_last=number + 1 == len(self.rows), begun=self.tied))
                hidden.backward(gradient)


def _ignore(part: Part) -> None:
    """Without a handle nobody asks what comes last."""


__all__ = ["IGNORED", "LayerMajor", "StepProgress"]
