"""The task by shape alone: its predicted memory is that of the task."""

import pytest

from featherweight import estimate_memory
from featherweight.errors import ConfigError
from featherweight.pde import PdeConfig, PdeTask, generate
from featherweight.pde.problem_options import DarcyConfig
from featherweight.training.dry_run import measure

TASK = {"name": "pde", "data": "navier_stokes", "resolution": 16, "n_train": 8, "n_test": 2, "n_modes": [8, 8]}
OPTIONS = {"hidden_channels": 8, "n_layers": 6, "problem_options": {"steps": 10, "time_tolerance": None}}


@pytest.mark.parametrize("optimizer", ["adamw", "tensor_galore"])
def test_predicted_bytes_are_the_measured_ones_layers_that_were_not_simulated_among_them(optimizer):
    recipe = {"task": {**TASK, **OPTIONS}, "optimizer": optimizer, "steps": 3, "micro_batch_size": 4}
    found = estimate_memory(None, recipe, device="cpu")
    measured, _ = measure(recipe)
    assert not found.is_whole and found.tokens_per_step == 4
    assert found.peak_bytes == measured.peak_bytes
    maxima = found.timeline.max_by_category(2)
    assert {str(name): count for name, count in maxima.items()} == measured.measured


def test_shapes_are_those_of_files_and_of_generated_problems(tmp_path):
    generate("darcy", tmp_path, n=2, n_test=1, config=DarcyConfig(resolution=9))
    options = {"n_modes": [4, 4], "hidden_channels": 4, "n_layers": 2}
    for data in ({"data": str(tmp_path)}, {"data": "darcy", "resolution": 9}):
        skeleton = PdeTask.skeleton(PdeConfig(**data, **options), seed=0)
        batch = next(skeleton.batches("train", micro_batch_size=3))
        assert batch["x"].shape == batch["y"].shape == (3, 1, 9, 9)
    config = PdeConfig(data="burgers", resolution=16, n_modes=[4], problem_options={"snapshots": 5})
    assert next(PdeTask.skeleton(config, seed=0).batches("train", micro_batch_size=2))["y"].shape == (2, 5, 16)
    with pytest.raises(ConfigError, match="n_modes=.* do not fit burgers"):
        PdeTask.skeleton(PdeConfig(data="burgers", n_modes=[4, 4]), seed=0)
