"""What is told of each token."""

import pytest
import torch
from head_losses import assert_equal, make, reference

import featherweight as fw
from featherweight.nn.cross_entropy import TokenStats


def test_stats_tell_entropy_and_hits_without_changing_the_loss(generator):
    hidden, weight, _, labels = make(generator)
    labels = labels.clone()
    logits = hidden @ weight.t()
    labels[5] = logits[5].argmax()
    stats = TokenStats()

    loss = fw.linear_cross_entropy(hidden, weight, labels, chunk_size=10, stats=stats)

    counted = labels != -100
    assert_equal([loss], [reference(hidden, weight, None, labels)])
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert_equal([stats.entropy, stats.logsumexp], [entropy * counted, logits.logsumexp(-1) * counted])
    assert torch.equal(stats.is_top, (logits.argmax(-1) == labels) & counted) and stats.is_top[5]
    assert stats.accuracy == pytest.approx(stats.is_top.sum().item() / counted.sum().item())
