"""What a simulation knows of a task of text."""

import pytest

from featherweight.errors import ConfigError
from featherweight.text.skeleton import TextSkeleton


def test_batches_have_the_shape_of_the_task_and_the_model_so_many_layers():
    skeleton = TextSkeleton("tiny", seq_len=16, layers=1)
    first = next(skeleton.batches("train", micro_batch_size=3))
    assert first["input_ids"].shape == first["labels"].shape == (3, 16) and skeleton.item_count(first) == 45
    model = skeleton.build_model()
    assert model.training and len(model.model.layers) == 1
    total, tokens = skeleton.loss(model, first)
    assert tokens == 45 and total.ndim == 0


def test_a_row_longer_than_the_model_reads_is_named_by_the_key_of_the_user():
    longest = TextSkeleton("tiny", seq_len=16).longest
    with pytest.raises(ConfigError, match=f"max_tokens={longest + 1} is longer than max_position_embeddings={longest}"):
        TextSkeleton("tiny", seq_len=longest + 1, length_key="max_tokens")
