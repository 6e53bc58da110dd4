"""Pictures of fields and of spectra."""

import pytest
import torch

from featherweight.pde import PdeTask, draw_fields, draw_spectra
from featherweight.training import train

SMALL = {"resolution": 8, "n_train": 10, "n_test": 4, "n_modes": [4, 4], "hidden_channels": 4, "n_layers": 2}


RECIPE = {
    "task": {"name": "pde", **SMALL},
    "optimizer": {"name": "tensor_galore", "lr": 0.01, "update_proj_gap": 3, "min_numel": 1},
    "steps": 7,
    "micro_batch_size": 4,
    "memory_steps": [2],
}


def test_a_run_leaves_pictures_and_what_several_of_them_need(tmp_path):
    run = train({**RECIPE, "steps": 1, "memory_steps": []}, out=tmp_path / "run", callbacks=[])
    assert {"fields.png", "spectra.png", "fields.pt"} <= {path.name for path in run.folder.iterdir()}
    made = PdeTask.illustrate_together({"a": run.folder, "b": run.folder, "c": tmp_path}, tmp_path)
    assert [path.name for path in made] == ["fields.png", "spectra.png"]


@pytest.mark.parametrize("dimensions", [1, 2])
def test_pictures_are_drawn(dimensions, tmp_path):
    shape = (3,) + (16,) * dimensions
    y = torch.randn(shape)
    draw_fields(tmp_path / "fields.png", y, y, {"one": y * 1.1, "two": y}, samples=2)
    draw_spectra(tmp_path / "spectra.png", y, {"one": y * 1.1})
    for name in ("fields.png", "spectra.png"):
        content = (tmp_path / name).read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 5000
