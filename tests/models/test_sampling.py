import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from featherweight.errors import ShapeError
from featherweight.models.sampling import Sampling, choose, probabilities


def logits(rows=3, vocabulary=50, seed=0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (5, None), (None, 0.7), (9, 0.7), (1, None), (None, 1e-9)])
def test_the_distribution_is_that_of_transformers(top_k, top_p):
    scores = logits() / 0.6
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p:
        scores = TopPLogitsWarper(top_p)(None, scores)
    ours = probabilities(logits(), Sampling(temperature=0.6, top_k=top_k, top_p=top_p))
    # Two normalisations in float32 of 50 numbers each.
    torch.testing.assert_close(ours, scores.softmax(-1), rtol=1e-5, atol=1e-7)


def test_without_a_temperature_the_likeliest_token_is_taken_and_no_number_drawn():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(choose(logits(), Sampling(), generator), logits().argmax(1))
    assert torch.equal(generator.get_state(), before)


def test_draws_follow_the_distribution():
    # 100,000 draws of a share p deviate by sqrt(p (1 - p) / 100,000) < 0.0016; three times that, and a half more.
    row = torch.tensor([[0.0, 1.0, 2.0]])
    drawn = choose(row.expand(100_000, -1), Sampling(temperature=1.0), torch.Generator().manual_seed(0))
    shares = drawn.bincount(minlength=3) / 100_000
    torch.testing.assert_close(shares, row[0].softmax(0), rtol=0, atol=0.007)


def test_as_many_generators_as_rows_are_asked_for():
    with pytest.raises(ShapeError, match="generators=2 do not fit a batch of 3 rows"):
        choose(logits(), Sampling(temperature=1.0), [torch.Generator()] * 2)
