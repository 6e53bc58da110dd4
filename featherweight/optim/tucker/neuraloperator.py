"""Names that neuraloperator has for options and parameter groups that exist here, too."""

from collections.abc import Iterable, Mapping
from typing import Any

from featherweight.errors import ConfigError

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
            raise ConfigError(
                f"{where}: {key}={value!r} is not allowed; expected an option of {where}, or one of "
                f"{', '.join((*_ALIASES, *_WITHOUT_EFFECT))}. Change {key}."
            )
    return translated


def translated(where: str, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter group with neuraloperator's names replaced by ours."""
    theirs = {key: value for key, value in group.items() if key in _ALIASES or key in _WITHOUT_EFFECT}
    ours = {key: value for key, value in group.items() if key not in theirs and key != "galore"}
    low_rank = {"low_rank": group["galore"]} if "galore" in group else {}
    return {**ours, **low_rank, **from_neuraloperator(where, theirs)}
