"""Pairs of fields in files: ours, those of others, and refusals."""

import numpy as np
import pytest
import torch
from pde_fields import SMALL_PROBLEMS as SMALL
from pde_fields import write_hdf5

from featherweight.errors import ConfigError
from featherweight.pde.files import read_pairs, write_pairs, write_torch
from featherweight.pde.generation import generate
from featherweight.pde.options import PdeConfig
from featherweight.pde.task import PdeTask


def test_layout_is_that_of_neuraloperator(tmp_path):
    (path,) = generate("darcy", tmp_path, n=2, n_test=0, config=SMALL["darcy"])
    content = torch.load(path, weights_only=True)
    assert content["x"].shape == content["y"].shape == (2, 9, 9)


def test_files_of_others_are_read(tmp_path):
    x, y = torch.rand(3, 4, 4) > 0.5, torch.rand(3, 4, 4)
    write_pairs(tmp_path / "a.pt", x, y, {"visc": torch.tensor(0.01)})
    np.savez(tmp_path / "a.npz", coeff=x.numpy(), sol=y.numpy())
    from safetensors.torch import save_file

    save_file({"a": x, "u": torch.stack([y - 1, y], dim=-1)}, tmp_path / "a.safetensors")
    for name, options in (("a.pt", {}), ("a.npz", {}), ("a.safetensors", {"y_index": -1})):
        pairs = read_pairs(tmp_path / name, **options)
        assert torch.equal(pairs.x, x.float()) and torch.equal(pairs.y, y)


def test_unreadable_files_are_explained(tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    torch.save({"x": torch.zeros(2), "z": torch.zeros(2)}, tmp_path / "no_y.pt")
    torch.save({"x": torch.zeros(2), "y": torch.zeros(3)}, tmp_path / "lengths.pt")
    for name, message in (
        ("bad.pt", "cannot be read"),
        ("missing.pt", "cannot be read"),
        ("no_y.pt", "no array named y or u"),
        ("lengths.pt", "as many inputs as solutions"),
        ("a.csv", "unknown ending"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_pairs(tmp_path / name)


def test_one_array_over_time_gives_its_first_and_last_time(tmp_path):
    u = np.random.default_rng(0).random((6, 5, 32), dtype=np.float32)
    coordinates = {"x-coordinate": np.linspace(0, 1, 32), "t-coordinate": np.linspace(0, 2, 6)}
    path = write_hdf5(tmp_path / "burgers.hdf5", {"tensor": u, **coordinates})
    pairs = read_pairs(path)
    assert np.array_equal(pairs.x, u[:, 0]) and np.array_equal(pairs.y, u[:, -1])
    assert pairs.origin == "tensor (n t x, index 0) -> tensor (n t x, index -1)"
    later = read_pairs(path, x_key="tensor", y_key="tensor", x_index=1, y_index=3)
    assert np.array_equal(later.x, u[:, 1]) and np.array_equal(later.y, u[:, 3])
    bare = write_hdf5(tmp_path / "bare.hdf5", {"tensor": u})
    with pytest.raises(ConfigError, match="one array of shape .*axis of times is not known"):
        read_pairs(bare)
    assert np.array_equal(read_pairs(bare, y_axes="ntx").y, u[:, -1])


def test_times_behind_the_points_become_channels_and_an_index_chooses_one(tmp_path):
    a, u = torch.rand(5, 8, 8), torch.rand(5, 8, 8, 3)
    write_torch(tmp_path / "ns.pt", {"a": a, "u": u})
    assert torch.equal(read_pairs(tmp_path / "ns.pt").y, u.movedim(-1, 1))
    assert torch.equal(read_pairs(tmp_path / "ns.pt", y_index=-1).y, u[..., -1])
    write_torch(tmp_path / "square.pt", {"a": a, "u": torch.rand(5, 8, 8, 8)})
    with pytest.raises(ConfigError, match="more than one way"):
        read_pairs(tmp_path / "square.pt", y_index=-1)
    assert read_pairs(tmp_path / "square.pt", y_axes="nxyt", y_index=-1).y.shape == (5, 8, 8)
    with pytest.raises(ConfigError, match="fields|inputs"):
        options = {"n_modes": [4, 4], "hidden_channels": 4, "n_layers": 1}
        PdeTask(PdeConfig(data=str(tmp_path / "square.pt"), **options), seed=0)
