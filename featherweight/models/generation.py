"""Generation: one own loop over a model and its cache, for everybody who needs more of it than a finished text.

`prefill` reads prompts, `extend` reads further tokens that are given (a forced prefix), `stream` chooses tokens one by
one, `branch` tries something and forgets it. Between them stands a `Decoding`: the rows, their cache, and the logits
of the next token, so that nothing is read twice. Greedy tokens are those of transformers' `generate`.
Shapes: B rows of a batch, L tokens so far (left padding included), P tokens read at once, V vocabulary, D hidden.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError, ShapeError
from featherweight.models.cache import (
    branch_cache,
    copy_cache,
    crop_cache,
    new_cache,
)
from featherweight.models.sampling import GREEDY, Generators, Sampling, choose
from featherweight.unwrap import unwrap_model

if TYPE_CHECKING:
    from transformers import Cache

Processor = Callable[[Tensor, Tensor], Tensor]
"""(token ids (B, L), logits (B, V)) -> logits (B, V), as the logits processors of transformers."""
Criterion = Callable[[Tensor], Tensor]
"""(token ids with the newest (B, L)) -> (B,) bool: which rows end here."""


@dataclass
class Decoding:
    """A batch of rows between two tokens."""

    model: nn.Module
    """The model that reads them."""
    token_ids: Tensor
    """(B, L) int64: all that was read, with padding on the left."""
    attention_mask: Tensor | None
    """(B, L) int64, 0 on padding; None if there is none."""
    cache: "Cache"
    """What the model keeps of these tokens."""
    logits: Tensor
    """(B, V): of the token that comes next."""
    hidden_states: tuple[Tensor, ...] | None = None
    """(B, D) for the embedding and each layer, at the last token; None unless asked for."""
    read_states: tuple[Tensor, ...] | None = None
    """(B, P, D) for the embedding and each layer, at all tokens of the last `extend`; None unless asked for."""

    @property
    def length(self) -> int:
        """Tokens of a row so far, padding included."""
        return self.token_ids.shape[1]

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self.token_ids)

    def tokens(self) -> list[list[int]]:
        """Return the tokens of each row, without padding."""
        if self.attention_mask is None:
            return [row.tolist() for row in self.token_ids]
        return [row[mask.bool()].tolist() for row, mask in zip(self.token_ids, self.attention_mask, strict=True)]


@torch.no_grad()
def prefill(
    model: nn.Module,
    token_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    chunk_size: int | None = None,
    output_hidden_states: bool = False,
) -> Decoding:
    """Read prompts.

    Args:
        model: a causal language model of transformers, also inside PEFT, in evaluation mode.
        token_ids: (B, L) int64, L >= 1; shorter prompts have padding on the left.
        attention_mask: (B, L), 0 on padding; None if there is none.
        chunk_size: read so many tokens at a time, which bounds the memory of activations; None reads all at once.
        output_hidden_states: keep the hidden states of the last token.

    Returns:
        Where the prompts end.

    Raises:
        ConfigError: if the model is in training mode, whose dropout and checkpointing fit no cache, or adds virtual
            tokens, see `adds_virtual_tokens`.
        ShapeError: if a prompt is empty, or padding stands elsewhere than on the left.

    Example:
        >>> from featherweight.models import load_model
        >>> decoding = prefill(load_model("tiny").eval(), torch.tensor([[72, 105]]))
        >>> decoding.length, tuple(decoding.logits.shape)
        (2, (1, 257))
    """
    if model.training:
        raise ConfigError(
            f"prefill: model={type(model).__name__} is in training mode; expected evaluation mode. Call model.eval()."
        )
    _require_no_virtual_tokens(model)
    device = next(model.parameters()).device
    token_ids = token_ids.to(device)
    mask = _checked_mask(token_ids, attention_mask)
    empty = token_ids.new_empty((len(token_ids), 0))
    decoding = Decoding(model, empty, None if mask is None else empty, new_cache(model), torch.empty(0, device=device))
    size = chunk_size or token_ids.shape[1]
    for start in range(0, token_ids.shape[1], size):
        part = slice(start, start + size)
        _read(decoding, token_ids[:, part], None if mask is None else mask[:, part], 1, output_hidden_states)
    decoding.read_states = None  # those of a whole prompt would keep its activations alive
    return decoding


@torch.no_grad()
def extend(
    decoding: Decoding,
    token_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    last_logits_only: bool = False,
    output_hidden_states: bool = False,
    context: int | None = None,
) -> Tensor:
    """Read further tokens in one forward pass, such as a forced prefix; the decoding goes on behind them.

    Args:
        decoding: changed in place.
        token_ids: (P,) for all rows alike, or (B, P).
        attention_mask: (B, P), 0 on padding, which a row has in front of its new tokens where it gets fewer of them
            than others; None if there is none. Sliding windows would count it as tokens; see `can_pad`.
        last_logits_only: make no logits after the other tokens, which saves most of a large vocabulary.
        output_hidden_states: keep the hidden states of the last token, and of all of them as `read_states`.
        context: rows that are at its end already, and whose tokens nobody looks at, stay at its last place.

    Returns:
        (B, P, V): the logits after each of these tokens, or (B, 1, V); those after the last are also
        `decoding.logits`.

    Raises:
        ShapeError: if there are no tokens, not as many rows, or a row without a token.
    """
    token_ids = token_ids.to(decoding.token_ids.device)
    token_ids_BP = token_ids.expand(decoding.rows, -1) if token_ids.ndim == 1 else token_ids
    if token_ids_BP.ndim != 2 or token_ids_BP.shape[1] == 0 or len(token_ids_BP) != decoding.rows:
        raise ShapeError(
            f"extend: token_ids={tuple(token_ids.shape)} do not fit a batch of {decoding.rows} rows; expected (P,) or "
            f"({decoding.rows}, P) with P >= 1. Give every row as many tokens."
        )
    if attention_mask is not None:
        attention_mask = _checked_mask(token_ids_BP, attention_mask)
    if attention_mask is None and decoding.attention_mask is not None:
        attention_mask = torch.ones_like(token_ids_BP)
    elif attention_mask is not None and decoding.attention_mask is None:
        decoding.attention_mask = torch.ones_like(decoding.token_ids)
    logits_BPV = _read(decoding, token_ids_BP, attention_mask, int(last_logits_only), output_hidden_states, context)
    return logits_BPV[:, -1:] if last_logits_only else logits_BPV


def stream(
    decoding: Decoding,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    generators: Generators | None = None,
    stop_token_ids: Collection[int] = (),
    pad_token_id: int | None = None,
    processors: Sequence[Processor] = (),
    criteria: Sequence[Criterion] = (),
    output_hidden_states: bool = False,
) -> Iterator[Tensor]:
    """Choose one token after the other, and hand each out as soon as it is chosen.

    A token is read only when the next one is asked for; so the decoding can go on, or be branched, wherever the caller
    stops. The last token handed out is not yet in it.

    Args:
        decoding: changed in place.
        max_new_tokens: at most so many for each row.
        sampling: how a token is chosen.
        generators: of random numbers, one or one for each row; None takes torch's global one.
        stop_token_ids: a row ends behind one of these; see `stop_token_ids_of`.
        pad_token_id: what a row that has ended gets while others go on; None takes the token that ended it.
        processors: change the logits before the choice, in this order.
        criteria: end rows for other reasons than a stop token.
        output_hidden_states: keep the hidden states of the token that was read last.

    Yields:
        (B,) int64: the next token of each row. The stream ends when all rows have.
    """
    stops = torch.tensor(sorted(stop_token_ids), dtype=torch.int64, device=decoding.token_ids.device)
    has_ended = torch.zeros(decoding.rows, dtype=torch.bool, device=decoding.token_ids.device)
    chosen_B = torch.zeros_like(has_ended, dtype=torch.int64)
    for count in range(max_new_tokens):
        logits_BV = decoding.logits
        for processor in processors:
            logits_BV = processor(decoding.token_ids, logits_BV)
        padding_B = chosen_B if pad_token_id is None else torch.full_like(chosen_B, pad_token_id)
        chosen_B = torch.where(has_ended, padding_B, choose(logits_BV, sampling, generators))
        yield chosen_B
        if len(stops):
            has_ended |= torch.isin(chosen_B, stops)
        for criterion in criteria:
            has_ended |= criterion(torch.cat([decoding.token_ids, chosen_B[:, None]], dim=1)).to(has_ended)
        if (len(stops) or criteria) and bool(has_ended.all()):
            return
        if count + 1 < max_new_tokens:
            extend(decoding, chosen_B[:, None], output_hidden_states=output_hidden_states)


def generate(decoding: Decoding, *, max_new_tokens: int, **options: Any) -> Tensor:
    """Return what `stream` hands out, with rows that ended early padded on the right.

    Args:
        decoding: changed in place.
        max_new_tokens: at most so many for each row.
        options: those of `stream`.

    Returns:
        (B, at most max_new_tokens) int64: the new tokens.
    """
    tokens = list(stream(decoding, max_new_tokens=max_new_tokens, **options))
    return torch.stack(tokens, dim=1) if tokens else decoding.token_ids[:, :0]


@contextmanager
def branch(decoding: Decoding, *, copies: bool | None = None) -> Iterator[Decoding]:
    """Let the block try a continuation; afterwards the decoding is where it was.

    The cache is cropped afterwards where that restores it exactly, and copied before otherwise (recurrent states).

    Args:
        decoding: not to be used otherwise inside the block.
        copies: work on a copy in any case (True), or never (False); with False, rows must stay as they are.

    Yields:
        A decoding at the same place.
    """
    with branch_cache(decoding.cache, copies=copies) as cache:
        yield replace(decoding, cache=cache)


@contextmanager
def prefill_branch(
    model: nn.Module,
    token_ids: Tensor,
    further_ids: Tensor,
    *,
    last_logits_only: bool = False,
    output_hidden_states: bool = False,
) -> Iterator[tuple[Decoding, Decoding, Tensor]]:
    """Read prompts and, as a branch, tokens that are given behind them, in one forward pass instead of two.

    Where a batch decodes beside it, a second pass over few tokens would cost as much as a step of all its rows.

    Args:
        model: in evaluation mode, whose cache `can_pad`.
        token_ids: (B, L) int64 without padding, L >= 1.
        further_ids: (P,) int64, P >= 1.
        last_logits_only: make no logits after the further tokens but the last.
        output_hidden_states: keep the hidden states of the last token of the prompts, and of all further ones.

    Yields:
        Where the prompts end, to be used after the block, but for its logits and states; where the further tokens end;
        and the logits after those, as of `extend`.
    """
    _require_no_virtual_tokens(model)
    device, count = next(model.parameters()).device, len(further_ids)
    token_ids, further_ids = token_ids.to(device), further_ids.to(device)
    length = token_ids.shape[1]
    trial = Decoding(model, token_ids[:, :0], None, new_cache(model), torch.empty(0, device=device))
    together = torch.cat([token_ids, further_ids.expand(len(token_ids), -1)], dim=1)
    keep = torch.tensor([length - 1, length + count - 1], device=device) if last_logits_only else count + 1
    with torch.no_grad():  # not around the block, which is the caller's
        logits_BPV = _read(trial, together, None, keep, output_hidden_states)
    states = trial.read_states
    prompt = replace(trial, token_ids=token_ids, logits=logits_BPV[:, 0], read_states=None)
    if states is not None:
        prompt.hidden_states = tuple(state[:, length - 1] for state in states)
        trial.read_states = tuple(state[:, length:] for state in states)
    try:
        yield prompt, trial, logits_BPV[:, 1:]
    finally:
        crop_cache(prompt.cache, length)


def fork(decoding: Decoding) -> Decoding:
    """Return a decoding at the same place that goes its own way.

    Cost: the bytes of the cache.
    """
    return replace(decoding, cache=copy_cache(decoding.cache))


def generate_arguments(decoding: Decoding) -> dict[str, Any]:
    """Return the arguments with which transformers' `generate` goes on from here, for what `stream` lacks (beams).

    `generate` must get a token to read: given a cache of all tokens, it would silently feed the whole prompt again. So
    the last one is taken off the cache. The decoding is used up: go on with a `fork` if it is still needed.

    Args:
        decoding: of at least two tokens, with a cache that can be cropped.

    Returns:
        Keyword arguments of `model.generate`, which returns prompt and continuation.

    Raises:
        ShapeError: if the last token cannot be taken off the cache.
    """
    crop_cache(decoding.cache, decoding.length - 1)
    mask = decoding.attention_mask
    return {
        "input_ids": decoding.token_ids,
        "attention_mask": torch.ones_like(decoding.token_ids) if mask is None else mask,
        "past_key_values": decoding.cache,
    }


def stop_token_ids_of(model: Any) -> tuple[int, ...]:
    """Return the tokens that end a text by the generation settings of a model; often there are several (chat)."""
    settings = getattr(model, "generation_config", None) or model.config
    found = settings.eos_token_id
    return () if found is None else (found,) if isinstance(found, int) else tuple(found)


def _checked_mask(token_ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor | None:
    if token_ids_BL.ndim != 2 or 0 in token_ids_BL.shape:
        raise ShapeError(
            f"prefill: token_ids={tuple(token_ids_BL.shape)} hold no prompt; expected (B, L) with L >= 1. Begin with "
            "the token that starts a text."
        )
    if mask_BL is None:
        return None
    mask_BL = mask_BL.to(token_ids_BL)
    if mask_BL.shape != token_ids_BL.shape:
        raise ShapeError(
            f"prefill: attention_mask={tuple(mask_BL.shape)} does not fit token_ids={tuple(token_ids_BL.shape)}; "
            "expected equal shapes. Give both as the tokenizer returns them."
        )
    if bool((mask_BL.diff(dim=1) < 0).any()) or not bool(mask_BL[:, -1].all()):
        raise ShapeError(
            "prefill: attention_mask has padding behind a prompt or none of its tokens; expected padding on the left. "
            'Call the tokenizer with padding_side="left".'
        )
    return None if bool(mask_BL.all()) else mask_BL


def adds_virtual_tokens(model: nn.Module) -> bool:
    """Tell whether PEFT puts trained virtual tokens in front of every pass (prompt tuning, prefix tuning and kin).

    Such a model cannot go on from a cache in this loop: the second pass would get the virtual tokens again, or lose
    what the first has read.
    """
    wrapped = unwrap_model(model)
    known, active = getattr(wrapped, "peft_config", None), getattr(wrapped, "active_adapters", None)
    if not isinstance(known, dict) or not isinstance(active, list):  # active_adapters is a method of plain models
        return False
    return any(getattr(known.get(name), "is_prompt_learning", False) for name in active)


def _require_no_virtual_tokens(model: nn.Module) -> None:
    if adds_virtual_tokens(model):
        raise ConfigError(
            f"prefill: model={type(model).__name__} has an active adapter of prompt or prefix tuning, which puts its "
            "virtual tokens in front of every pass; expected a model that reads further tokens behind a cache. "
            "Generate with the model's own generate, or take an adapter such as LoRA or S2FT."
        )


@functools.cache
def _arguments_of(forward: Callable[..., Any]) -> frozenset[str]:
    """Return the names that a forward pass takes; looked up once, as it is asked for every token."""
    return frozenset(inspect.signature(forward).parameters)


def _read(
    decoding: Decoding,
    token_ids_BP: Tensor,
    mask_BP: Tensor | None,
    keep: int | Tensor,
    hidden: bool,
    context: int | None = None,
) -> Tensor:
    """Read P tokens of every row in one forward pass, or one by one where the cache cannot take more.

    Args:
        decoding: changed in place.
        token_ids_BP: the tokens.
        mask_BP: 0 on padding.
        keep: of how many tokens at the end logits are made, 0 means all; or the places of those tokens.
        hidden: keep the hidden states of the last token.
        context: no token stands behind its last place.

    Returns:
        Their logits.
    """
    model = decoding.model
    known = _arguments_of(type(unwrap_model(model, peft=True)).forward)
    arguments: dict[str, Any] = {"input_ids": token_ids_BP, "use_cache": True}
    arguments["cache_params" if "past_key_values" not in known else "past_key_values"] = decoding.cache
    if "logits_to_keep" in known:
        arguments["logits_to_keep"] = keep
    if hidden:
        arguments["output_hidden_states"] = True
    mask_BL = None
    if mask_BP is not None:
        assert decoding.attention_mask is not None, "rows are padded from the start or never"
        mask_BL = torch.cat([decoding.attention_mask, mask_BP], dim=1)
        arguments["attention_mask"] = mask_BL
        if "position_ids" in known:
            last = None if context is None else context - 1
            positions_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0, max=last)
            arguments["position_ids"] = positions_BL[:, -token_ids_BP.shape[1] :]
    output = model(**arguments)
    logits_BPV: Tensor = output.logits
    decoding.token_ids = torch.cat([decoding.token_ids, token_ids_BP], dim=1)
    decoding.attention_mask = mask_BL
    decoding.logits = logits_BPV[:, -1]
    decoding.hidden_states = tuple(state[:, -1] for state in output.hidden_states) if hidden else None
    decoding.read_states = tuple(output.hidden_states) if hidden else None
    return logits_BPV
