"""What the tests of fields share: generators, distances, small problems, and files."""

import pytest
import torch
from torch import Tensor

from featherweight.pde.problem_options import BurgersConfig, DarcyConfig, NavierStokesConfig
from featherweight.pde.wave_options import AdvectionConfig, ReactionDiffusionConfig, ShallowWaterConfig

SMALL_PROBLEMS = {
    "darcy": DarcyConfig(resolution=9),
    "burgers": BurgersConfig(resolution=16, refine=2, steps=10),
    "navier_stokes": NavierStokesConfig(resolution=8, refine=2, steps=10),
    "advection": AdvectionConfig(resolution=16, largest_wavenumber=3),
    "reaction_diffusion": ReactionDiffusionConfig(resolution=8, dimensions=3, steps=10),
    "shallow_water": ShallowWaterConfig(resolution=8, steps=20, time_tolerance=None),
}


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


def error(one: Tensor, two: Tensor) -> float:
    return float(torch.linalg.vector_norm(one - two) / torch.linalg.vector_norm(two))


def write_hdf5(path, arrays):
    with pytest.importorskip("h5py").File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return path
