"""Attention in chunks over a prefix that no graph holds, against attention over the whole sequence."""

import pytest
import torch
from torch.nn import functional as F

from featherweight.errors import ShapeError
from featherweight.nn import streamed_attention as module
from featherweight.nn.prefix_store import KeyValueStore
from featherweight.nn.streamed_attention import Visibility, streamed_attention

HEADS, GROUPS, WIDTH = 2, 3, 8


def states(length, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, HEADS * GROUPS, length, WIDTH), (2, HEADS, length, WIDTH), (2, HEADS, length, WIDTH)]
    return [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]


def whole(query, key, value, visibility, scale, softcap):
    """Attention with every score of the sequence in one matrix."""
    position = torch.arange(query.shape[2])
    seen = (position[None] <= position[:, None]) & (visibility.documents[None] == visibility.documents[:, None])
    seen &= visibility.documents[:, None] >= 0
    if visibility.window is not None:
        seen &= position[:, None] - position[None] < visibility.window
    key, value = (one.repeat_interleave(GROUPS, 1) for one in (key, value))
    scores = query @ key.mT * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)
    return weights @ value


def in_chunks(tensors, visibility, sizes, weights, **options):
    """Output and gradients of ``sum(output * weights)``, chunks forward from the first and backward from the last."""
    bounds, start = [], 0
    for size in sizes:
        bounds.append((start, start + size))
        start += size
    store = KeyValueStore(bounds)
    leaves, outputs = [], []
    for index, (first, behind) in enumerate(bounds):
        mine = [one.detach()[:, :, first:behind].requires_grad_() for one in tensors]
        leaves.append(mine)
        outputs.append(streamed_attention(*mine, store, index, visibility, **options))
    for index in reversed(range(len(bounds))):
        first, behind = bounds[index]
        outputs[index].backward(weights[:, :, first:behind])
    assert len(store) == 0
    return torch.cat(outputs, 2), [torch.cat([mine[i].grad for mine in leaves], 2) for i in range(3)]


CASES = {
    "one document": (Visibility(torch.zeros(24, dtype=torch.long)), None),
    "documents": (Visibility(torch.tensor([0] * 5 + [1] * 11 + [2] * 8)), None),
    "padding on both sides": (Visibility(torch.tensor([-1] * 3 + [0] * 17 + [-1] * 4)), None),
    "window": (Visibility(torch.zeros(24, dtype=torch.long), window=5), None),
    "window and documents": (Visibility(torch.tensor([0] * 13 + [1] * 11), window=7), None),
    "capped scores": (Visibility(torch.zeros(24, dtype=torch.long)), 0.7),
}


@pytest.mark.parametrize("tile", [3, 1024])
@pytest.mark.parametrize("sizes", [[24], [8, 8, 8], [7, 7, 7, 3], [1] * 24])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_the_whole_sequence(monkeypatch, case, sizes, tile):
    monkeypatch.setattr(module, "TILE", tile)
    visibility, softcap = CASES[case]
    tensors = states(24)
    weights = torch.randn(2, HEADS * GROUPS, 24, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = whole(*tensors, visibility, 0.3, softcap)
    gradients = torch.autograd.grad((expected * weights).sum(), tensors)
    output, found = in_chunks(tensors, visibility, sizes, weights, scale=0.3, softcap=softcap)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-13)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_scores_far_from_zero_stay_finite():
    tensors = [(40 * one).detach().requires_grad_() for one in states(24, torch.float32)]
    visibility = CASES["one document"][0]
    weights = torch.ones(2, HEADS * GROUPS, 24, WIDTH)
    output, found = in_chunks(tensors, visibility, [8, 8, 8], weights, scale=1.0)
    expected = whole(*(one.double() for one in tensors), visibility, 1.0, None)
    torch.testing.assert_close(output.double(), expected, rtol=1e-3, atol=1e-3)
    assert all(one.isfinite().all() for one in found)


def test_in_bfloat16_the_error_is_that_of_torchs_own_kernel():
    tensors = states(64, torch.bfloat16)
    visibility = Visibility(torch.zeros(64, dtype=torch.long))
    exact = whole(*(one.double() for one in tensors), visibility, WIDTH**-0.5, None)
    key, value = (one.repeat_interleave(GROUPS, 1) for one in tensors[1:])
    theirs = F.scaled_dot_product_attention(tensors[0], key, value, is_causal=True)
    ours, _ = in_chunks(tensors, visibility, [16] * 4, torch.ones_like(theirs), scale=WIDTH**-0.5)
    errors = [float((one.double() - exact).detach().norm()) for one in (ours, theirs)]
    assert errors[0] < 1.2 * errors[1]


def test_blocks_out_of_sight_are_not_touched():
    visibility = Visibility(torch.tensor([0] * 8 + [1] * 16), window=6)
    assert visibility.between((16, 24), (0, 8)) is False  # another document
    assert visibility.between((22, 24), (8, 16)) is False  # beyond the window
    assert visibility.between((12, 14), (10, 12)) is True
    assert visibility.between((8, 12), (8, 12)) == "causal"
    assert visibility.between((16, 24), (8, 16)).sum() == 5 + 4 + 3 + 2 + 1


def test_a_chunk_whose_prefix_is_missing_is_refused():
    tensors = states(8)
    store = KeyValueStore([(0, 8), (8, 16)])
    with pytest.raises(ShapeError, match=r"chunk=0 has no keys.*from first to last"):
        streamed_attention(*tensors, store, 1, Visibility(torch.zeros(16, dtype=torch.long)), scale=1.0)
