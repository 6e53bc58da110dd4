"""An adapter out of two checkpoints, and out of what the paper's code saves."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import CheckpointError
from featherweight.methods.low_rank_model import low_rank_modules
from featherweight.methods.s2ft.adapter import Adapter
from featherweight.methods.s2ft.base_slices import ChannelChange, write_
from featherweight.methods.s2ft.fingerprint import base_fingerprint
from featherweight.methods.s2ft.targets import is_conv1d, linear_features
from featherweight.nn.channel_delta import Axis

State = nn.Module | Mapping[str, Tensor]


def diff(base: State, tuned: State, *, max_share: float = 0.5) -> Adapter:
    """Return the adapter that turns one checkpoint into another.

    Args:
        base: model or state dict before training.
        tuned: model or state dict of the same architecture after it.
        max_share: refuse a matrix of which more channels than this share have changed.
    Returns:
        Changes whose sum with the base rounds to the tuned weights exactly.
    Raises:
        CheckpointError: if anything else has changed, the tuned checkpoint has more tensors, or a matrix has changed in
            more than `max_share` of its channels.
        NumericsError: if a changed weight holds NaN or infinite numbers.
    """
    if isinstance(base, nn.Module) and (cut := low_rank_modules(base)):
        raise CheckpointError(
            f"diff: '{next(iter(cut))}' of the base is of low rank, and its factors are no channels of a layer; "
            "expected ordinary linear layers. Call fw.merge_low_rank on both models first."
        )
    before, after = _state(base), _state(tuned)
    linear = _linear_names(base, before)
    if more := sorted(set(after) - set(before)):
        raise CheckpointError(
            f"diff: the tuned checkpoint has {len(more)} tensors that the base lacks, '{more[0]}' among them; expected "
            "those of the base alone. Unload adapters and merge them first, or compare with the right base."
        )
    modules: dict[str, ChannelChange] = {}
    for key, old in before.items():
        new = after.get(key)
        if new is None or new.shape != old.shape:
            raise CheckpointError(
                f"diff: '{key}' has shape={None if new is None else tuple(new.shape)} in the tuned checkpoint; "
                f"expected {tuple(old.shape)} as in the base. Compare checkpoints of one architecture."
            )
        if torch.equal(old.to(new.dtype), new):
            continue
        name = key.removesuffix(".weight")
        if name not in linear:
            raise CheckpointError(
                f"diff: '{key}' has changed and is no linear weight; expected changes of those alone. Save such "
                "modules with modules_to_save."
            )
        turned = linear[name] == "conv1d"
        change = changed_channels(old.t() if turned else old, new.t() if turned else new)
        channels = old.shape[1 if (change.axis == "input") != turned else 0]
        if len(change.indices) > max_share * channels:
            raise CheckpointError(
                f"diff: '{name}' has changed in {len(change.indices)} of {channels} channels, more than "
                f"max_share={max_share}; expected a sparse change. Raise max_share, or extract a LoRA adapter instead."
            )
        modules[name] = change
    if not modules:
        raise CheckpointError(
            "diff: changed=0 weights differ; expected some. Give the base first, the tuned model second."
        )
    adapter = Adapter(modules, {"base_fingerprint": _fingerprint(before, linear, modules)})
    adapter.require_sound("diff: tuned checkpoint")
    return adapter


def changed_channels(old: Tensor, new: Tensor) -> ChannelChange:
    """Return the change of one weight along the axis on which fewer channels differ.

    Args:
        old: (M, N) base.
        new: (M, N) tuned; the base is rounded to its dtype first.
    Returns:
        A change in float32, or float64 where only that gives `new` back exactly.
    Example:
        >>> old = torch.zeros(2, 4)
        >>> change = changed_channels(old, old + torch.tensor([0.0, 0.0, 3.0, 0.0]))
        >>> change.axis, change.indices.tolist(), change.delta.tolist()
        ('input', [2], [[3.0, 3.0]])
    """
    old = old.to(new.dtype)
    different = old != new
    columns, rows = different.any(0), different.any(1)
    axis: Axis = "input" if columns.sum() * old.shape[0] <= rows.sum() * old.shape[1] else "output"
    indices = (columns if axis == "input" else rows).nonzero().flatten().to(torch.int32)
    turned_old, turned_new = (old.t(), new.t()) if axis == "input" else (old, new)
    before, after = turned_old[indices.long()], turned_new[indices.long()]
    exact = after.double() - before.double()
    change = ChannelChange(axis, indices, exact.float() if new.dtype != torch.float64 else exact)
    written = old.clone()
    write_(written, [change])
    return change if torch.equal(written, new) else change._replace(delta=exact)


def import_official(tuned: State, base: State, *, head_dim: int | None = None, allow_rows: bool = False) -> Adapter:
    """Recover the adapter from a checkpoint of the paper's code, which saves merged and permuted weights.

    That code moves the trained heads and channels to the front. Gate rows and query rows are never trained, so equal
    rows
    tell where everything came from.

    Args:
        tuned: its pytorch_model.bin, loaded, or a model; LLaMA names.
        base: the model that was fine-tuned; one with more key and value heads than groups, as that code needs.
        head_dim: channels of a head; None takes it from the model's configuration.
        allow_rows: take changed rows of up_proj and v_proj too, which that code trains only when it is told so. Without
            it such rows mean that the checkpoint comes from another base or another training.
    Raises:
        CheckpointError: if rows of a frozen matrix have no twin in the base, rows of up_proj or v_proj differ without
            `allow_rows`, or nothing differs.
        NumericsError: if a changed weight holds NaN or infinite numbers.
    """
    before, after = _state(base), _state(tuned)
    size = head_dim if head_dim is not None else _head_dim(base)
    modules: dict[str, ChannelChange] = {}
    for key in [key for key in before if key.endswith(".mlp.gate_proj.weight")]:
        stem = key.removesuffix("gate_proj.weight")
        order = matched_rows(before[key], after[key], key)
        _compare(modules, before, after, f"{stem}down_proj", order, "input")
        _compare(modules, before, after, f"{stem}up_proj", order, "output")
    for key in [key for key in before if key.endswith(".self_attn.q_proj.weight")]:
        stem = key.removesuffix("q_proj.weight")
        order = matched_rows(before[key], after[key], key, block=size)
        _compare(modules, before, after, f"{stem}o_proj", order, "input")
        _compare(modules, before, after, f"{stem}v_proj", order, "output")
    if not modules:
        raise CheckpointError(
            "import_official: changed=0 matrices differ from the base; expected some. Give the fine-tuned "
            "checkpoint first."
        )
    rows = [name for name in modules if name.endswith((".up_proj", ".v_proj"))]
    if rows and not allow_rows:
        raise CheckpointError(
            f"import_official: rows of '{rows[0]}' differ from the base, {len(modules[rows[0]].indices)} of them; "
            "expected changes of o_proj and down_proj alone, which the paper's recipes train. Give the base that was "
            "fine-tuned; if values and up projections were trained too, allow_rows=True (fw adapter diff --rows)."
        )
    linear = {name: "linear" for name in modules}
    adapter = Adapter(modules, {"base_fingerprint": _fingerprint(before, linear, modules)})
    adapter.require_sound("import_official: checkpoint")
    return adapter


def matched_rows(base: Tensor, tuned: Tensor, name: str, *, block: int = 1) -> Tensor:
    """Return for each row of `tuned` the row of `base` that equals it, blocks of rows as a whole.

    Raises:
        CheckpointError: if a block has no twin.
    """
    base = base.to(tuned.dtype)
    places: dict[bytes, list[int]] = {}
    for place, rows in enumerate(base.split(block)):
        places.setdefault(_bytes_of(rows), []).append(place)
    order = []
    for place, rows in enumerate(tuned.split(block)):
        twins = places.get(_bytes_of(rows))
        if not twins:
            raise CheckpointError(
                f"import_official: rows={place * block} of '{name}' equal none of the base; expected the frozen "
                "matrix in another order. Give the base in the precision that it was fine-tuned from."
            )
        order.append(twins.pop(0))
    offsets = torch.arange(block)
    return (torch.tensor(order)[:, None] * block + offsets).flatten()


def _bytes_of(rows: Tensor) -> bytes:
    return bytes(rows.contiguous().view(torch.uint8).numpy().tobytes())


def _compare(
    modules: dict[str, ChannelChange],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    name: str,
    order: Tensor,
    axis: Axis,
) -> None:
    old, new = before[f"{name}.weight"], after[f"{name}.weight"]
    if len(order) != old.shape[1 if axis == "input" else 0]:
        raise CheckpointError(
            f"import_official: '{name}' has {old.shape[0]} rows for {len(order)} of queries; expected as many heads of "
            "values as of queries, as the paper's code needs. Use fw.s2ft.diff for other models."
        )
    inverse = torch.argsort(order)
    restored = new[:, inverse] if axis == "input" else new[inverse]
    if not torch.equal(old.to(new.dtype), restored):
        modules[name] = changed_channels(old, restored)


def _state(source: State) -> Mapping[str, Tensor]:
    return source.state_dict() if isinstance(source, nn.Module) else source


def _linear_names(base: State, state: Mapping[str, Tensor]) -> dict[str, str]:
    if isinstance(base, nn.Module):
        modules = dict(base.named_modules())
        return {
            name: "conv1d" if is_conv1d(module) else "linear"
            for name, module in modules.items()
            if f"{name}.weight" in state and linear_features(module) is not None
        }
    return {
        key.removesuffix(".weight"): "linear"
        for key, tensor in state.items()
        if tensor.dim() == 2 and key.endswith(".weight") and "embed" not in key
    }


def _fingerprint(
    state: Mapping[str, Tensor], linear: Mapping[str, str], names: Mapping[str, Any]
) -> dict[str, list[float]]:
    weights = {name: state[f"{name}.weight"] for name in names}
    return base_fingerprint({name: w.t() if linear[name] == "conv1d" else w for name, w in weights.items()})


def _head_dim(base: State) -> int:
    config = getattr(base, "config", None)
    if config is None:
        raise CheckpointError(
            "import_official: head_dim=None is unknown for a state dict; expected the channels of a head. Give "
            "head_dim, or the base as a model."
        )
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
