"""Neural operators for partial differential equations: data, model, metrics, pictures, and the task for `fw train`."""

from featherweight.optim.param_groups import tensor_param_groups as param_groups
from featherweight.pde.advection import solve_advection
from featherweight.pde.burgers import solve_burgers
from featherweight.pde.darcy import solve_darcy
from featherweight.pde.files import FieldPairs, read_pairs, write_pairs
from featherweight.pde.fno import FNO
from featherweight.pde.generation import generate, sample_pairs
from featherweight.pde.metrics import error_by_shell, largest_error, relative_h1, relative_l2
from featherweight.pde.navier_stokes import kolmogorov_forcing, solve_navier_stokes
from featherweight.pde.operator import FieldOperator
from featherweight.pde.options import PdeConfig
from featherweight.pde.pictures import draw_fields, draw_spectra
from featherweight.pde.problems import BurgersConfig, DarcyConfig, NavierStokesConfig
from featherweight.pde.random_field import neumann_field, periodic_field
from featherweight.pde.reaction_diffusion import solve_reaction_diffusion
from featherweight.pde.shallow_water import solve_shallow_water
from featherweight.pde.task import PdeTask
from featherweight.pde.wave_problems import AdvectionConfig, ReactionDiffusionConfig, ShallowWaterConfig

__all__ = [
    "FNO",
    "AdvectionConfig",
    "BurgersConfig",
    "DarcyConfig",
    "FieldOperator",
    "FieldPairs",
    "NavierStokesConfig",
    "PdeConfig",
    "PdeTask",
    "ReactionDiffusionConfig",
    "ShallowWaterConfig",
    "draw_fields",
    "draw_spectra",
    "error_by_shell",
    "generate",
    "kolmogorov_forcing",
    "largest_error",
    "neumann_field",
    "param_groups",
    "periodic_field",
    "read_pairs",
    "relative_h1",
    "relative_l2",
    "sample_pairs",
    "solve_advection",
    "solve_burgers",
    "solve_darcy",
    "solve_navier_stokes",
    "solve_reaction_diffusion",
    "solve_shallow_water",
    "write_pairs",
]
