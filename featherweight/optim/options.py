"""Options of a parameter group: which exist, what they may be, and the error for a wrong one."""

from collections.abc import Iterable, Mapping
from typing import Any

from featherweight.errors import ConfigError, did_you_mean
from featherweight.linalg.basis import BASIS_METHODS
from featherweight.optim.moments import moment_policies
from featherweight.optim.refresh import PROJ_TYPES
from featherweight.optim.residual import residual_policies
from featherweight.optim.rules import rules

LOW_RANK_KEYS = ("rank", "update_proj_gap", "scale", "proj_type")
"""galore-torch's group keys; a group that has one of them is projected."""

_CHOICES: dict[str, tuple[Any, ...]] = {
    "proj_type": PROJ_TYPES,
    "basis_method": BASIS_METHODS,
    "state_bits": (32, 16, 8, 4),
    "basis_bits": (None, 32, 16, 8, 4),
    "eps_mode": ("torch", "official"),
    "decay_order": ("before", "after"),
    "stagger": (True, False),
    "stochastic_rounding": (True, False),
}


def check_group(where: str, group: Mapping[str, Any], *, known: Iterable[str]) -> None:
    """Check every option of a parameter group.

    Args:
        where: name of the optimizer, for messages.
        group: options, defaults filled in.
        known: names of the options that exist.
    Raises:
        ConfigError: names the option, its value, what is allowed.
    """
    allowed = {*known, "params", "param_names", "low_rank", "split", "stacked", "initial_lr", "name"}
    for key in group:
        if key not in allowed:
            raise ConfigError(
                f"{where}: {key}={group[key]!r} is no option of a parameter group. {did_you_mean(key, sorted(allowed))}"
            )
    for key, choices in _CHOICES.items():
        _require(where, key, group[key], group[key] in choices, f"one of {', '.join(map(str, choices))}")
    for key, registry in (("moment_policy", moment_policies), ("rule", rules)):
        names = registry.names()
        _require(where, key, group[key], group[key] in names, f"one of {', '.join(names)}")
    residual, names = group["residual"], residual_policies.names()
    _require(where, "residual", residual, residual in (None, *names), f"None or one of {', '.join(names)}")
    lr, eps, decay, scale = (float(group[key]) for key in ("lr", "eps", "weight_decay", "scale"))
    _require(where, "lr", lr, lr >= 0, "a number >= 0")
    _require(where, "eps", eps, eps >= 0, "a number >= 0")
    _require(where, "weight_decay", decay, decay >= 0, "a number >= 0")
    _require(where, "scale", scale, scale > 0, "a number > 0")
    betas = group["betas"]
    valid = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
    _require(where, "betas", tuple(betas), valid, "two numbers in [0, 1)")
    gap = group["update_proj_gap"]
    _require(where, "update_proj_gap", gap, isinstance(gap, int) and gap >= 1, "a whole number of steps >= 1")
    rank = group["rank"]
    if group["low_rank"]:
        whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
        share = isinstance(rank, float) and 0 < rank <= 1
        _require(where, "rank", rank, whole or share, "a whole number >= 1, or a fraction of min(M, N) in (0, 1]")


def _require(where: str, key: str, value: Any, condition: bool, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{where}: {key}={value!r} is not allowed; expected {expected}. Change {key}.")
