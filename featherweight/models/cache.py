"""The cache of what a model has read, in the form of transformers: cropping, copying and branching without surprises.

What transformers' own methods do silently is refused or mended here: a crop of more than there is empties the cache,
sliding windows forget what a crop needs, recurrent states cannot go back at all.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featherweight.errors import ShapeError
from featherweight.models.token_places import counts_tokens

if TYPE_CHECKING:
    from transformers import Cache


def new_cache(model: Any) -> "Cache":
    """Return an empty cache with the kinds of layers that a model has; it grows as the model reads.

    Layers of plain attention keep room behind their tokens; see `featherweight.models.growing_layer`.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    from featherweight.models.growing_layer import GrowingLayer

    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    cache.counts_tokens = counts_tokens(model)
    return cache


def cache_length(cache: "Cache") -> int | None:
    """Return how many tokens a cache has read, or None if none of its layers counts them (recurrent models)."""
    from transformers.cache_utils import CacheLayerMixin

    if not any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        return None
    return int(cache.get_seq_length())


def can_crop(cache: "Cache") -> bool:
    """Tell whether tokens can be taken off the end of a cache; recurrent states, for one, cannot go back."""
    return bool(cache.layers) and bool(cache.is_croppable)


def remember_past(cache: "Cache") -> None:
    """Let sliding windows keep what falls out of them, until `crop_cache`, so that it can go back.

    To be called after the prompt was read and before what may be taken back: earlier it would keep the whole prompt.
    """
    cache.activate_past_recording()


def crop_cache(cache: "Cache", length: int) -> None:
    """Take tokens off the end of a cache until it holds `length`; sliding windows then forget again as they read.

    Args:
        cache: changed in place.
        length: how many tokens stay, from 1 to those that were read.

    Raises:
        ShapeError: if the cache cannot be cropped, holds fewer tokens, or its windows have forgotten those it needs.
    """
    present = cache_length(cache)
    if present is None or not can_crop(cache):
        raise ShapeError(
            f"crop_cache: cache={type(cache).__name__} of {sorted({type(one).__name__ for one in cache.layers})} "
            "cannot go back; expected layers of attention in a dynamic cache. Copy it before, as `branch` does."
        )
    if not 0 < length <= present:
        # A longer crop than the cache would leave an empty one, without an error.
        raise ShapeError(
            f"crop_cache: length={length} is not in a cache of {present} tokens; expected 1 to {present}. Read the "
            "prompt again for a longer one."
        )
    try:
        # A positive number would mean "keep" in transformers 4 and raises in 5; a negative one means "drop" in both.
        cache.crop(length - present)
    except RuntimeError as error:
        raise ShapeError(
            f"crop_cache: length={length} of {present} tokens is beyond a sliding window, which has forgotten what it "
            "needs to go back; expected `remember_past` before they were read. Use `branch`."
        ) from error
    for layer in cache.layers:
        if hasattr(layer, "record_past"):
            layer.record_past = False
    if cache_length(cache) != length:
        raise ShapeError(
            f"crop_cache: the cache holds {cache_length(cache)} tokens after a crop to length={length}; expected "
            "those. Report this with the versions of torch and transformers."
        )


def take_rows(cache: "Cache", rows: Tensor) -> None:
    """Keep, repeat or reorder rows of the batch of a cache, in place.

    Args:
        cache: of B rows.
        rows: (any number,) int64, indices below B. Layers with room copy only the rows that move, where those come from
            behind all that stay.
    """
    if _is_plain(cache):
        places = rows.tolist()
        for layer in cache.layers:
            layer.take_rows(places)
    else:
        cache.reorder_cache(rows)


def can_pad(cache: "Cache") -> bool:
    """Tell whether a row may have padding behind tokens: every layer is plain attention over all of them.

    A sliding window counts places, not tokens, and a recurrent state would read the padding; some models count places
    with plain attention, too, see `featherweight.models.token_places`.
    """
    return _is_plain(cache) and getattr(cache, "counts_tokens", True)


def _is_plain(cache: "Cache") -> bool:
    """Tell whether every layer is plain attention that keeps room behind its tokens."""
    from featherweight.models.growing_layer import GrowingLayer

    return bool(cache.layers) and all(isinstance(layer, GrowingLayer) for layer in cache.layers)


def take_columns(cache: "Cache", columns: Sequence[int]) -> None:
    """Keep some of the tokens of every row, in place; those in front are dropped without a copy.

    Args:
        cache: that `can_pad`.
        columns: their places, in order, at least one.
    """
    for layer in _plain_layers(cache):
        layer.take_columns(columns)


def join_caches(caches: Sequence["Cache"]) -> "Cache":
    """Return one cache with the rows of several, whose tokens end at the same place.

    Args:
        caches: that `can_pad`, of one model; the first one becomes the result, the others stay as they are.

    Cost: the bytes of the others, and of the first one where it has no room for their rows or tokens.
    """
    first, *others = (_plain_layers(cache) for cache in caches)
    for place, layer in enumerate(first):
        layer.add_rows([layers[place] for layers in others])
    return caches[0]


def _plain_layers(cache: "Cache") -> list[Any]:
    if not can_pad(cache):
        raise ShapeError(
            f"cache: layers={sorted({type(one).__name__ for one in cache.layers})} of this model count places, not "
            "tokens; expected attention over all tokens. Decode the rows one by one."
        )
    return list(cache.layers)


def copy_cache(cache: "Cache") -> "Cache":
    """Return a cache that shares nothing with another one.

    Cost: the bytes of the cache.
    """
    with torch.no_grad():
        return copy.deepcopy(cache)


@contextmanager
def branch_cache(cache: "Cache", *, copies: bool | None = None) -> Iterator["Cache"]:
    """Give the block a cache to read on with, and leave `cache` afterwards as it was before.

    Args:
        cache: not to be used otherwise inside the block.
        copies: read on with a copy instead of cropping afterwards; None does so where a crop is not possible.

    Yields:
        `cache` itself, or a copy of it.
    """
    if copies or (copies is None and not can_crop(cache)):
        yield copy_cache(cache)
        return
    length = cache_length(cache)
    assert length is not None, "what can be cropped counts"
    remember_past(cache)
    try:
        yield cache
    finally:
        crop_cache(cache, length)
