"""Optimizers by name: strict options for recipes, without torch.

The options of a recipe are those that `options.py` declares, as a pydantic class for each family, and those that shape
the parameter groups or the loop around the optimizer, which stand here. `build.py` goes from options to an optimizer.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, create_model

from featherweight.config import Config
from featherweight.errors import ConfigError
from featherweight.optim.options import (
    ALWAYS_GIVEN,
    AdafactorOptions,
    AdamWOptions,
    ScaleOptions,
    TensorOptions,
    options_of,
)
from featherweight.optim.presets import arguments as presets
from featherweight.optim.presets.arguments import Arguments
from featherweight.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from featherweight.optim.low_rank import LowRankOptimizer


class OptimizerConfig(Config):
    """Options of every optimizer of a recipe, beside those that its family declares."""

    name: str
    """Which optimizer: a name of the registry."""
    embedding_lr_factor: float = Field(default=1.0, gt=0)
    """Multiplier of lr for embeddings and output head."""
    matrix_lr_factor: float = Field(default=1.0, gt=0)
    """Multiplier of lr for the matrices of linear layers, factors of low rank among them: a rate of their own beside
    that of embeddings, output head and norms."""
    layerwise: bool = False
    """Update each weight inside the backward pass and free its gradient at once."""
    max_grad_norm: float | None = Field(default=None, gt=0)
    """Gradients are scaled down to this norm; None takes the recipe's `max_grad_norm`."""
    clip: Literal["delayed", "per_tensor", "norm_growth", "projected"] = "delayed"
    """How a layer-wise optimizer keeps `max_grad_norm`; see `fw.optim.layerwise`."""
    if TYPE_CHECKING:  # what all families declare
        lr: float
        weight_decay: float
        state_bits: int


class MatrixSelection(OptimizerConfig):
    """Which matrices are projected."""

    target_modules: str | list[str] = "all-linear"
    """Modules whose matrices are projected: all-linear, a regular expression, or a list of names."""
    exclude_modules: str | list[str] = []
    """Modules left out, same forms."""


class TensorSelection(OptimizerConfig):
    """Which tensors are projected."""

    target_modules: str | list[str] | None = None
    """Modules whose tensors are projected: a regular expression, a list of names, or None for all."""
    exclude_modules: str | list[str] = []
    """Modules left out, same forms."""


NOT_IN_RECIPES = ("seed", "beta1", "normalize")
"""Options that a recipe says elsewhere, its own `seed` and ``betas[0]``, and one that each group has of its own."""


@dataclass(frozen=True)
class NamedOptimizer:
    """What a name stands for."""

    config: type[OptimizerConfig]
    """Options of its family."""
    values: Mapping[str, Any]
    """Values in which it differs from their defaults."""
    place: "str | type[LowRankOptimizer]"
    """Its class, or "module:attribute" of it."""
    methods: tuple[str, ...] = ()
    """Methods that a recipe with this optimizer applies first, unless it lists them with options of its own."""
    build: "Callable[[nn.Module, Any], Any] | None" = None
    """Builds one of another kind, from a model and its options; see `own.py`."""

    @property
    def optimizer(self) -> "type[LowRankOptimizer]":
        """Its class, imported if need be."""
        if not isinstance(self.place, str):
            return self.place
        module, _, name = self.place.partition(":")
        found: type[LowRankOptimizer] = getattr(importlib.import_module(module), name)
        return found


class _Preset(NamedTuple):
    """A row of the table below."""

    name: str
    place: str
    arguments: Arguments
    values: Mapping[str, Any] = {}
    methods: tuple[str, ...] = ()


_TABLE = (
    _Preset("adamw", "adamw:AdamW", presets.ADAMW),
    _Preset("adamw_8bit", "adamw:AdamW", presets.ADAMW, {"state_bits": 8}),
    _Preset("adamw_4bit", "adamw:AdamW", presets.ADAMW, {"state_bits": 4}),
    _Preset("galore", "galore:GaLoreAdamW", presets.GALORE),
    _Preset("galore_8bit", "galore:GaLoreAdamW", presets.GALORE, {"state_bits": 8, "basis_bits": 16}),
    _Preset("galore_4bit", "galore:GaLoreAdamW", presets.GALORE, {"state_bits": 4, "basis_bits": 8}),
    _Preset("q_galore", "q_galore:QGaLoreAdamW", presets.Q_GALORE, methods=("int8",)),
    _Preset("galore_adafactor", "galore_adafactor:GaLoreAdafactor", presets.GALORE_ADAFACTOR),
    _Preset("apollo", "apollo:Apollo", presets.APOLLO),
    _Preset("apollo_mini", "apollo:ApolloMini", presets.APOLLO_MINI),
    _Preset("fira", "fira:Fira", presets.FIRA),
    _Preset("ldadam", "ldadam:LDAdamW", presets.LDADAM),
    _Preset("gum", "gum:GUM", presets.LOW_RANK_MUON),
    _Preset("scale", "scale:Scale", presets.SCALE),
    _Preset("tensor_galore", "tensor_galore:TensorGaLoreAdamW", presets.TENSOR_GALORE),
    _Preset("tensor_galore_8bit", "tensor_galore:TensorGaLoreAdamW", presets.TENSOR_GALORE, {"state_bits": 8}),
    _Preset("tensorgrad", "tensor_galore:TensorGRaD", presets.TENSORGRAD),
)
_BASES: dict[type, type[OptimizerConfig]] = {
    AdamWOptions: OptimizerConfig,
    ScaleOptions: OptimizerConfig,
    TensorOptions: TensorSelection,
}
_OF_RECIPES: dict[type, dict[str, Any]] = {
    AdamWOptions: {"weight_decay": 0.0},
    AdafactorOptions: {"betas": (0.9, 0.0)},
    TensorOptions: {"scale": "auto"},
}
"""Where recipes have other defaults than classes: comparisons want like beside like."""


def _config_of(arguments: Arguments) -> type[OptimizerConfig]:
    """Return the options class of a family, with the defaults of a preset, or others that suit recipes better."""
    family = arguments.family
    defaults = {**arguments.own_defaults, **_OF_RECIPES.get(family, {})}
    fields: dict[str, Any] = {
        name: (
            option.kind,
            Field(defaults.get(name, option.default), description=option.meaning, **dict[str, Any](option.limits)),
        )
        for name, option in options_of(family).items()
        if name not in (*NOT_IN_RECIPES, *arguments.fixed)
    }
    name = family.__name__.replace("Options", "Config")
    model = create_model(name, __base__=_BASES.get(family, MatrixSelection), __module__=__name__, **fields)
    globals()[name] = model  # where pickle looks for it
    return model


def _values_of(row: _Preset, first: Arguments) -> dict[str, Any]:
    """Return in what a name differs from the first of its family, whose defaults their shared class has."""
    shared = (*ALWAYS_GIVEN, *_OF_RECIPES.get(row.arguments.family, {}))
    own = {name: value for name, value in row.arguments.defaults.items() if value != first.defaults[name]}
    return {name: value for name, value in own.items() if name not in shared} | dict(row.values)


optimizers: Registry[NamedOptimizer] = Registry("optimizer", "featherweight.optimizers")
_firsts: dict[type, tuple[Arguments, type[OptimizerConfig]]] = {}
for _row in _TABLE:
    if _row.arguments.family not in _firsts:  # names of one family share a class; the first has its defaults
        _firsts[_row.arguments.family] = _row.arguments, _config_of(_row.arguments)
    _first, _config = _firsts[_row.arguments.family]
    _place = f"featherweight.optim.presets.{_row.place}"
    optimizers.register(_row.name, NamedOptimizer(_config, _values_of(_row, _first), _place, _row.methods))


def parse_optimizer(value: str | Mapping[str, Any]) -> OptimizerConfig:
    """Read the optimizer of a recipe.

    Args:
        value: a name, or a mapping with the key `name` and options.
    Returns:
        Complete, checked options.
    Raises:
        ConfigError: for an unknown name or option, or a value out of range.
    Example:
        >>> parse_optimizer({"name": "galore_8bit", "rank": 64}).state_bits
        8
    """
    options = {"name": value} if isinstance(value, str) else dict(value)
    if "name" not in options:
        raise ConfigError(
            f"optimizer: name is missing; expected one of {', '.join(optimizers.names())}. Add 'name: adamw'."
        )
    preset = optimizers.get(options["name"])
    return preset.config.parse({**preset.values, **options}, where="optimizer")


def inherited_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with which an optimizer runs when it is put in the place of another one.

    Names of one family (`galore`, `galore_8bit`, ...) share options, so they keep what was given, apart from what the
    name itself stands for. Across families nothing is kept: a learning rate for GaLore is none for AdamW.

    Args:
        name: the optimizer that takes the place.
        given: `name` and options of the one before.
    Returns:
        `name` and options.
    Example:
        >>> inherited_options("galore_4bit", {"name": "galore_8bit", "rank": 16, "state_bits": 16})
        {'name': 'galore_4bit', 'rank': 16}
        >>> inherited_options("adamw", {"name": "galore_8bit", "rank": 16})
        {'name': 'adamw'}
    """
    if name == given["name"]:
        return dict(given)
    if name not in optimizers or given["name"] not in optimizers:
        return {"name": name}  # whoever reads the options will say which name is unknown
    ours, theirs = optimizers.get(name), optimizers.get(given["name"])
    if ours.config is not theirs.config:
        return {"name": name}
    return {"name": name} | {key: value for key, value in given.items() if key not in {"name", *ours.values}}
