"""Optimizers by name: strict options for recipes, and the step from options to an optimizer.

A name stands for an options class and the values in which it differs from that class' defaults.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field
from torch import nn

from featherweight.config import Config
from featherweight.errors import ConfigError
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.param_groups import exempt_vectors_from_decay, param_groups, scale_embedding_lr
from featherweight.optim.policies.lazy import LazyRefresh
from featherweight.optim.presets.adamw import AdamW
from featherweight.optim.presets.apollo import Apollo, ApolloMini
from featherweight.optim.presets.fira import Fira
from featherweight.optim.presets.galore import GaLoreAdamW
from featherweight.optim.presets.galore_adafactor import GaLoreAdafactor
from featherweight.optim.presets.gum import GUM
from featherweight.optim.presets.ldadam import LDAdamW
from featherweight.optim.presets.q_galore import QGaLoreAdamW
from featherweight.optim.presets.tensor_galore import TensorGaLoreAdamW, TensorGRaD
from featherweight.optim.tensor_groups import tensor_param_groups
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
    layerwise: bool = False
    """Update each weight inside the backward pass and free its gradient at once."""
    max_grad_norm: float | None = Field(default=None, gt=0)
    """Gradients are scaled down to this norm; None takes the recipe's `max_grad_norm`."""
    clip: Literal["delayed", "per_tensor", "norm_growth", "projected"] = "delayed"
    """How a layer-wise optimizer keeps `max_grad_norm`; see `fw.optim.layerwise`."""


class LowRankConfig(OptimizerConfig):
    """Options of every optimizer that projects matrices."""

    rank: int | float = Field(default=128, gt=0)
    """R; a fraction of min(M, N) if between 0 and 1."""
    update_proj_gap: int = Field(default=200, ge=1)
    """Optimizer steps between refreshes of a basis."""
    scale: float = Field(default=0.25, gt=0)
    """Factor of the update of projected matrices; their learning rate is lr * scale (Apollo: lr * sqrt(scale))."""
    proj_type: Literal["std", "reverse_std", "left", "right", "full", "min_memory"] = "std"
    """Side of the basis."""
    target_modules: str | list[str] = ALL_LINEAR
    """Modules whose matrices are projected: all-linear, a regular expression, or a list of names."""
    exclude_modules: str | list[str] = []
    """Modules left out, same forms."""


class FittedConfig(LowRankConfig):
    """Options of optimizers whose bases are fitted to gradients."""

    basis_bits: Literal[32, 16, 8, 4] | None = None
    """Bits of each basis element; None: 16 for 16-bit weights, else 32."""
    basis_method: Literal["auto", "svd", "gram", "randomized", "subspace_iteration", "random"] = "auto"
    """How a basis is computed."""
    moment_policy: Literal["rotate", "keep", "reset"] = "rotate"
    """What a refresh does to the moments."""
    stagger: bool = True
    """Spread the refreshes over the gap."""


class GaLoreConfig(FittedConfig):
    """Options of GaLore; see `GaLoreAdamW`."""

    early_refresh: bool = False
    """Refresh also at (about) the steps 10, 25, 50 and 100."""
    basis_renorm: bool = False
    """Give the columns of an 8- or 4-bit basis unit length."""
    lazy: LazyRefresh | bool | None = None
    """Refresh a matrix less often while its subspace stands still: true, or the options of LazyRefresh."""
    residual: Literal["fira"] | None = None
    """What becomes of the gradient outside the subspace: dropped, or scaled and added (Fira)."""


class QGaLoreConfig(FittedConfig):
    """Options of Q-GaLore; see `QGaLoreAdamW`."""

    state_bits: Literal[32, 16, 8, 4] = 8
    """Bits of each stored moment element."""
    basis_bits: Literal[32, 16, 8, 4] | None = 4
    """Bits of each basis element; None: 16 for 16-bit weights, else 32."""
    basis_method: Literal["auto", "svd", "gram", "randomized", "subspace_iteration"] = "auto"
    """How a basis is computed."""
    early_refresh: bool = False
    """Refresh also at (about) the steps 10, 25, 50 and 100."""
    basis_renorm: bool = False
    """Give the columns of an 8- or 4-bit basis unit length."""
    lazy: LazyRefresh | bool | None = True
    """Refresh a matrix less often while its subspace stands still: true, false, or the options of LazyRefresh."""


class FiraConfig(FittedConfig):
    """Options of Fira; see `Fira`."""

    early_refresh: bool = False
    """Refresh also at (about) the steps 10, 25, 50 and 100."""


class ApolloConfig(LowRankConfig):
    """Options of APOLLO and APOLLO-Mini; see `Apollo`."""

    scale: float = Field(default=1.0, gt=0)
    """The update of projected matrices is multiplied with its square root."""
    basis_method: Literal["gaussian", "auto", "svd", "gram", "randomized", "subspace_iteration", "random"] = "gaussian"
    """How a projection is made."""
    moment_policy: Literal["keep", "reset"] = "keep"
    """What a new projection does to the moments."""


class LDAdamConfig(LowRankConfig):
    """Options of LDAdam; see `LDAdamW`."""

    betas: tuple[Decay, Decay] = (0.908, 0.99)
    """Decay of the first and second moment, each in [0, 1)."""
    update_proj_gap: int = Field(default=1, ge=1)
    """Optimizer steps between two iterations of the subspace."""
    scale: float = Field(default=1.0, gt=0)
    """Factor of the update of projected matrices."""
    basis_bits: Literal[32, 16, 8, 4] | None = None
    """Bits of each basis element; None: 16 for 16-bit weights, else 32."""
    basis_smoothing: float = Field(default=0.908, ge=0, lt=1)
    """Share of the first moment in the matrix that is iterated."""
    error_feedback: bool = False
    """Keep what the projection loses for the next step, in a tensor of each weight's size."""


class GUMConfig(FittedConfig):
    """Options of GUM, low-rank Muon; see `GUM`."""

    momentum: Decay = 0.95
    """Decay of the moment of projected matrices; `betas` are those of AdamW for all others."""
    scale: float = Field(default=1.0, gt=0)
    """Factor of the update of projected matrices."""
    full_rank_probability: float = Field(default=0.1, ge=0, lt=1)
    """Share of the periods in which a matrix follows the complement of its subspace."""


class GaLoreAdafactorConfig(FittedConfig):
    """Options of GaLore with Adafactor's rule; see `GaLoreAdafactor`."""

    betas: tuple[Decay, Decay] = (0.9, 0.0)
    """Decay of the first moment, 0 for none; the second number is not used."""


class TensorGaLoreConfig(OptimizerConfig):
    """Options of Tensor-GaLore and TensorGRaD; see `TensorGaLoreAdamW`."""

    rank: int | float | list[int] | list[float] | Literal["auto"] = 0.25
    """Share of the entries that the core has, a cap for all modes, one of them for each mode, or auto: ranks that
    follow the spectrum of each tensor's first gradient."""
    rank_budget: float = Field(default=0.25, gt=0, le=1)
    """Largest share of the entries that a core has whose ranks are auto."""
    update_proj_gap: int = Field(default=200, ge=1)
    """Optimizer steps between refreshes of the bases."""
    scale: float | Literal["auto"] = "auto"
    """Factor of the update of projected tensors; auto gives it the root mean square of AdamW's."""
    proj_type: Literal["tucker", "tucker_channels", "matrix", "slices", "select"] = "tucker"
    """Which modes get a basis."""
    rank_counts: Literal["core", "state", "tensorgrad", "tensorly"] = "core"
    """What a share counts."""
    first_dims: int = Field(default=1, ge=1)
    """Modes in the rows of the unfolding of "matrix"."""
    min_numel: int = Field(default=1000, ge=1)
    """Smaller tensors are not projected."""
    basis_method: Literal["auto", "st_hosvd", "hooi", "subspace", "randomized"] = "auto"
    """How bases are computed."""
    basis_bits: Literal[32, 16, 8, 4] | None = None
    """Bits of each basis element; None is 32."""
    moment_policy: Literal["rotate", "align", "keep", "reset"] = "rotate"
    """What a refresh does to the moments."""
    stagger: bool = True
    """Spread the refreshes over the gap."""
    skip_tol: float = Field(default=0.0, ge=0, lt=1)
    """Leave out a refresh where the captured energy has changed by less than this."""
    complex_mode: Literal["modulus", "real_pair"] = "modulus"
    """One second moment for a complex number, or one for each of its parts."""
    complex_pair: bool = False
    """Real parameters with a last axis of 2 are complex numbers."""
    sparse_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the entries with moments of their own."""
    sparse_select: Literal["topk", "randk", "probability"] = "topk"
    """How they are chosen."""
    sparse_order: Literal["low_rank_first", "sparse_first"] = "low_rank_first"
    """Which branch sees the gradient first."""
    sparse_weight: float = Field(default=1.0, ge=0)
    """Factor of their update, beside lr."""
    target_modules: str | list[str] | None = None
    """Modules whose tensors are projected: a regular expression, a list of names, or None for all."""
    exclude_modules: str | list[str] = []
    """Modules left out, same forms."""


NOT_OPTIMIZER_OPTIONS = {
    *("name", "embedding_lr_factor", "target_modules", "exclude_modules"),
    *("layerwise", "max_grad_norm", "clip"),
}
"""Options that shape the parameter groups, or the loop around the optimizer."""


class Preset(NamedTuple):
    """What a name stands for: options, the values in which it differs from their defaults, its class, and methods."""

    config: type[OptimizerConfig]
    values: Mapping[str, Any]
    optimizer: Callable[..., LowRankOptimizer]
    methods: tuple[str, ...] = ()
    """Methods that a recipe with this optimizer applies first, unless it lists them with options of its own."""


def _galore_adafactor(
    groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float, **options: Any
) -> LowRankOptimizer:
    return GaLoreAdafactor(groups, beta1=betas[0], **options)


optimizers: Registry[Preset] = Registry("optimizer")
for _name, _config, _values, _optimizer, *_methods in (
    ("adamw", OptimizerConfig, {}, AdamW),
    ("adamw_8bit", OptimizerConfig, {"state_bits": 8}, AdamW),
    ("adamw_4bit", OptimizerConfig, {"state_bits": 4}, AdamW),
    ("galore", GaLoreConfig, {}, GaLoreAdamW),
    ("galore_8bit", GaLoreConfig, {"state_bits": 8, "basis_bits": 16}, GaLoreAdamW),
    ("galore_4bit", GaLoreConfig, {"state_bits": 4, "basis_bits": 8}, GaLoreAdamW),
    ("q_galore", QGaLoreConfig, {}, QGaLoreAdamW, "int8"),
    ("galore_adafactor", GaLoreAdafactorConfig, {}, _galore_adafactor),
    ("apollo", ApolloConfig, {}, Apollo),
    ("apollo_mini", ApolloConfig, {"rank": 1, "scale": 128.0}, ApolloMini),
    ("fira", FiraConfig, {}, Fira),
    ("ldadam", LDAdamConfig, {}, LDAdamW),
    ("gum", GUMConfig, {}, GUM),
    ("tensor_galore", TensorGaLoreConfig, {}, TensorGaLoreAdamW),
    ("tensor_galore_8bit", TensorGaLoreConfig, {"state_bits": 8}, TensorGaLoreAdamW),
    ("tensorgrad", TensorGaLoreConfig, {"rank": 0.20, "sparse_ratio": 0.05}, TensorGRaD),
):
    optimizers.register(_name, Preset(_config, _values, _optimizer, tuple(_methods)))


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


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, seed: int = 0, decay_vectors: bool = True
) -> LowRankOptimizer:
    """Return the optimizer that `config` describes for the trainable parameters of `model`.

    Args:
        model: on its final device, in its final dtype.
        config: from `parse_optimizer`.
        seed: of random bases and of stochastic rounding.
        decay_vectors: whether `weight_decay` acts on norms and biases too; transformers.Trainer leaves them out.
    Raises:
        ConfigError: if target_modules select nothing.
    """
    if isinstance(config, LowRankConfig):
        groups = param_groups(model, config.target_modules, config.exclude_modules)
    elif isinstance(config, TensorGaLoreConfig):
        shared: dict[str, Any] = {
            "min_numel": config.min_numel,
            "scale": config.scale,
            "complex_pair": config.complex_pair,
        }
        groups = tensor_param_groups(model, config.target_modules, config.exclude_modules, **shared)
    else:
        groups = [{"params": [(n, p) for n, p in model.named_parameters() if p.requires_grad], "low_rank": False}]
    groups = scale_embedding_lr(groups, model, config.lr, config.embedding_lr_factor)
    if config.weight_decay and not decay_vectors:
        groups = exempt_vectors_from_decay(groups)
    options = config.model_dump(exclude=NOT_OPTIMIZER_OPTIONS)
    return optimizers.get(config.name).optimizer(groups, seed=seed, **options)
