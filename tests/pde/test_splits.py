"""Which fields are trained on, and which are held out."""

import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.pde import PdeConfig, PdeTask, relative_l2

SMALL = {"resolution": 8, "n_train": 10, "n_test": 4, "n_modes": [4, 4], "hidden_channels": 4, "n_layers": 2}


def test_a_folder_gives_training_data_and_tests_at_every_resolution(folder):
    task = PdeTask(PdeConfig(data=str(folder), n_modes=[4, 4], hidden_channels=4, n_layers=1), seed=0)
    assert list(task.tests) == ["9", "17"] and len(task.train) == 10 and not task.is_periodic
    model = task.build_model()
    metrics = task.evaluate(model, micro_batch_size=3)
    expected = {f"{kind}{end}" for kind in ("l2", "h1", "h1_periodic", "max_error") for end in ("", "_17")}
    assert set(metrics) == {"held_out_loss", *expected}
    prediction = task.predict(model, task.tests["17"].x, micro_batch_size=2)
    assert metrics["l2_17"] == pytest.approx(float(relative_l2(prediction, task.tests["17"].y).mean()))
    assert metrics["h1"] == metrics["held_out_loss"] != metrics["h1_periodic"]


def test_a_single_file_is_divided(folder):
    path = folder / "darcy_train_9.pt"
    task = PdeTask(PdeConfig(data=str(path), n_modes=[4, 4], hidden_channels=4), seed=0)
    assert (len(task.train), len(task.tests["9"])) == (9, 1)


def test_files_of_darcy_flow_do_not_wrap_around_whatever_the_folder_is_called(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("fields")
    for path in folder.glob("*_9.pt"):
        (other / path.name).write_bytes(path.read_bytes())
    assert "darcy" not in str(other)
    options = {"data": str(other), "n_modes": [4, 4], "hidden_channels": 4}
    assert not PdeTask(PdeConfig(**options), seed=0).is_periodic
    assert PdeTask(PdeConfig(**options, periodic=True), seed=0).is_periodic


def test_files_whose_points_or_channels_do_not_go_together_are_refused(tmp_path):
    torch.save({"x": torch.rand(4, 8, 8), "y": torch.rand(4, 2, 8, 8)}, tmp_path / "two.pt")
    torch.save({"x": torch.rand(4, 8, 8), "y": torch.rand(4, 8, 8)}, tmp_path / "one.pt")
    options = {"n_modes": [4, 4], "hidden_channels": 4, "data": str(tmp_path / "one.pt")}
    with pytest.raises(ConfigError, match="solutions of the test set of resolution 8 have 2 channels"):
        PdeTask(PdeConfig(**options, test_data=[str(tmp_path / "two.pt")]), seed=0)
