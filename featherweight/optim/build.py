"""From the options of a recipe to an optimizer."""

from collections.abc import Callable
from typing import Any

from torch import nn

from featherweight.optim.group_rates import scale_embedding_lr, scale_matrix_lr
from featherweight.optim.groups import exempt_vectors_from_decay, param_groups, tensor_param_groups
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.named import MatrixSelection, OptimizerConfig, TensorSelection, optimizers
from featherweight.optim.options import options_of
from featherweight.optim.presets.arguments import arguments_of
from featherweight.optim.presets.scale import Scale, scale_param_groups

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
