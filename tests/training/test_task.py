import inspect

import pytest
import torch

from featherweight import training
from featherweight.training.task import Task, tasks

SMALL = {
    "regression": {},
    "pde": {"data": "darcy", "resolution": 12, "n_train": 12, "n_test": 4, "n_modes": [4, 4], "hidden_channels": 4},
    "text": {"model": "tiny", "seq_len": 32, "max_train_tokens": 1000, "max_held_out_tokens": 200},
}
"""Options that make each task small enough for these tests."""


def build(name: str, seed: int = 3) -> Task:
    task_class = tasks.get(name)
    return task_class(task_class.Config.parse(SMALL[name]), seed=seed)


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_has_the_methods_of_the_contract_with_their_arguments(name):
    for member, function in inspect.getmembers(Task, inspect.isfunction):
        if member.startswith("__") and member != "__init__":
            continue
        own = getattr(tasks.get(name), member)
        assert list(inspect.signature(own).parameters) == list(inspect.signature(function).parameters), member


@pytest.mark.parametrize("name", tasks.names())
def test_skipping_micro_batches_equals_drawing_them(name):
    task = build(name)
    through = task.batches("train", micro_batch_size=4, seed=1)
    for _ in range(9):  # further than one epoch of either task
        next(through)
    skipped = next(task.batches("train", micro_batch_size=4, seed=1, start=9))
    drawn = next(through)
    assert drawn.keys() == skipped.keys()
    assert all(torch.equal(drawn[key], skipped[key]) for key in drawn)


@pytest.mark.parametrize("name", tasks.names())
def test_the_loss_is_a_float_sum_over_the_counted_items(name):
    task = build(name)
    torch.manual_seed(0)
    model = task.build_model()
    batch = next(task.batches("train", micro_batch_size=4, seed=0))
    loss, count = task.loss(model, batch)
    assert count == task.item_count(batch) >= 4
    assert loss.dtype == torch.float32 and loss.shape == () and loss.requires_grad
    halves = [
        task.loss(model, {key: tensor[part] for key, tensor in batch.items()})[0].item()
        for part in (slice(2), slice(2, 4))
    ]
    # A float32 sum in two parts instead of one.
    assert sum(halves) == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("name", tasks.names())
def test_an_evaluation_measures_the_held_out_loss_and_leaves_the_mode(name):
    task = build(name)
    model = task.build_model().train()
    metrics = task.evaluate(model, micro_batch_size=2)
    assert metrics["held_out_loss"] > 0 and model.training
    assert task.evaluate(model.eval(), micro_batch_size=2) == metrics and not model.training


def test_the_public_names_of_the_package_load_on_first_use():
    for name in training.__all__:
        assert getattr(training, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Recpie'"):
        training.Recpie  # noqa: B018
