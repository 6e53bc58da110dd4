"""Neural operators for partial differential equations: data, model, metrics, pictures, and the task for `fw train`.

Names load on first use: the options of a recipe are judged before torch is imported.
"""

from typing import TYPE_CHECKING, Any

from featherweight.lazy_names import load_name

if TYPE_CHECKING:
    from featherweight.optim.groups import tensor_param_groups as param_groups
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
    from featherweight.pde.problem_options import BurgersConfig, DarcyConfig, NavierStokesConfig
    from featherweight.pde.random_field import neumann_field, periodic_field
    from featherweight.pde.reaction_diffusion import solve_reaction_diffusion
    from featherweight.pde.shallow_water import solve_shallow_water
    from featherweight.pde.task import PdeTask
    from featherweight.pde.wave_options import AdvectionConfig, ReactionDiffusionConfig, ShallowWaterConfig

_LAZY = {
    "AdvectionConfig": "featherweight.pde.wave_options",
    "ReactionDiffusionConfig": "featherweight.pde.wave_options",
    "ShallowWaterConfig": "featherweight.pde.wave_options",
    "solve_advection": "featherweight.pde.advection",
    "solve_reaction_diffusion": "featherweight.pde.reaction_diffusion",
    "solve_shallow_water": "featherweight.pde.shallow_water",
    "BurgersConfig": "featherweight.pde.problem_options",
    "DarcyConfig": "featherweight.pde.problem_options",
    "FNO": "featherweight.pde.fno",
    "FieldOperator": "featherweight.pde.operator",
    "FieldPairs": "featherweight.pde.files",
    "NavierStokesConfig": "featherweight.pde.problem_options",
    "PdeConfig": "featherweight.pde.options",
    "PdeTask": "featherweight.pde.task",
    "draw_fields": "featherweight.pde.pictures",
    "draw_spectra": "featherweight.pde.pictures",
    "error_by_shell": "featherweight.pde.metrics",
    "generate": "featherweight.pde.generation",
    "kolmogorov_forcing": "featherweight.pde.navier_stokes",
    "largest_error": "featherweight.pde.metrics",
    "neumann_field": "featherweight.pde.random_field",
    "param_groups": "featherweight.optim.groups:tensor_param_groups",
    "periodic_field": "featherweight.pde.random_field",
    "read_pairs": "featherweight.pde.files",
    "relative_h1": "featherweight.pde.metrics",
    "relative_l2": "featherweight.pde.metrics",
    "sample_pairs": "featherweight.pde.generation",
    "solve_burgers": "featherweight.pde.burgers",
    "solve_darcy": "featherweight.pde.darcy",
    "solve_navier_stokes": "featherweight.pde.navier_stokes",
    "write_pairs": "featherweight.pde.files",
}

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


def __getattr__(name: str) -> Any:
    return load_name(__name__, _LAZY, name)


def __dir__() -> list[str]:
    return sorted(__all__)
