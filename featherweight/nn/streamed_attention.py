"""Causal attention of one chunk of a sequence over all that comes before it, exactly, block by block.

The chunks before are its prefix: their keys and values stand in a `KeyValueStore` and never enter a graph, so memory is
that of one chunk, whatever the length. Forward, each block of keys gives an output and a log-sum-exp, which are merged;
backward, each block is differentiated with the merged ones, and what is due to keys and values of earlier chunks is
added up in the store until these chunks have their turn. So chunks go forward from first to last and backward from last
to first.
Shapes: B rows, H heads, K heads of keys and values (H = G K), T queries, N keys, h head dimension.
Source: Dao, FlashAttention-2, arXiv 2307.08691 (online softmax and its backward pass by blocks).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from featherweight.nn.prefix_store import AttentionResults, KeyValueStore, wide_dtype
from featherweight.simulated import device_kind
from featherweight.tiles import tiles

TILE = 1024
"""Queries that share a mask at a time, so that a mask takes TILE x N numbers."""
SCORE_ELEMENTS = 1 << 26
"""Scores that exist at a time where no kernel of torch's goes without them: 256 MiB in float32."""


@dataclass(frozen=True)
class Visibility:
    """Which keys a query sees: those before it, of its own document, inside the window.

    Args:
        documents: (S,) number of each token's document, contiguous, on the CPU, where it is looked at; -1 for padding,
            which sees nothing and is not seen. None for one document without padding: nothing is looked at.
        window: a query sees itself and `window - 1` tokens before; None for all.
    """

    documents: Tensor | None
    window: int | None = None

    def between(self, queries: tuple[int, int], keys: tuple[int, int]) -> bool | Literal["causal"] | Tensor:
        """Return which of these keys these queries see: True for all, False for none, "causal", or a (T, N) mask.

        Args:
            queries: first position and the one behind the last.
            keys: likewise, none of them behind the last query.
        """
        (first, behind), (key_first, key_behind) = queries, keys
        if self.window is not None and first - (key_behind - 1) >= self.window:
            return False
        is_inside = self.window is None or (behind - 1) - key_first < self.window
        if self.documents is None:
            if is_inside and (key_behind <= first or queries == keys):
                return True if key_behind <= first else "causal"
            return self.near(queries, keys)
        asking, asked = self.documents[first:behind], self.documents[key_first:key_behind]
        ends = [int(one) for one in torch.stack([asking[0], asking[-1], asked[0], asked[-1]])]
        # Documents are contiguous: with equal ends there is but one, unless padding lies inside.
        is_one = ends[0] >= 0 and len(set(ends)) == 1 and not bool((asked < 0).any() or (asking < 0).any())
        if is_one and is_inside and (key_behind <= first or queries == keys):
            return True if key_behind <= first else "causal"
        mask = self.near(queries, keys)
        mask &= (asking[:, None] == asked[None, :]) & (asking[:, None] >= 0)
        return mask if bool(mask.any()) else False

    def near(self, queries: tuple[int, int], keys: tuple[int, int]) -> Tensor:
        """Return the (T, N) mask of keys that are not behind a query and inside of its window."""
        position, key_position = torch.arange(*queries)[:, None], torch.arange(*keys)[None, :]
        mask = key_position <= position
        if self.window is not None:
            mask &= position - key_position < self.window
        return mask

    def columns(self, seen_TN: Tensor, query: int, key: int) -> slice | None:
        """Return the keys, inside of their chunk, among which all are that some rows of a mask see; None for no key.

        Args:
            seen_TN: rows of a mask that `between` gave.
            query: position of its first row.
            key: position of its first column.
        """
        count, width = seen_TN.shape
        if self.documents is None:
            first = 0 if self.window is None else max(0, query - self.window + 1 - key)
            behind = min(width, query + count - key)
            return slice(first, behind) if first < behind else None
        found = seen_TN.any(0).nonzero()
        return slice(int(found[0]), int(found[-1]) + 1) if len(found) else None


def streamed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    store: KeyValueStore,
    chunk: int,
    visibility: Visibility,
    *,
    scale: float,
    softcap: float | None = None,
    results: AttentionResults | None = None,
) -> Tensor:
    """Attend from one chunk to itself and to the chunks before it, and put its keys and values into the store.

    The backward pass of a chunk must come after those of all later chunks: it hands out what these have added to the
    gradients of its keys and values, and frees them.

    Args:
        query: (B, H, T, h).
        key: (B, K, T, h).
        value: (B, K, T, h).
        store: holds the chunks before.
        chunk: number of this one.
        visibility: of the whole sequence.
        scale: of the scores.
        softcap: c of ``c tanh(score / c)``, or None.
        results: where output and log-sum-exp are looked up, and kept the first time; None always computes them.
    Returns:
        (B, H, T, h) in the dtype of `query`, or of autocast; zero for queries that see nothing.
    Raises:
        ShapeError: if a chunk before is missing.
    Cost: on top of the products a score matrix of `TILE` queries, or none where torch's flash kernel for CPUs runs.
    """
    work = _Work(store, chunk, visibility, scale, softcap, results)
    query, key, value = in_autocast(query, key, value)
    output: Tensor = _StreamedAttention.apply(query, key, value, work)
    return output


def in_autocast(*states: Tensor) -> tuple[Tensor, ...]:
    """Return queries, keys or values in the dtype of autocast where that is on, as torch's own attention does."""
    kind = states[0].device.type
    if not torch.is_autocast_enabled(kind) or states[0].dtype == torch.float64:
        return states
    return tuple(one.to(torch.get_autocast_dtype(kind)) for one in states)


@dataclass(frozen=True)
class _Work:
    store: KeyValueStore
    chunk: int
    visibility: Visibility
    scale: float
    softcap: float | None
    results: AttentionResults | None = None

    def blocks(self, query: Tensor) -> Iterator["_Block"]:
        """Yield every block in which something is seen.

        Args:
            query: (B, H, T, h).
        """
        count, device, runs_flash = query.shape[2], query.device, _runs_flash(query, self)
        first = self.store.bounds[self.chunk][0]
        for chunk in range(self.chunk + 1):
            key_first, key_behind = self.store.bounds[chunk]
            seen = self.visibility.between((first, first + count), (key_first, key_behind))
            if seen is False:
                continue
            width = key_behind - key_first
            if not isinstance(seen, Tensor) and runs_flash:
                yield _Block(chunk, slice(0, count), slice(0, width), None, seen == "causal")
                continue
            tile = TILE
            if not runs_flash:
                tile = max(1, min(TILE, SCORE_ELEMENTS // (query.shape[0] * query.shape[1] * width)))
                seen = (
                    self.visibility.near((first, first + count), (key_first, key_behind)) if seen == "causal" else seen
                )
            if not isinstance(seen, Tensor):
                for start, behind in tiles(count, tile):  # alike, so that few stand for all in a simulation
                    yield _Block(chunk, slice(start, behind), slice(0, width), None, False)
                continue
            for start in range(0, count, tile):
                rows = slice(start, min(start + tile, count))
                keys = self.visibility.columns(seen[rows], first + start, key_first)
                if keys is not None:  # keys behind the last one that is seen, or before the first, are left out
                    mask = seen[rows, keys]
                    is_whole = self.visibility.documents is not None and bool(mask.all())
                    yield _Block(chunk, rows, keys, None if is_whole else mask.to(device), False)


class _Block(NamedTuple):
    """Some queries of the chunk and some keys."""

    chunk: int
    """Of the keys."""
    rows: slice
    """Of the queries."""
    keys: slice
    """Inside of their chunk."""
    mask: Tensor | None
    """(T, N), True for what is seen; None for all, or what is causal."""
    is_causal: bool
    """Whether these are the chunk's own keys, of which each query sees those before it and its own."""

    def of_queries(self, folded: Tensor) -> Tensor:
        """Return the queries of (B, K, G, T, h) that take part, as (B, K, G T, h), or (B, H, T, h) for causal ones."""
        taken = folded[:, :, :, self.rows]
        return (taken.flatten(1, 2) if self.is_causal else taken.flatten(2, 3)).contiguous()

    def covers(self, count: int) -> bool:
        """Whether all queries of a chunk of so many take part."""
        return self.rows == slice(0, count)

    def of_keys(self, states: Tensor, groups: int) -> Tensor:
        """Return the keys of (B, K, N, h) that take part; causal ones once for each head of queries."""
        taken = states[:, :, self.keys]
        return taken.repeat_interleave(groups, 1) if self.is_causal and groups > 1 else taken

    def gathered(self, gradient: Tensor, groups: int) -> Tensor:
        """Return the gradient of what `of_keys` gave as that of (B, K, N, h)."""
        return gradient.unflatten(1, (-1, groups)).sum(2) if self.is_causal and groups > 1 else gradient

    def seen(self, query: Tensor, groups: int) -> Tensor | None:
        """Return the mask of all rows of queries, for products that know no causality."""
        if self.is_causal:
            count = query.shape[2]
            return torch.ones(count, count, dtype=torch.bool, device=query.device).tril()
        return None if self.mask is None else self.mask.repeat(groups, 1)


class _StreamedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, work: _Work) -> Tensor:
        work.store.put(work.chunk, key, value)
        # (B, K, G, T, h): queries that share a head of keys. In order once, and not again for each block.
        folded = query.contiguous().unflatten(1, (key.shape[1], -1))
        known = None if work.results is None else work.results.of(work.chunk, query.device)
        output, logsumexp = _over_blocks(folded, value, work) if known is None else known
        if known is None and work.results is not None:
            work.results.keep(work.chunk, output, logsumexp)
        ctx.work = work
        ctx.save_for_backward(folded.flatten(1, 2), key, value, output, logsumexp)
        return output.flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        query, key, value, output, logsumexp = ctx.saved_tensors
        work: _Work = ctx.work
        folded, gradient = (one.contiguous().unflatten(1, (key.shape[1], -1)) for one in (query, gradients[0]))
        groups, wide, count = folded.shape[2], wide_dtype(query.dtype), query.shape[2]
        query_sum: Tensor | None = None
        own: tuple[Tensor, Tensor] | None = None
        # A query that sees nothing has no sum; any finite one gives it no weight on masked keys.
        lse = torch.where(logsumexp == float("-inf"), torch.zeros_like(logsumexp), logsumexp).unsqueeze(-1)
        for block in work.blocks(query):
            keys, values = (block.of_keys(one, groups) for one in work.store.pair(block.chunk))
            asking, due, whole, total = (block.of_queries(one) for one in (folded, gradient, output, lse))
            found = _backward(asking, due, whole, total.squeeze(-1), keys, values, block, work, groups)
            if query_sum is None and block.covers(count):
                query_sum = found[0].view_as(folded).to(wide)
            else:
                query_sum = torch.zeros_like(folded, dtype=wide) if query_sum is None else query_sum
                query_part = query_sum[:, :, :, block.rows]
                query_part += found[0].view_as(query_part)
            parts = (block.gathered(found[1], groups), block.gathered(found[2], groups))
            if block.chunk != work.chunk:
                _add_block(work.store, block.chunk, block.keys, *parts)
            elif block.is_causal:  # all of the chunk's own keys at once
                own = parts[0].to(wide), parts[1].to(wide)
            else:
                own = own or (torch.zeros_like(key, dtype=wide), torch.zeros_like(value, dtype=wide))
                own[0][:, :, block.keys] += parts[0]
                own[1][:, :, block.keys] += parts[1]
        query_sum = torch.zeros_like(folded) if query_sum is None else query_sum
        own = own or (torch.zeros_like(key), torch.zeros_like(value))
        later = work.store.take(work.chunk)
        if later is not None:
            own = own[0] + later[0], own[1] + later[1]
        return query_sum.flatten(1, 2).to(query.dtype), own[0].to(key.dtype), own[1].to(value.dtype), None


def _over_blocks(folded: Tensor, value: Tensor, work: _Work) -> tuple[Tensor, Tensor]:
    """Return the output (B, K, G, T, h) of queries of this shape over all blocks, and its log-sum-exp."""
    groups, count = folded.shape[2:4]
    output = logsumexp = None
    for block in work.blocks(folded.flatten(1, 2)):
        keys, values = (block.of_keys(one, groups) for one in work.store.pair(block.chunk))
        part, part_lse = _forward(block.of_queries(folded), keys, values, block, work, groups)
        if output is None and block.covers(count):
            output, logsumexp = part.view(*folded.shape[:-1], -1), part_lse.view(folded.shape[:-1])
            continue
        if output is None or logsumexp is None:
            output, logsumexp = _nothing_seen(folded, value)
        _merge_(output[:, :, :, block.rows], logsumexp[:, :, :, block.rows], part, part_lse)
    if output is None or logsumexp is None:
        output, logsumexp = _nothing_seen(folded, value)
    return output.to(folded.dtype), logsumexp


def _nothing_seen(folded: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp of queries (B, K, G, T, h) that have seen no key yet."""
    wide = wide_dtype(folded.dtype)
    output = torch.zeros(folded.shape[:-1] + value.shape[-1:], dtype=wide, device=folded.device)
    return output, torch.full(folded.shape[:-1], float("-inf"), dtype=wide, device=folded.device)


def _add_block(store: KeyValueStore, chunk: int, keys: slice, key_gradient: Tensor, value_gradient: Tensor) -> None:
    """Add the gradients of some keys of a chunk to its sums."""
    first, behind = store.bounds[chunk]
    if keys.stop - keys.start == behind - first:
        store.add(chunk, key_gradient, value_gradient)
        return
    pair = store.pair(chunk)
    whole = [torch.zeros_like(one, dtype=wide_dtype(one.dtype)) for one in pair]
    whole[0][:, :, keys] = key_gradient.to(whole[0].dtype)
    whole[1][:, :, keys] = value_gradient.to(whole[1].dtype)
    store.add(chunk, *whole)


def _forward(
    query: Tensor, key: Tensor, value: Tensor, block: _Block, work: _Work, groups: int
) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp of queries over one block of keys."""
    wide = wide_dtype(query.dtype)
    if _runs_flash(query, work):
        seen = None if block.is_causal else block.seen(query, groups)
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, block.is_causal, attn_mask=_bias(seen, query.dtype), scale=work.scale
        )
        lse = lse.to(wide)
        if seen is not None:  # the kernel says 0 where nothing is seen
            lse = torch.where(seen.any(1), lse, torch.full_like(lse, float("-inf")))
        return output.to(wide), lse
    scores, _ = _scores(query, key, block.seen(query, groups), work)
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - torch.where(lse == float("-inf"), torch.zeros_like(lse), lse).unsqueeze(-1))
    return weights @ value.to(wide), lse


def _backward(
    query: Tensor,
    gradient: Tensor,
    output: Tensor,
    lse: Tensor,
    key: Tensor,
    value: Tensor,
    block: _Block,
    work: _Work,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values of one block; `output` and `lse` are those over all blocks."""
    if _runs_flash(query, work):
        bias = None if block.is_causal else _bias(block.seen(query, groups), query.dtype)
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, query, key, value, output, lse, 0.0, block.is_causal, attn_mask=bias, scale=work.scale
        )
        return found
    wide = wide_dtype(query.dtype)
    scores, slope = _scores(query, key, block.seen(query, groups), work)
    weights = torch.exp(scores - lse.unsqueeze(-1))
    gradient, value = gradient.to(wide), value.to(wide)
    total = (gradient * output.to(wide)).sum(-1, keepdim=True)
    score_gradient = weights * (gradient @ value.mT - total)
    if slope is not None:
        score_gradient = score_gradient * slope
    score_gradient = score_gradient * work.scale
    return score_gradient @ key.to(wide), score_gradient.mT @ query.to(wide), weights.mT @ gradient


def _scores(query: Tensor, key: Tensor, seen: Tensor | None, work: _Work) -> tuple[Tensor, Tensor | None]:
    """Return the scores, -inf where nothing is seen, and the slope of their cap."""
    wide = wide_dtype(query.dtype)
    scores, slope = (query.to(wide) @ key.to(wide).mT) * work.scale, None
    if work.softcap is not None:
        capped = torch.tanh(scores / work.softcap)
        scores, slope = capped * work.softcap, 1 - capped.square()
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    return scores, slope


def _merge_(output: Tensor, logsumexp: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Add a block's output (B, K, G T, h) to that of the blocks before, in place."""
    part, part_lse = part.view_as(output), part_lse.view_as(logsumexp)
    # The share of the new block, from a difference that does not round; nothing where it has seen nothing.
    share = torch.sigmoid(part_lse - logsumexp).masked_fill_(part_lse == float("-inf"), 0.0)
    output.lerp_(part, share.unsqueeze(-1))
    torch.logaddexp(logsumexp, part_lse, out=logsumexp)


def _runs_flash(query: Tensor, work: _Work) -> bool:
    return device_kind(query.device) == "cpu" and work.softcap is None


def _bias(seen: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return what is added to the scores."""
    if seen is None:
        return None
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
