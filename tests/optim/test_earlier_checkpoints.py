"""Checkpoints that earlier code wrote go on as they would have gone on then."""

import pytest
import torch
from optimizer_checkpoints import CASES, FIXTURE, digest, machine, run, sample

from featherweight.optim import optimizers

WRITTEN = torch.load(FIXTURE, weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_written_before_the_house_was_rebuilt_resumes_bit_by_bit(name):
    # Mutation: rename a key of the state, draw other random numbers, or round a moment once more.
    written = WRITTEN["cases"][name]
    model, optimizer = next(run(CASES[name], written["state"]))
    if WRITTEN["machine"] == machine():
        assert digest(model) == written["digest"]
    # Other processors sum in another order: 1e-6 of an update, and now and then a neighbouring code of a moment. A
    # state that was misread moves weights by lr = 2^-6 a step.
    difference = sample(model) - written["sample"]
    assert difference.square().mean().sqrt() < 0.1 * 2**-6


@pytest.mark.parametrize("name", CASES)
def test_states_have_the_names_shapes_and_types_that_they_had(name):
    states = next(run(CASES[name], None))[1].state_dict()["state"]
    written = WRITTEN["cases"][name]["state"]["state"]
    have, want = (
        {(i, key): (tuple(value.shape), value.dtype) for i, state in each.items() for key, value in state.items()}
        for each in (states, written)
    )
    assert have == want


def test_every_optimizer_of_the_registry_has_a_checkpoint():
    tried = {CASES[name].optimizer for name in CASES}
    classes = {preset.optimizer for name, preset in ((name, optimizers.get(name)) for name in optimizers.names())}
    assert {one for one in classes if isinstance(one, type)} <= tried
