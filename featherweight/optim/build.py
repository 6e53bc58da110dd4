"""Optimizers by name: strict options for recipes, and the step from options to an optimizer.

The options of a recipe are those that `options.py` declares, as a pydantic class for each family, and those that shape
the parameter groups or the loop around the optimizer, which stand here.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, create_model
from torch import nn

from featherweight.config import Config
from featherweight.errors import ConfigError
from featherweight.optim.group_rates import scale_embedding_lr, scale_matrix_lr
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import options_of
from featherweight.optim.param_groups import (
    exempt_vectors_from_decay,
    param_groups,
    tensor_param_groups,
)
from featherweight.optim.presets.adamw import AdamW
from featherweight.optim.presets.apollo import Apollo, ApolloMini
from featherweight.optim.presets.arguments import arguments_of
from featherweight.optim.presets.fira import Fira
from featherweight.optim.presets.galore import GaLoreAdamW
from featherweight.optim.presets.galore_adafactor import GaLoreAdafactor
from featherweight.optim.presets.gum import GUM
from featherweight.optim.presets.ldadam import LDAdamW
from featherweight.optim.presets.q_galore import QGaLoreAdamW
from featherweight.optim.presets.scale import Scale, scale_param_groups
from featherweight.optim.presets.tensor_galore import TensorGaLoreAdamW, TensorGRaD
from featherweight.registry import Registry
from featherweight.selection import ALL_LINEAR

PresetClass = type[LowRankOptimizer]


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

    target_modules: str | list[str] = ALL_LINEAR
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


class NamedOptimizer(NamedTuple):
    """What a name stands for."""

    config: type[OptimizerConfig]
    """Options of its family."""
    values: Mapping[str, Any]
    """Values in which it differs from their defaults."""
    optimizer: PresetClass
    methods: tuple[str, ...] = ()
    """Methods that a recipe with this optimizer applies first, unless it lists them with options of its own."""
    build: Callable[[nn.Module, Any], Any] | None = None
    """Builds one of another kind, from a model and its options; see `own.py`."""


def _config_of(preset: PresetClass, base: type[OptimizerConfig], others: Mapping[str, Any]) -> type[OptimizerConfig]:
    """Return the options class of a family, with the defaults of a preset, or others that suit recipes better."""
    arguments = arguments_of(preset)
    defaults = {**arguments.own_defaults, **others}
    fields: dict[str, Any] = {
        name: (
            option.kind,
            Field(defaults.get(name, option.default), description=option.meaning, **dict[str, Any](option.limits)),
        )
        for name, option in options_of(arguments.family).items()
        if name not in (*NOT_IN_RECIPES, *arguments.fixed)
    }
    name = arguments.family.__name__.replace("Options", "Config")
    model = create_model(name, __base__=base, __module__=__name__, **fields)
    globals()[name] = model  # where pickle looks for it
    return model


_TABLE: tuple[tuple[str, PresetClass, dict[str, Any]], ...] = (
    ("adamw", AdamW, {}),
    ("adamw_8bit", AdamW, {"state_bits": 8}),
    ("adamw_4bit", AdamW, {"state_bits": 4}),
    ("galore", GaLoreAdamW, {}),
    ("galore_8bit", GaLoreAdamW, {"state_bits": 8, "basis_bits": 16}),
    ("galore_4bit", GaLoreAdamW, {"state_bits": 4, "basis_bits": 8}),
    ("q_galore", QGaLoreAdamW, {}),
    ("galore_adafactor", GaLoreAdafactor, {}),
    ("apollo", Apollo, {}),
    ("apollo_mini", ApolloMini, {"rank": 1, "scale": 128.0, "residual": "apollo_tensor"}),
    ("fira", Fira, {}),
    ("ldadam", LDAdamW, {}),
    ("gum", GUM, {}),
    ("scale", Scale, {}),
    ("tensor_galore", TensorGaLoreAdamW, {}),
    ("tensor_galore_8bit", TensorGaLoreAdamW, {"state_bits": 8}),
    ("tensorgrad", TensorGRaD, {"rank": 0.20, "sparse_ratio": 0.05}),
)
_BASES: dict[PresetClass, type[OptimizerConfig]] = {
    AdamW: OptimizerConfig,
    Scale: OptimizerConfig,
    TensorGaLoreAdamW: TensorSelection,
}
_OF_RECIPES: dict[PresetClass, dict[str, Any]] = {
    AdamW: {"weight_decay": 0.0},
    GaLoreAdafactor: {"betas": (0.9, 0.0)},
    TensorGaLoreAdamW: {"scale": "auto"},
}
"""Where recipes have other defaults than classes: comparisons want like beside like."""
_METHODS = {"q_galore": ("int8",)}

optimizers: Registry[NamedOptimizer] = Registry("optimizer", "featherweight.optimizers")
_configs: dict[type, type[OptimizerConfig]] = {}
for _name, _preset, _values in _TABLE:
    _family = arguments_of(_preset).family
    if _family not in _configs:  # names of one family share a class; the first has its defaults
        _base = _BASES.get(_preset, MatrixSelection)
        _configs[_family] = _config_of(_preset, _base, _OF_RECIPES.get(_preset, {}))
    optimizers.register(_name, NamedOptimizer(_configs[_family], _values, _preset, _METHODS.get(_name, ())))


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


Regroup = Callable[[nn.Module, float, list[dict[str, Any]]], list[dict[str, Any]]]
"""Divides the groups of a model further, from the base rate: what methods want of the optimizer."""


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    *,
    seed: int = 0,
    decay_vectors: bool = True,
    regroup: Regroup | None = None,
) -> LowRankOptimizer:
    """Return the optimizer that `config` describes for the trainable parameters of `model`.

    Args:
        model: on its final device, in its final dtype.
        config: from `parse_optimizer`.
        seed: of random bases and of stochastic rounding.
        decay_vectors: whether `weight_decay` acts on norms and biases too; transformers.Trainer leaves them out.
        regroup: divides the groups further, such as `featherweight.methods.groups_by_methods`.
    Raises:
        ConfigError: if target_modules select nothing.
    """
    if (build := optimizers.get(config.name).build) is not None:
        own: LowRankOptimizer = build(model, config)
        return own
    if isinstance(config, MatrixSelection):
        groups = param_groups(model, config.target_modules, config.exclude_modules)
    elif isinstance(config, TensorSelection):
        shared = {key: getattr(config, key) for key in ("min_numel", "scale", "complex_pair")}
        groups = tensor_param_groups(model, config.target_modules, config.exclude_modules, **shared)
    elif optimizers.get(config.name).optimizer is Scale:
        groups = scale_param_groups(model)
    else:
        groups = [{"params": [(n, p) for n, p in model.named_parameters() if p.requires_grad], "low_rank": False}]
    groups = scale_embedding_lr(groups, model, config.lr, config.embedding_lr_factor)
    if config.matrix_lr_factor != 1.0:
        groups = scale_matrix_lr(groups, model, config.lr, config.matrix_lr_factor)
    if regroup is not None:
        groups = regroup(model, config.lr, groups)
    if config.weight_decay and not decay_vectors:
        groups = exempt_vectors_from_decay(groups)
    preset: Callable[..., LowRankOptimizer] = (named := optimizers.get(config.name)).optimizer
    options = config.model_dump(include=set(options_of(arguments_of(named.optimizer).family)))
    return preset(groups, seed=seed, **options)
