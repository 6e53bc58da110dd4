"""Options of optimizers that project tensors, and the names that other packages have for them."""

from collections.abc import Iterable, Mapping
from typing import Any

from featherweight.errors import ConfigError
from featherweight.linalg.tucker_fit import MAX_WORKSPACE_BYTES, TUCKER_METHODS
from featherweight.linalg.tucker_ranks import RANK_COUNTS

TENSOR_KINDS = ("tucker", "tucker_channels", "matrix", "slices", "select")
"""What `proj_type` may be: all modes; the first two; one side of an unfolding; each frequency by itself; the first two
rotated and of the others the strongest indices."""

SPECTRAL_KINDS = ("tucker", "tucker_channels")
"""Those whose ranks may follow the spectrum of the first gradient (``rank="auto"``)."""

TENSOR_DEFAULTS: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "rank": 0.25,
    "rank_budget": 0.25,
    "update_proj_gap": 200,
    "scale": 1.0,
    "basis_method": "auto",
    "proj_type": "tucker",
    "rank_counts": "core",
    "first_dims": 1,
    "min_numel": 1000,
    "complex_mode": "modulus",
    "complex_pair": False,
    "skip_tol": 0.0,
    "max_workspace_bytes": MAX_WORKSPACE_BYTES,
    "sparse_ratio": 0.0,
    "sparse_select": "topk",
    "sparse_order": "low_rank_first",
    "sparse_weight": 1.0,
    "sparse_reset": True,
}
"""Options of optimizers of tensors, with their defaults; see `TensorGaLoreAdamW`."""

SHARED_OPTIONS = (
    *("basis_bits", "moment_policy", "stagger", "rule", "state_bits", "eps_mode", "decay_order"),
    *("stochastic_rounding", "seed"),
)
"""Further options, whose defaults are those of every optimizer."""

_CHOICES: dict[str, tuple[Any, ...]] = {
    "proj_type": TENSOR_KINDS,
    "rank_counts": RANK_COUNTS,
    "basis_method": TUCKER_METHODS,
    "moment_policy": ("rotate", "align", "keep", "reset"),
    "complex_mode": ("modulus", "real_pair"),
    "complex_pair": (True, False),
    "sparse_select": ("topk", "randk", "probability"),
    "sparse_order": ("low_rank_first", "sparse_first"),
    "sparse_reset": (True, False),
    "rule": ("adamw", "sgd"),
    "residual": (None,),
    "error_feedback": (False,),
    "full_rank_probability": (0.0,),
    "basis_smoothing": (0.0,),
}

_MATRIX_VALUES = {"proj_type": "std", "basis_method": "auto", "moment_policy": "rotate", "rank": 1, "scale": 1.0}
"""What stands in for options that were checked here, so that the rest can be checked as those of matrices."""


def projects_tensors(defaults: Mapping[str, Any]) -> bool:
    """Say whether an optimizer with these defaults (or a group of one) projects tensors."""
    return "rank_counts" in defaults


def check_tensor_group(where: str, group: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of tensors, and return the group with values that the checks of matrices understand.

    Args:
        where: name of the optimizer, for messages.
        group: options, defaults filled in.
    Raises:
        ConfigError: names the option, its value, what is allowed.
    """
    for key, choices in _CHOICES.items():
        if key in group and not any(group[key] == choice for choice in choices):
            _refuse(where, key, group[key], f"one of {', '.join(map(str, choices))}")
    scale = group["scale"]
    if not (scale == "auto" or (_is_number(scale) and scale > 0)):
        _refuse(where, "scale", scale, "a finite number > 0, or 'auto'")
    for key, low, high in (("sparse_ratio", 0, 1), ("skip_tol", 0, 1), ("sparse_weight", 0, float("inf"))):
        if not (_is_number(group[key]) and low <= group[key] < high):
            _refuse(where, key, group[key], f"a number in [{low}, {high})")
    for key in ("first_dims", "min_numel", "max_workspace_bytes"):
        if not isinstance(group[key], int) or isinstance(group[key], bool) or group[key] < 1:
            _refuse(where, key, group[key], "a whole number >= 1")
    rank, budget = group["rank"], group["rank_budget"]
    if not (_is_number(budget) and 0 < budget <= 1):
        _refuse(where, "rank_budget", budget, "a share in (0, 1]")
    if rank == "auto":
        if group["proj_type"] not in SPECTRAL_KINDS:
            _refuse(
                where,
                "rank",
                rank,
                f"a number under proj_type={group['proj_type']!r}, which has but one rank, or "
                f"proj_type in {', '.join(SPECTRAL_KINDS)}",
            )
        rank = 1
    is_list = isinstance(rank, list | tuple) and len(rank) > 0
    for one in rank if is_list else (rank,):
        if not (_is_number(one) and (0 < one <= 1 if isinstance(one, float) else one >= 1)):
            _refuse(where, "rank", rank, "a share in (0, 1], a whole number >= 1, one of them for each mode, or 'auto'")
    return {**group, **_MATRIX_VALUES}


_ALIASES = {
    "galore_rank": "rank",
    "galore_update_proj_gap": "update_proj_gap",
    "galore_scale": "scale",
    "lambda_sparse": "sparse_weight",
    "sparse_type": "sparse_select",
}
"""Names of neuraloperator's optimizers for options that exist here, too."""

_WITHOUT_EFFECT = ("activation_checkpoint", "warm_restart", "tucker_n_iter_max", "n_iter_max_tucker", "tensorgrad")
"""Options of neuraloperator's that choose how it computes what is computed in another way here."""


def complete_options(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of an optimizer of tensors: what is given, under any of its names, and the defaults.

    Args:
        where: name of the optimizer, for messages.
        options: what is given.
    Raises:
        ConfigError: for a name that is unknown.
    """
    known = {*TENSOR_DEFAULTS, *SHARED_OPTIONS}
    ours = {key: value for key, value in options.items() if key in known}
    theirs = {key: value for key, value in options.items() if key not in known}
    return {**TENSOR_DEFAULTS, **ours, **from_neuraloperator(where, theirs)}


def joined(params: Iterable[Any], galore_params: Iterable[Any] | None) -> Iterable[Any]:
    """Return parameter groups of neuraloperator's two arguments: the rest, and what is projected."""
    if galore_params is None:
        return params
    rest = list(params)
    groups: list[dict[str, Any]] = [{"params": rest, "low_rank": False}] if rest else []
    return [*groups, {"params": list(galore_params), "low_rank": True}]


def from_neuraloperator(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under the names of this package.

    Args:
        where: name of the optimizer, for messages.
        options: under neuraloperator's names; `correct_bias` may be True alone.
    Raises:
        ConfigError: for a name that is neither one of neuraloperator's nor one of ours.
    """
    translated: dict[str, Any] = {}
    for key, value in options.items():
        if key in _ALIASES:
            translated[_ALIASES[key]] = value
        elif key == "correct_bias" and value is True or key in _WITHOUT_EFFECT:
            continue
        else:
            _refuse(where, key, value, f"an option of {where}, or one of {', '.join((*_ALIASES, *_WITHOUT_EFFECT))}")
    return translated


def translated(where: str, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter group with neuraloperator's names replaced by ours."""
    theirs = {key: value for key, value in group.items() if key in _ALIASES or key in _WITHOUT_EFFECT}
    ours = {key: value for key, value in group.items() if key not in theirs and key != "galore"}
    low_rank = {"low_rank": group["galore"]} if "galore" in group else {}
    return {**ours, **low_rank, **from_neuraloperator(where, theirs)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _refuse(where: str, key: str, value: Any, expected: str) -> None:
    raise ConfigError(f"{where}: {key}={value!r} is not allowed; expected {expected}. Change {key}.")
