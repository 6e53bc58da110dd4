"""Parameter groups: which weights are projected, and at what learning rate the rest runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.selection import ALL_LINEAR, Pattern, select_embeddings, select_matrices


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
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ConfigError(
            f"param_groups: {type(model).__name__} has no trainable parameter; expected at least one. "
            "Unfreeze some with requires_grad_(True)."
        )
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


def scale_embedding_lr(
    groups: list[dict[str, Any]], model: nn.Module, lr: float, factor: float
) -> list[dict[str, Any]]:
    """Move embeddings and output heads into groups that run at ``factor * lr``.

    GaLore's recipes run these parameters at the full lr and the matrices at ``scale * lr``; a fair comparison gives
    AdamW the same freedom.

    Args:
        groups: groups of named parameters.
        model: the model they come from.
        lr: base learning rate.
        factor: multiplier for embeddings and heads.
    Returns:
        New list of groups.
    """
    embeddings = {id(p) for p in select_embeddings(model).values()}
    split = []
    for group in groups:
        inside = [(n, p) for n, p in group["params"] if id(p) in embeddings]
        outside = [(n, p) for n, p in group["params"] if id(p) not in embeddings]
        if outside:
            split.append({**group, "params": outside})
        if inside:
            split.append({**group, "params": inside, "lr": group.get("lr", lr) * factor})
    return split


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
