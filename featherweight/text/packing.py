"""From the token ids of documents to rows of one length, with every token counted exactly.

Shapes: T tokens of the stream, L = seq_len, B rows.
Labels equal the input ids; the shift by one stands in the loss, so position 0 of a row is never predicted.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featherweight.errors import ConfigError

IGNORED_LABEL = -100
"""Label of a position that is not predicted (the convention of torch and transformers)."""

TokenStream = NDArray[np.uint16] | NDArray[np.int32]
"""Token ids in the smaller of two dtypes that holds them: a corpus of 100 M tokens takes 200 or 400 MB."""


def join_documents(
    token_ids_of_documents: Iterable[Sequence[int]], eos: int, *, max_tokens: int | None = None
) -> TokenStream:
    """Join documents to one stream, each followed by `eos`.

    Args:
        token_ids_of_documents: ids of each document, consumed until `max_tokens` are there.
        eos: id that ends a document.
        max_tokens: cut the stream after so many tokens; None keeps all.
    Returns:
        (T,) uint16 if all ids fit, else int32.
    Example:
        >>> join_documents([[5, 6], [7]], eos=0).tolist()
        [5, 6, 0, 7, 0]
    """
    pieces: list[NDArray[np.int32]] = []
    count = 0
    for token_ids in token_ids_of_documents:
        pieces.append(np.array([*token_ids, eos], dtype=np.int32))
        count += len(pieces[-1])
        if max_tokens is not None and count >= max_tokens:
            break
    stream = np.concatenate(pieces)[:max_tokens] if pieces else np.zeros(0, dtype=np.int32)
    return stream.astype(np.uint16) if stream.size and stream.max() <= np.iinfo(np.uint16).max else stream


def training_rows(stream: TokenStream, seq_len: int) -> TokenStream:
    """Cut a stream into rows; a tail shorter than a row is dropped.

    Args:
        stream: (T,) token ids.
        seq_len: tokens of a row.
    Returns:
        (T // L, L), a view of `stream`.
    Raises:
        ConfigError: if the stream does not fill one row.
    """
    row_count = len(stream) // seq_len
    if row_count == 0:
        raise ConfigError(
            f"text task: corpus={len(stream)} tokens in the training split is shorter than one sequence; "
            f"expected at least seq_len={seq_len} tokens. Lower seq_len or add text."
        )
    return stream[: row_count * seq_len].reshape(row_count, seq_len)


def held_out_rows(stream: TokenStream, seq_len: int, *, pad: int) -> tuple[TokenStream, NDArray[np.int64]]:
    """Cut a stream into rows that predict every token but the very first exactly once.

    Neighbouring rows share one token: the last of a row is predicted there and opens the next one. The last row is
    padded.

    Args:
        stream: (T,) token ids, T >= 2.
        seq_len: tokens of a row, at least 2.
        pad: id that fills the last row; its label is ignored.
    Returns:
        (B, L) token ids and (B,) the number of tokens of each row that are no padding; B = ceil((T - 1) / (L - 1)).
    Raises:
        ConfigError: if the stream holds fewer than two tokens.
    Example:
        >>> rows, lengths = held_out_rows(np.arange(6, dtype=np.int32), 4, pad=0)
        >>> rows.tolist(), lengths.tolist()
        ([[0, 1, 2, 3], [3, 4, 5, 0]], [4, 3])
    """
    if len(stream) < 2:
        raise ConfigError(
            f"text task: corpus={len(stream)} tokens in the held-out split predict nothing; expected at least 2 "
            "tokens. Raise held_out or max_held_out_tokens, or add text."
        )
    step = seq_len - 1
    starts = np.arange(0, len(stream) - 1, step)
    lengths = np.minimum(len(stream) - starts, seq_len).astype(np.int64)
    rows = np.full((len(starts), seq_len), pad, dtype=stream.dtype)
    for row, start, length in zip(rows, starts, lengths, strict=True):
        row[:length] = stream[start : start + length]
    return rows, lengths


def pack(token_ids_of_documents: Iterable[Sequence[int]], seq_len: int, eos: int) -> Tensor:
    """Join documents by `eos` and cut them into training rows: `join_documents`, then `training_rows`.

    Args:
        token_ids_of_documents: ids of each document.
        seq_len: tokens of a row, L.
        eos: id that ends a document.
    Returns:
        (B, L) int64, contiguous; the tail that does not fill a row is dropped.
    Raises:
        ConfigError: if all documents together do not fill one row.
    Example:
        >>> pack([[5, 6], [7], [8]], seq_len=3, eos=0)
        tensor([[5, 6, 0],
                [7, 0, 8]])
    """
    return torch.from_numpy(training_rows(join_documents(token_ids_of_documents, eos), seq_len).astype(np.int64))


def predicted_tokens(labels: Tensor) -> int:
    """Count the tokens that a causal loss predicts: labels at positions 1..L-1 that are not ignored.

    Args:
        labels: (B, L) int64, ids or `IGNORED_LABEL`.
    """
    return int((labels[:, 1:] != IGNORED_LABEL).sum())
