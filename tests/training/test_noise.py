"""Random numbers of a repeated computation."""

import pytest
import torch
from torch import nn

from featherweight.training.noise import Noise


def test_a_repetition_draws_what_was_drawn_and_leaves_the_generator_alone():
    layer, noise = nn.Dropout(0.5), Noise(nn.Dropout(0.5))
    noise.note("one")
    first = layer(torch.ones(64))
    after = torch.get_rng_state()
    noise.note("two")
    layer(torch.ones(64))
    state = torch.get_rng_state()
    with noise.again("one"):
        assert torch.equal(layer(torch.ones(64)), first)
    assert torch.equal(torch.get_rng_state(), state) and not torch.equal(state, after)
    with pytest.raises(KeyError):  # each is repeated once
        with noise.again("one"):
            pass


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Dropout(0.5).eval(), nn.Dropout(0.0)])
def test_nothing_is_noted_for_a_model_that_draws_nothing(model):
    noise = Noise(model)
    noise.note("one")
    assert not noise.is_needed
    with noise.again("another"):
        pass
