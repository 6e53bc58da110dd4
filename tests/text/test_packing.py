import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.errors import ConfigError
from featherweight.text.packing import (
    IGNORED_LABEL,
    held_out_rows,
    join_documents,
    pack,
    predicted_tokens,
    training_rows,
)


def test_documents_are_each_followed_by_eos_and_nothing_is_lost():
    assert join_documents([[5, 6], [], [7]], eos=9).tolist() == [5, 6, 9, 9, 7, 9]


def test_join_cuts_at_max_tokens_and_encodes_no_further_document():
    consumed = []

    def documents():
        for number in range(10):
            consumed.append(number)
            yield [number, number]

    assert join_documents(documents(), eos=9, max_tokens=5).tolist() == [0, 0, 9, 1, 1]
    assert consumed == [0, 1]


@pytest.mark.parametrize(("largest", "dtype"), [(65535, np.uint16), (65536, np.int32)])
def test_stream_takes_the_smaller_dtype_that_holds_every_id(largest, dtype):
    stream = join_documents([[largest]], eos=0)
    assert stream.dtype == dtype
    assert stream.tolist() == [largest, 0]


def test_pack_returns_contiguous_rows_and_drops_the_tail():
    rows = pack([[1, 2, 3], [4, 5, 6, 7]], seq_len=4, eos=0)
    assert torch.equal(rows, torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]]))
    assert rows.is_contiguous()


def test_training_rows_are_a_view_so_that_no_second_corpus_is_held():
    stream = np.arange(10, dtype=np.int32)
    assert np.shares_memory(training_rows(stream, 3), stream)


def test_corpus_shorter_than_one_sequence_is_refused_with_both_counts():
    with pytest.raises(ConfigError, match=r"corpus=5 tokens.*at least seq_len=6"):
        pack([[1, 2, 3, 4]], seq_len=6, eos=0)


@pytest.mark.parametrize("count", [0, 1])
def test_held_out_split_that_predicts_nothing_is_refused(count):
    with pytest.raises(ConfigError, match=f"corpus={count} tokens in the held-out split"):
        held_out_rows(np.zeros(count, dtype=np.int32), 4, pad=0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(count=st.integers(2, 60), seq_len=st.integers(2, 20))
def test_held_out_rows_predict_every_token_but_the_first_exactly_once(count, seq_len):
    # Mutation: a stride of seq_len would lose the first token of each row; a missing length would count padding.
    stream = np.arange(count, dtype=np.int32)
    rows, lengths = held_out_rows(stream, seq_len, pad=-1)
    predicted = [token for row, length in zip(rows, lengths, strict=True) for token in row[1:length].tolist()]
    assert predicted == list(range(1, count))
    contexts = [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]
    assert all(context == list(range(context[0], context[0] + len(context))) for context in contexts)
    assert all((row[length:] == -1).all() for row, length in zip(rows, lengths, strict=True))


def test_predicted_tokens_ignores_the_first_position_and_ignored_labels():
    labels = torch.tensor([[1, 2, 3], [4, 5, IGNORED_LABEL], [IGNORED_LABEL] * 3])
    assert predicted_tokens(labels) == 3
