"""Optimizers by name: strict options for recipes, and the step from options to an optimizer.

A name stands for an options class and the values in which it differs from that class' defaults.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field
from torch import nn

from featherweight.config import Config
from featherweight.errors import ConfigError
from featherweight.optim.adamw import AdamW
from featherweight.optim.galore import GaLoreAdamW
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.param_groups import param_groups, scale_embedding_lr
from featherweight.registry import Registry
from featherweight.selection import ALL_LINEAR

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """Options of full-rank AdamW, which every other optimizer has too."""

    name: str
    """Which optimizer: a name of the registry."""
    lr: float = Field(default=1e-3, ge=0)
    """Learning rate at the top of the schedule."""
    embedding_lr_factor: float = Field(default=1.0, gt=0)
    """Multiplier of lr for embeddings and output head."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the first and second moment, each in [0, 1)."""
    eps: float = Field(default=1e-8, ge=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay; acts with factor lr."""
    state_bits: Literal[32, 16, 8, 4] = 32
    """Bits of each stored moment element."""
    stochastic_rounding: bool = True
    """Write bfloat16 weights with stochastic rounding instead of to nearest."""


class GaLoreConfig(OptimizerConfig):
    """Options of GaLore; see `GaLoreAdamW`."""

    rank: int | float = Field(default=128, gt=0)
    """R; a fraction of min(M, N) if between 0 and 1."""
    update_proj_gap: int = Field(default=200, ge=1)
    """Optimizer steps between refreshes of a basis."""
    scale: float = Field(default=0.25, gt=0)
    """Factor of the update of projected matrices; their learning rate is lr * scale."""
    proj_type: Literal["std", "reverse_std", "left", "right", "full", "min_memory"] = "std"
    """Side of the basis."""
    basis_bits: Literal[32, 16, 8, 4] | None = None
    """Bits of each basis element; None: 16 for 16-bit weights, else 32."""
    basis_method: Literal["auto", "svd", "gram", "randomized", "subspace_iteration", "random"] = "auto"
    """How a basis is computed."""
    moment_policy: Literal["rotate", "keep", "reset"] = "rotate"
    """What a refresh does to the moments."""
    stagger: bool = True
    """Spread the refreshes over the gap."""
    residual: Literal["fira"] | None = None
    """What becomes of the gradient outside the subspace: dropped, or scaled and added (Fira)."""
    target_modules: str | list[str] = ALL_LINEAR
    """Modules whose matrices are projected: all-linear, a regular expression, or a list of names."""
    exclude_modules: str | list[str] = []
    """Modules left out, same forms."""


def _build_adamw(model: nn.Module, config: OptimizerConfig, seed: int) -> LowRankOptimizer:
    groups = [{"params": [(n, p) for n, p in model.named_parameters() if p.requires_grad], "low_rank": False}]
    groups = scale_embedding_lr(groups, model, config.lr, config.embedding_lr_factor)
    return AdamW(groups, seed=seed, **config.model_dump(exclude=NOT_OPTIMIZER_OPTIONS))


def _build_galore(model: nn.Module, config: GaLoreConfig, seed: int) -> LowRankOptimizer:
    groups = param_groups(model, config.target_modules, config.exclude_modules)
    groups = scale_embedding_lr(groups, model, config.lr, config.embedding_lr_factor)
    return GaLoreAdamW(groups, seed=seed, **config.model_dump(exclude=NOT_OPTIMIZER_OPTIONS))


NOT_OPTIMIZER_OPTIONS = {"name", "embedding_lr_factor", "target_modules", "exclude_modules"}
"""Options that shape the parameter groups."""


class Preset(NamedTuple):
    """What a name stands for: options, the values in which it differs from their defaults, and how to build it."""

    config: type[OptimizerConfig]
    values: Mapping[str, Any]
    build: Callable[[nn.Module, Any, int], LowRankOptimizer]


optimizers: Registry[Preset] = Registry("optimizer")
optimizers.register("adamw", Preset(OptimizerConfig, {}, _build_adamw))
optimizers.register("adamw_8bit", Preset(OptimizerConfig, {"state_bits": 8}, _build_adamw))
optimizers.register("adamw_4bit", Preset(OptimizerConfig, {"state_bits": 4}, _build_adamw))
optimizers.register("galore", Preset(GaLoreConfig, {}, _build_galore))
optimizers.register("galore_8bit", Preset(GaLoreConfig, {"state_bits": 8, "basis_bits": 16}, _build_galore))
optimizers.register("galore_4bit", Preset(GaLoreConfig, {"state_bits": 4, "basis_bits": 8}, _build_galore))


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


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, seed: int = 0) -> LowRankOptimizer:
    """Return the optimizer that `config` describes for the trainable parameters of `model`.

    Args:
        model: on its final device, in its final dtype.
        config: from `parse_optimizer`.
        seed: of random bases and of stochastic rounding.
    Raises:
        ConfigError: if target_modules select nothing.
    """
    return optimizers.get(config.name).build(model, config, seed)
