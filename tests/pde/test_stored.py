"""Arrays as files hold them: MATLAB, HDF5, groups and scalars."""

import numpy as np
import pytest
from pde_fields import write_hdf5

from featherweight.errors import ConfigError
from featherweight.pde.files import read_pairs


def test_matlab_and_hdf5_files_are_read(tmp_path):
    scipy_io, h5py = pytest.importorskip("scipy.io"), pytest.importorskip("h5py")
    x, y = np.random.default_rng(0).random((3, 4, 5)), np.random.default_rng(1).random((3, 4, 5))
    scipy_io.savemat(tmp_path / "old.mat", {"coeff": x, "sol": y, "note": "text"})
    for name, is_matlab in (("a.h5", False), ("new.mat", True)):
        with h5py.File(tmp_path / name, "w", userblock_size=512 if is_matlab else 0) as file:
            file["x"], file["y"] = (x.T, y.T) if is_matlab else (x, y)
    with open(tmp_path / "new.mat", "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")
    for name in ("old.mat", "a.h5", "new.mat"):
        pairs = read_pairs(tmp_path / name)
        assert np.array_equal(pairs.x.numpy(), x) and np.array_equal(pairs.y.numpy(), y)


def test_a_group_for_each_sample_is_read_as_one_array(tmp_path):
    u = np.random.default_rng(0).random((3, 4, 8, 6, 2), dtype=np.float32)
    grid = {"t": np.arange(4.0), "x": np.arange(8.0), "y": np.arange(6.0)}
    arrays = {f"{i:04d}/data": one for i, one in enumerate(u)}
    bare = write_hdf5(tmp_path / "bare.h5", arrays)
    with pytest.raises(ConfigError, match=r"one array of shape \(3, 4, 8, 6, 2\)"):
        read_pairs(bare)
    arrays |= {f"{i:04d}/grid/{name}": one for i in range(3) for name, one in grid.items()}
    for pairs in (read_pairs(bare, x_axes="ntxyc"), read_pairs(write_hdf5(tmp_path / "whole.h5", arrays))):
        assert np.array_equal(pairs.x, u[:, 0].transpose(0, 3, 1, 2))
        assert np.array_equal(pairs.y, u[:, -1].transpose(0, 3, 1, 2))


def test_numbers_beside_the_fields_are_no_inputs_and_darcy_of_pdebench_is_found(tmp_path):
    a, u = np.random.default_rng(0).random((2, 4, 8, 8), dtype=np.float32)
    path = write_hdf5(tmp_path / "darcy.hdf5", {"nu": a, "tensor": u[:, None], "beta": np.float32(1)})
    pairs = read_pairs(path, dimensions=2)
    assert np.array_equal(pairs.x, a) and np.array_equal(pairs.y, u[:, None])
    scalar = write_hdf5(tmp_path / "scalar.hdf5", {"nu": np.float32(0.01), "u": u, "a": a})
    assert np.array_equal(read_pairs(scalar).x, a)
