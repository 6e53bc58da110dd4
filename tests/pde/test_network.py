"""The network of a recipe: ours, or neuraloperator's with the same weights."""

import pytest
import torch

from featherweight.pde import PdeConfig, PdeTask

SMALL = {"resolution": 8, "n_train": 10, "n_test": 4, "n_modes": [4, 4], "hidden_channels": 4, "n_layers": 2}


@pytest.mark.filterwarnings("ignore")
def test_models_of_neuraloperator_are_trained_unchanged():
    pytest.importorskip("neuralop.models", exc_type=ImportError)
    task = PdeTask(PdeConfig(**SMALL, model="neuraloperator"), seed=0)
    ours = PdeTask(PdeConfig(**SMALL), seed=0).build_model()
    theirs = task.build_model()
    ours.model.load_state_dict(theirs.model.state_dict())
    torch.testing.assert_close(theirs(task.train.x), ours(task.train.x), rtol=1e-4, atol=1e-6)
