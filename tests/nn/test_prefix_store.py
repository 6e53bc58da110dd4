"""What one layer keeps of the chunks of a sequence; test_streamed_attention.py tests that it serves attention."""

import pytest
import torch

from featherweight.errors import ShapeError
from featherweight.nn.prefix_store import AttentionResults, KeyValueStore, wide_dtype
from featherweight.nn.streamed_attention import Visibility, streamed_attention


def test_sums_are_in_float32_and_leave_with_the_keys_of_their_chunk():
    store, ones = KeyValueStore([(0, 2), (2, 4)]), torch.ones(1, 1, 2, 4, dtype=torch.bfloat16)
    store.put(0, ones, ones)
    for _ in range(3):
        store.add(0, ones / 256, ones)  # 1/256 is half a step of bfloat16 at 1
    key_sum, value_sum = store.take(0)
    assert key_sum.dtype == torch.float32 and float(key_sum.sum()) == 8 * 3 / 256 and float(value_sum.sum()) == 24
    assert len(store) == 0 and store.take(0) is None
    with pytest.raises(ShapeError, match="chunk=0 has no keys"):
        store.pair(0)
    assert wide_dtype(torch.float64) == torch.float64


@pytest.mark.parametrize("on_host", [False, True])
def test_attention_that_is_kept_is_not_made_again_and_has_the_same_gradients(on_host, monkeypatch):
    # Mutation: results of another chunk, a log-sum-exp that is not kept.
    from featherweight.nn import streamed_attention as module

    made = []
    over_blocks = module._over_blocks
    monkeypatch.setattr(module, "_over_blocks", lambda *args: made.append(1) or over_blocks(*args))
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 2, 6, 4, generator=generator) for _ in range(3)]
    bounds, found = [(0, 3), (3, 6)], {}
    for results in (None, AttentionResults(on_host)):
        made.clear()
        store, gradients = KeyValueStore(bounds), []
        options = {"visibility": Visibility(None), "scale": 0.5, "results": results}
        with torch.no_grad():
            for chunk, (first, behind) in enumerate(bounds):
                streamed_attention(*(one[:, :, first:behind] for one in states), store, chunk, **options)
        for chunk in (1, 0):
            own = [one[:, :, slice(*bounds[chunk])].clone().requires_grad_() for one in states]
            streamed_attention(*own, store, chunk, **options).square().sum().backward()
            gradients += [one.grad for one in own]
        found[results is None] = (gradients, len(made))
    assert found[True][1] == 4 and found[False][1] == 2
    for one, other in zip(found[True][0], found[False][0], strict=True):
        assert torch.equal(one, other)
