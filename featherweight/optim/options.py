"""Options of a parameter group: which exist, what they may be, and the error for a wrong one."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from featherweight.errors import ConfigError, did_you_mean
from featherweight.linalg.basis import BASIS_METHODS
from featherweight.optim.policies.lazy import lazy_options
from featherweight.optim.policies.moments import moment_policies
from featherweight.optim.policies.refresh import PROJ_TYPES, SEEDED_METHODS
from featherweight.optim.policies.residual import residual_policies
from featherweight.optim.policies.rules import rules
from featherweight.optim.tucker.options import check_tensor_group, projects_tensors

LOW_RANK_KEYS = ("rank", "update_proj_gap", "scale", "proj_type")
"""galore-torch's group keys; a group that has one of them is projected."""

GROUP_KEYS = ("params", "param_names", "name", "low_rank", "split", "stacked")
"""What a group may hold besides the options of the optimizer."""

NORM_KEY = "last_grad_norm"
"""What layer-wise clipping writes into the groups, to carry it through a checkpoint."""

SCHEDULER_KEYS = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr")
"""What torch's schedulers write into the groups, which may be given to another optimizer."""

LOW_RANK_DEFAULTS: dict[str, Any] = {
    "rank": 128,
    "update_proj_gap": 200,
    "scale": 1.0,
    "proj_type": "std",
    "basis_bits": None,
    "basis_method": "auto",
    "basis_renorm": False,
    "basis_smoothing": 0.0,
    "lazy": None,
    "moment_policy": "rotate",
    "stagger": True,
    "early_refresh": False,
    "residual": None,
    "error_feedback": False,
    "full_rank_probability": 0.0,
    "rule": "adamw",
    "momentum": 0.95,
    "state_bits": 32,
    "eps_mode": "torch",
    "decay_order": "before",
    "stochastic_rounding": True,
    "seed": 0,
}
"""What an optimizer does where its preset says nothing. `basis_smoothing`: share of the first moment in the matrix
that a warm iteration fits (LDAdam). `lazy`: the plain options of `LazyRefresh`. `error_feedback`: keep what the
projection loses for the next step (LDAdam), in a tensor of the weight's size. `full_rank_probability`: share of the
periods between two refreshes in which a matrix follows the complement of its subspace (GUM). `momentum`: of the rule
"muon"."""

_CHOICES: dict[str, tuple[Any, ...]] = {
    "proj_type": PROJ_TYPES,
    "basis_method": (*BASIS_METHODS, "gaussian"),
    "state_bits": (32, 16, 8, 4),
    "basis_bits": (None, 32, 16, 8, 4),
    "basis_renorm": (True, False),
    "eps_mode": ("torch", "official"),
    "decay_order": ("before", "after"),
    "stagger": (True, False),
    "early_refresh": (True, False),
    "error_feedback": (True, False),
    "stochastic_rounding": (True, False),
    "low_rank": (True, False),
}


def check_group(where: str, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check every option of a parameter group.

    Args:
        where: name of the optimizer, for messages.
        group: options, defaults filled in.
        defaults: every option of the optimizer with its default; `rank` None for one that projects nothing.
    Raises:
        ConfigError: names the option, its value, what is allowed.
    """
    allowed = sorted({*defaults, *GROUP_KEYS})
    for key in group:
        if key not in (*allowed, *SCHEDULER_KEYS, NORM_KEY):
            raise ConfigError(
                f"{where}: {key}={group[key]!r} is no option of a parameter group; expected an option of the "
                f"optimizer. {did_you_mean(key, allowed)}"
            )
    if projects_tensors(defaults):
        group = check_tensor_group(where, group)
    for key, choices in _CHOICES.items():
        _require(where, key, group[key], group[key] in choices, f"one of {', '.join(map(str, choices))}")
    for key, registry in (("moment_policy", moment_policies), ("rule", rules)):
        names = registry.names()
        _require(where, key, group[key], group[key] in names, f"one of {', '.join(names)}")
    residual, names = group["residual"], residual_policies.names()
    _require(where, "residual", residual, residual in (None, *names), f"None or one of {', '.join(names)}")
    for key in ("lr", "eps", "weight_decay"):
        _require(where, key, group[key], _is_number(group[key]) and group[key] >= 0, "a finite number >= 0")
    scale, betas, gap, rank = (group[key] for key in ("scale", "betas", "update_proj_gap", "rank"))
    _require(where, "scale", scale, _is_number(scale) and scale > 0, "a finite number > 0")
    valid = isinstance(betas, tuple | list) and len(betas) == 2 and all(_is_number(b) and 0 <= b < 1 for b in betas)
    _require(where, "betas", betas, valid, "two numbers in [0, 1)")
    for key in ("basis_smoothing", "full_rank_probability", "momentum"):
        _require(where, key, group[key], _is_number(group[key]) and 0 <= group[key] < 1, "a number in [0, 1)")
    if group["basis_method"] == "gaussian" and group["moment_policy"] == "rotate":
        _require(where, "moment_policy", "rotate", False, "keep or reset beside basis_method='gaussian'")
    if group["full_rank_probability"] > 0 and group["rule"] not in ("muon", "sgd"):
        value, expected = group["full_rank_probability"], "0, unless rule='muon' or 'sgd', which have one moment"
        _require(where, "full_rank_probability", value, False, expected)
    if lazy_options(group["lazy"]) is not None and group["basis_method"] in SEEDED_METHODS:
        _require(where, "lazy", group["lazy"], False, "None beside a random basis, which never stands still")
    if group["basis_smoothing"] > 0 and group["rule"] == "adafactor" and group["betas"][0] == 0:
        _require(where, "basis_smoothing", group["basis_smoothing"], False, "0 where there is no first moment")
    if group["error_feedback"] and not (group["rule"] == "adamw" and group["residual"] is None):
        _require(where, "error_feedback", True, False, "False, unless rule='adamw' and residual=None")
    _require(where, "seed", group["seed"], _is_whole(group["seed"]), "a whole number")
    _require(where, "update_proj_gap", gap, _is_whole(gap) and gap >= 1, "a whole number of steps >= 1")
    if group["low_rank"]:
        _check_projection(where, group, rank, defaults)


def _check_projection(where: str, group: Mapping[str, Any], rank: Any, defaults: Mapping[str, Any]) -> None:
    if defaults["rank"] is None:
        raise ConfigError(
            f"{where}: low_rank=True cannot be used by an optimizer that projects nothing; expected groups without "
            f"{', '.join(LOW_RANK_KEYS)}. Use GaLoreAdamW, or set low_rank=False."
        )
    share = isinstance(rank, float) and 0 < rank <= 1
    expected = "a whole number >= 1, or a fraction of min(M, N) in (0, 1]"
    _require(where, "rank", rank, share or (_is_whole(rank) and rank >= 1), expected)
    split, stacked = group.get("split"), group.get("stacked", True)
    valid = split is None or (isinstance(split, Mapping) and all(_is_whole(n) and n >= 1 for n in split.values()))
    _require(where, "split", split, valid, "a mapping of a part of a name to a number of row blocks >= 1")
    _require(where, "stacked", stacked, isinstance(stacked, bool), "one of True, False")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Say whether a value is a finite number; torch's schedulers also drive an lr that is a tensor of one element."""
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, Real) and math.isfinite(value)


def _require(where: str, key: str, value: Any, condition: bool, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{where}: {key}={value!r} is not allowed; expected {expected}. Change {key}.")
