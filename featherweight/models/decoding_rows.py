"""Rows of a batch between two tokens: kept, repeated, joined with those of other batches, and rid of shared padding.

Shapes: B rows of a batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from featherweight.models.cache import join_caches, take_columns, take_rows
from featherweight.models.generation import Decoding


def keep_rows(decoding: Decoding, rows: Sequence[int] | Tensor) -> None:
    """Keep, repeat or reorder rows, in place.

    Args:
        decoding: of B rows.
        rows: indices below B, at least one.
    """
    indices = torch.as_tensor(rows, dtype=torch.int64, device=decoding.token_ids.device)
    take_rows(decoding.cache, indices)
    decoding.token_ids = decoding.token_ids[indices]
    decoding.logits = decoding.logits[indices]
    if decoding.attention_mask is not None:
        decoding.attention_mask = decoding.attention_mask[indices]
    if decoding.hidden_states is not None:
        decoding.hidden_states = tuple(state[indices] for state in decoding.hidden_states)
    decoding.read_states = None


def drop_columns(decoding: Decoding, columns: Sequence[int] | Tensor) -> None:
    """Take tokens out of every row, in place: padding of all rows that stands where it need not.

    Args:
        decoding: whose cache `can_pad`.
        columns: places in `token_ids`, on which all rows have padding.
    """
    gone = torch.as_tensor(columns, dtype=torch.int64, device=decoding.token_ids.device)
    kept = torch.ones(decoding.length, dtype=torch.bool, device=decoding.token_ids.device)
    kept[gone] = False
    places = kept.nonzero().squeeze(1)
    take_columns(decoding.cache, places.tolist())
    decoding.token_ids = decoding.token_ids[:, places]
    if decoding.attention_mask is not None:
        mask = decoding.attention_mask[:, places]
        decoding.attention_mask = None if bool(mask.all()) else mask


def join(decodings: Sequence[Decoding]) -> Decoding:
    """Return one batch of the rows of several, with padding in front of the shorter ones.

    Args:
        decodings: of one model, with caches that `can_pad`; the first one is used up.

    Cost: see `featherweight.models.cache.join_caches`.
    """
    first, length = decodings[0], max(one.length for one in decodings)
    if len(decodings) == 1:
        return first
    ids, masks = [], []
    for one in decodings:
        ahead = length - one.length
        mask = torch.ones_like(one.token_ids) if one.attention_mask is None else one.attention_mask
        ids.append(nn.functional.pad(one.token_ids, (ahead, 0)))
        masks.append(nn.functional.pad(mask, (ahead, 0)))
    mask = torch.cat(masks)
    return Decoding(
        first.model,
        torch.cat(ids),
        None if bool(mask.all()) else mask,
        join_caches([one.cache for one in decodings]),
        torch.cat([one.logits for one in decodings]),
    )
