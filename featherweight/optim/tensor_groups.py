"""Parameter groups of models with large tensors: which weights are projected."""

import logging
from typing import Any

from torch import nn

from featherweight.errors import ConfigError
from featherweight.selection import Pattern, select_modules

logger = logging.getLogger(__name__)


def tensor_param_groups(
    model: nn.Module,
    target_modules: Pattern | None = None,
    exclude_modules: Pattern = (),
    *,
    min_numel: int = 1000,
    **keys: Any,
) -> list[dict[str, Any]]:
    """Split the trainable parameters of a model into tensors of three or more modes and the rest.

    Spectral weights of neural operators, convolutions and other tensors are projected; pointwise maps (tensors with
    fewer than three axes longer than 1) are not.

    Args:
        model: any module; neuraloperator's models as they are.
        target_modules: a regular expression or a list of names of modules; None takes all.
        exclude_modules: same forms; what it matches is left out.
        min_numel: smaller tensors are not projected.
        keys: options of the projected group, of `TensorGaLoreAdamW`. `scale` is "auto" if it is not given, so that one
            learning rate fits projected and other weights.
    Returns:
        Groups of named parameters: tensors, then the rest. Empty groups are left out.
    Raises:
        ConfigError: if a pattern selects no module, or the model has no trainable parameter.
    Example:
        >>> model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16, 16))
        >>> [(group["low_rank"], [n for n, _ in group["params"]]) for group in tensor_param_groups(model)]
        [(True, ['0.weight']), (False, ['0.bias', '2.weight', '2.bias'])]
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ConfigError(
            f"tensor_param_groups: {type(model).__name__} has no trainable parameter; expected at least one. Unfreeze "
            "some with requires_grad_(True)."
        )
    allowed = set(trainable.values())
    if target_modules is not None or exclude_modules:
        modules = select_modules(model, ".*" if target_modules is None else target_modules, exclude_modules)
        allowed = {p for module in modules.values() for p in module.parameters(recurse=target_modules is not None)}
    is_pair = keys.get("complex_pair", False)
    chosen = {
        name
        for name, p in trainable.items()
        if p in allowed
        and p.numel() >= min_numel * (2 if is_pair else 1)
        and sum(size > 1 for size in (p.shape[:-1] if is_pair else p.shape)) >= 3
    }
    if not chosen:
        logger.warning(
            "tensor_param_groups: no trainable tensor of %s has three axes longer than 1 and %d numbers; nothing is "
            "projected. Lower min_numel, or use GaLoreAdamW for matrices.",
            type(model).__name__,
            min_numel,
        )
    groups: list[dict[str, Any]] = [
        {
            "params": [(n, p) for n, p in trainable.items() if n in chosen],
            "low_rank": True,
            "min_numel": min_numel,
            **{"scale": "auto", **keys},
        },
        {"params": [(n, p) for n, p in trainable.items() if n not in chosen], "low_rank": False, "complex_pair": False},
    ]
    return [group for group in groups if group["params"]]
