"""Parameter groups: which weights are projected, at what learning rate the rest runs, and whether options fit."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from featherweight.config.options import plain_number
from featherweight.errors import ConfigError, did_you_mean
from featherweight.optim.options import (
    GROUP_KEYS,
    LOW_RANK_KEYS,
    MATRIX_FAMILIES,
    NORM_KEY,
    SCHEDULER_KEYS,
    Option,
    ScaleOptions,
    TensorOptions,
    is_number,
    options_of,
)
from featherweight.optim.policies.lazy import lazy_options
from featherweight.optim.policies.refresh import SEEDED_METHODS
from featherweight.optim.tucker.kinds import SPECTRAL_KINDS
from featherweight.optim.tucker.neuraloperator import translated
from featherweight.optim.tucker.plan import projects_tensors
from featherweight.selection import ALL_LINEAR, Pattern, select_matrices, select_modules

logger = logging.getLogger(__name__)


def param_groups(
    model: nn.Module,
    target_modules: Pattern = ALL_LINEAR,
    exclude_modules: Pattern = (),
    *,
    min_numel: int = 0,
    **keys: Any,
) -> list[dict[str, Any]]:
    """Split the trainable parameters of a model into projected matrices and the rest.

    Args:
        model: any module.
        target_modules: "all-linear", a regular expression, or a list of names, as in PEFT. Embeddings, output heads
            and what is tied to them are never projected: their gradients are sparse by rows.
        exclude_modules: a regular expression or a list of names.
        min_numel: smaller matrices are not projected.
        keys: options of the projected group: `rank`, `update_proj_gap`, `scale`, `proj_type` (galore-torch's keys),
            and every other option of the optimizer; `split={"qkv": 3}` gives each third of the rows of a fused
            projection its own basis.
    Returns:
        Groups of named parameters: projected matrices, convolutions among them in a group of their own, and the rest.
        Empty groups are left out.
    Raises:
        ConfigError: if no trainable matrix is selected, or the model has no trainable parameter.
    Example:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
        >>> [(group["low_rank"], [name for name, _ in group["params"]]) for group in param_groups(model, rank=8)]
        [(True, ['0.weight']), (False, ['0.bias', '1.weight', '1.bias'])]
    """
    trainable = _trainable("param_groups", model)
    selected = {id(p) for p in select_matrices(model, target_modules, exclude_modules, min_numel=min_numel).values()}
    if not selected:
        raise ConfigError(
            f"param_groups: target_modules={target_modules!r} selects no trainable matrix of min_numel={min_numel} or "
            "more that is no embedding; expected at least one. Select or unfreeze others, or use AdamW."
        )
    convolutions = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.modules.conv._ConvNd) and id(module.weight) in selected
    }
    matrices = [(n, p) for n, p in trainable.items() if id(p) in selected and id(p) not in convolutions]
    kernels = [(n, p) for n, p in trainable.items() if id(p) in convolutions]
    rest = [(n, p) for n, p in trainable.items() if id(p) not in selected]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "low_rank": True, **keys},
        {"params": kernels, "low_rank": True, "stacked": False, **keys},
        {"params": rest, "low_rank": False},
    ]
    return [group for group in groups if group["params"]]


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
    trainable = _trainable("tensor_param_groups", model)
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


def _trainable(where: str, model: nn.Module) -> dict[str, nn.Parameter]:
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ConfigError(
            f"{where}: {type(model).__name__} has no trainable parameter; expected at least one. Unfreeze some with "
            "requires_grad_(True)."
        )
    return trainable


def exempt_vectors_from_decay(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Move norms, biases and other parameters of less than two dimensions into groups without weight decay.

    Args:
        groups: groups of named parameters.
    Returns:
        New list of groups.
    """
    split = []
    for group in groups:
        vectors = [(n, p) for n, p in group["params"] if p.ndim < 2]
        others = [(n, p) for n, p in group["params"] if p.ndim >= 2]
        split += [{**group, "params": others}] if others else []
        split += [{**group, "params": vectors, "weight_decay": 0.0}] if vectors else []
    return split


def named_like(groups: Sequence[Mapping[str, Any]], group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group whose parameters have names if those of the present groups have; torch wants it all or none.

    A parameter without a name is called after its place, such as "group 2 parameter 0".
    """
    params = group["params"]
    if not groups or isinstance(params, set):  # a set has no order, which torch refuses
        return dict(group)
    members = [params] if isinstance(params, Tensor) else list(params)
    is_named = "param_names" in groups[0]
    if is_named:
        place = f"group {len(groups)} parameter"
        members = [one if isinstance(one, tuple) else (f"{place} {i}", one) for i, one in enumerate(members)]
    else:
        members = [one[1] if isinstance(one, tuple) else one for one in members]
    return {**group, "params": members}


def completed(
    where: str, group: Mapping[str, Any], present: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a parameter group under our names, checked: names of parameters, plain numbers, whether it is projected.

    Args:
        where: name of the optimizer, for messages.
        group: as it was given.
        present: the groups before it.
        defaults: every option of the optimizer with its default.
    Raises:
        ConfigError: see `check_group`.
    """
    given = {key: value if key == "params" else plain_number(value) for key, value in group.items()}
    ours = named_like(present, given)
    if projects_tensors(defaults):
        ours = translated(where, ours)
    ours.setdefault("low_rank", any(key in ours for key in LOW_RANK_KEYS))
    if "lazy" in ours:
        ours["lazy"] = lazy_options(ours["lazy"])
    check_group(where, {**defaults, **ours}, defaults)
    return ours


_IN_MATRICES_ALONE = {"error_feedback": False, "full_rank_probability": 0.0, "basis_smoothing": 0.0}


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
    is_tensor = projects_tensors(defaults)
    known: dict[str, Option] = {}
    own = (TensorOptions,) if is_tensor else (ScaleOptions,) if "normalize" in defaults else ()
    for family in (*MATRIX_FAMILIES, *own):
        known |= options_of(family)
    for key, option in known.items():
        if key in group and key not in ("rank", "lazy"):
            _require(where, key, group[key], option.allows(group[key]), option.expected)
    low_rank = group["low_rank"]
    _require(where, "low_rank", low_rank, low_rank is True or low_rank is False, "one of True, False")
    if is_tensor:
        _check_tensors(where, group)
        return
    _check_together(where, group)
    if low_rank:
        _check_projection(where, group, defaults)


def _check_together(where: str, group: Mapping[str, Any]) -> None:
    """Refuse options that exclude one another."""
    rule, method, probability = group["rule"], group["basis_method"], group["full_rank_probability"]
    if method == "gaussian" and group["moment_policy"] == "rotate":
        _require(where, "moment_policy", "rotate", False, "keep or reset beside basis_method='gaussian'")
    if probability > 0 and not (rule in ("muon", "sgd") and group["residual"] is None):
        expected = "0, unless rule='muon' or 'sgd', which have one moment, and residual=None"
        _require(where, "full_rank_probability", probability, False, expected)
    if lazy_options(group["lazy"]) is not None and method in SEEDED_METHODS:
        _require(where, "lazy", group["lazy"], False, "None beside a random basis, which never stands still")
    if group["basis_smoothing"] > 0 and rule == "adafactor" and group["betas"][0] == 0:
        _require(where, "basis_smoothing", group["basis_smoothing"], False, "0 where there is no first moment")
    if group["error_feedback"] and not (rule == "adamw" and group["residual"] is None):
        _require(where, "error_feedback", True, False, "False, unless rule='adamw' and residual=None")


def _check_projection(where: str, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    if defaults["rank"] is None:
        raise ConfigError(
            f"{where}: low_rank=True cannot be used by an optimizer that projects nothing; expected groups without "
            f"{', '.join(LOW_RANK_KEYS)}. Use GaLoreAdamW, or set low_rank=False."
        )
    rank, split, stacked = group["rank"], group.get("split"), group.get("stacked", True)
    is_whole = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
    expected = "a whole number >= 1, or a fraction of min(M, N) in (0, 1]"
    _require(where, "rank", rank, is_whole or (isinstance(rank, float) and 0 < rank <= 1), expected)
    counts = split.values() if isinstance(split, Mapping) else ()
    valid = split is None or (
        isinstance(split, Mapping) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in counts)
    )
    _require(where, "split", split, valid, "a mapping of a part of a name to a number of row blocks >= 1")
    _require(where, "stacked", stacked, isinstance(stacked, bool), "one of True, False")


def _check_tensors(where: str, group: Mapping[str, Any]) -> None:
    for key, only in _IN_MATRICES_ALONE.items():
        _require(where, key, group[key], group[key] == only, f"one of {only}")
    scale, rank = group["scale"], group["rank"]
    _require(where, "scale", scale, scale == "auto" or scale > 0, "a finite number > 0, or 'auto'")
    if rank == "auto":
        expected = (
            f"a number under proj_type={group['proj_type']!r}, which has but one rank, or proj_type in "
            f"{', '.join(SPECTRAL_KINDS)}"
        )
        _require(where, "rank", rank, group["proj_type"] in SPECTRAL_KINDS, expected)
        return
    several = isinstance(rank, list | tuple) and len(rank) > 0
    for one in rank if several else (rank,):
        valid = is_number(one) and (0 < one <= 1 if isinstance(one, float) else one >= 1)
        expected = "a share in (0, 1], a whole number >= 1, one of them for each mode, or 'auto'"
        _require(where, "rank", rank, valid, expected)


def _require(where: str, key: str, value: Any, condition: bool, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{where}: {key}={value!r} is not allowed; expected {expected}. Change {key}.")
