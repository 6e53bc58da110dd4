"""Optimizers that others have written, in recipes: any class with the interface of torch.optim.

Its options in a recipe follow from the arguments of its constructor.
"""

import inspect
from typing import Any

from pydantic import create_model
from torch import nn
from torch.optim import Optimizer

from featherweight.errors import ConfigError
from featherweight.optim.named import NamedOptimizer, OptimizerConfig


class InRecipes:
    """What the training loop asks of an optimizer besides torch's interface."""

    skipped_steps = 0
    """Updates left out because a gradient was not finite: it leaves out none."""
    param_groups: list[dict[str, Any]]

    def state_bytes(self) -> None:
        """Return None: nobody knows the state of a foreign optimizer before its first step."""
        return None

    def gradient_bytes(self) -> int:
        """Return the bytes of all gradients."""
        return sum(one.numel() * one.element_size() for group in self.param_groups for one in group["params"])


def own_optimizer(optimizer: type[Optimizer], config: type[OptimizerConfig] | None = None) -> NamedOptimizer:
    """Return what `fw.optim.optimizers.register` and entry points take for an optimizer of your own.

    Args:
        optimizer: a class of torch's kind: ``optimizer(params, lr=..., ...)``, whose `state_dict` holds tensors and
            plain values.
        config: strict options for recipes; None makes them from the constructor: each argument is a key, with its
            default and the type of that.

    Returns:
        The entry. The training loop clips, follows the schedule, saves and resumes as for its own optimizers;
        `layerwise`, `embedding_lr_factor` and `matrix_lr_factor` are refused.

    Raises:
        ConfigError: if an argument has the name of an option that all optimizers have.

    Example:
        >>> import torch
        >>> entry = own_optimizer(torch.optim.Rprop)
        >>> entry.config.parse({"name": "rprop", "lr": 0.1}).etas
        (0.5, 1.2)
    """
    kind = type(optimizer.__name__, (InRecipes, optimizer), {"__module__": optimizer.__module__})

    def build(model: nn.Module, options: OptimizerConfig) -> Any:
        if options.layerwise or options.embedding_lr_factor != 1.0 or options.matrix_lr_factor != 1.0:
            raise ConfigError(
                f"optimizer {options.name}: layerwise={options.layerwise}, embedding_lr_factor="
                f"{options.embedding_lr_factor:g}, matrix_lr_factor={options.matrix_lr_factor:g} are options of "
                "featherweight's own optimizers; expected false, 1 and 1. Leave them out."
            )
        given = {key: getattr(options, key) for key in type(options).model_fields if key not in _SHARED}
        return kind([one for one in model.parameters() if one.requires_grad], **given)

    entry_optimizer: Any = kind
    return NamedOptimizer(config or _config_of(optimizer), {}, entry_optimizer, build=build)


_SHARED = frozenset(OptimizerConfig.model_fields)


def _config_of(optimizer: type[Optimizer]) -> type[OptimizerConfig]:
    fields: dict[str, Any] = {}
    for name, argument in list(inspect.signature(optimizer).parameters.items())[1:]:
        if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            continue
        if name in _SHARED:
            raise ConfigError(
                f"own_optimizer: {optimizer.__name__} has the argument {name}, which means something else in every "
                "recipe; expected another name. Rename it, or give a config."
            )
        default = ... if argument.default is argument.empty else argument.default
        fields[name] = (_type_of(default), default)
    return create_model(f"{optimizer.__name__}Config", __base__=OptimizerConfig, **fields)


def _type_of(default: Any) -> Any:
    """Return the type of an option from its default; numbers may be whole or not."""
    if isinstance(default, bool):
        return bool
    if isinstance(default, int | float):
        return float
    if isinstance(default, tuple) and all(isinstance(one, int | float) for one in default):
        return tuple[(float,) * len(default)]  # type: ignore[misc]
    if isinstance(default, str):
        return str
    return float if default is ... else Any
