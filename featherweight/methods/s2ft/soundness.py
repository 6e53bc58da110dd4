"""One check of every change of channels that comes from outside, asked before anything is written or served.

A file may be cut, edited or written by another program; a training may have diverged. A channel named twice is counted
once or twice depending on who adds it up, one beyond the axis reads or writes other memory on some devices, and one NaN
spoils every token.
Shapes: S selected channels of a change, K the other axis.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from featherweight.errors import CheckpointError, NumericsError
from featherweight.methods.s2ft.base_slices import ChannelChange


def require_sound(
    changes: Mapping[str, ChannelChange], subject: str, shapes: Mapping[str, tuple[int, int]] | None = None
) -> None:
    """Refuse changes that no training can have made.

    Args:
        changes: by full name of the module. Nothing is modified.
        subject: who is at work and with what, the beginning of a message: ``merge: adapter='math'``.
        shapes: (out_features, in_features) of those modules whose shape is known.
    Raises:
        CheckpointError: if channels and rows differ in number, a channel stands twice or lies outside of the module, or
            the width is not the module's.
        NumericsError: if a number is NaN or infinite.
    Cost: one pass over the changes and one synchronisation of the device.
    Example:
        >>> change = ChannelChange("input", torch.tensor([1, 1]), torch.zeros(2, 3))
        >>> require_sound({"down_proj": change}, "merge: adapter")
        Traceback (most recent call last):
        featherweight.errors.CheckpointError: merge: adapter names channel 1 of 'down_proj' twice; expected each \
channel once. It is damaged: save it again.
    """
    flags: dict[str, Tensor] = {}
    for name, change in changes.items():
        shape = (shapes or {}).get(name)
        _require_shapes(name, change, subject, shape)
        if len(change.indices) and change.indices.device.type != "meta" and change.delta.device.type != "meta":
            features = None if shape is None else shape[1 if change.axis == "input" else 0]
            flags[name] = _flags(change, features)
    if not flags:
        return
    device = next(iter(flags.values())).device
    for name, suspicious in zip(flags, torch.stack([one.to(device) for one in flags.values()]).tolist(), strict=True):
        if any(suspicious):
            _explain(name, changes[name], subject, (shapes or {}).get(name))


def require_finite(tensors: Mapping[str, Tensor], subject: str) -> None:
    """Refuse tensors with numbers that are NaN or infinite.

    Args:
        tensors: heads and biases by their key.
        subject: who is at work and with what, the beginning of a message: ``merge: adapter='math'``.
    Raises:
        NumericsError: if there are some; names the tensor.
    """
    for key, tensor in tensors.items():
        if tensor.device.type != "meta" and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NumericsError(
                f"{subject} holds NaNs or infinite numbers in '{key}'; expected finite ones. Load an earlier adapter, "
                "or train it again."
            )


def _require_shapes(name: str, change: ChannelChange, subject: str, shape: tuple[int, int] | None) -> None:
    indices, delta = change.indices, change.delta
    is_whole = not (indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool)
    if indices.dim() != 1 or not is_whole or delta.dim() != 2 or not delta.is_floating_point():
        raise CheckpointError(
            f"{subject} has channels of {_kind(indices)} and a change of {_kind(delta)} for '{name}'; expected (S,) "
            "whole numbers and (S, K) floating-point numbers. It is damaged: save it again."
        )
    if len(indices) != len(delta):
        raise CheckpointError(
            f"{subject} has {len(indices)} channels for {len(delta)} rows of '{name}'; expected one for each row. It "
            "is damaged: save it again."
        )
    if shape is not None and delta.shape[1] != shape[0 if change.axis == "input" else 1]:
        raise CheckpointError(
            f"{subject} is {delta.shape[1]} wide at '{name}', where the base's weight is {tuple(shape)}; expected "
            f"width={shape[0 if change.axis == 'input' else 1]}. Load the base that it was trained on, or save it "
            "again."
        )


def _flags(change: ChannelChange, features: int | None) -> Tensor:
    """Return (3,) booleans: channels outside of the axis, channels that stand twice, numbers that are not finite."""
    ordered = change.indices.detach().long().sort().values
    outside = ordered[0] < 0
    if features is not None:
        outside = outside | (ordered[-1] >= features)
    twice = (ordered[1:] == ordered[:-1]).any()
    # A sum is finite if all its parts are, but for an overflow, which `_explain` looks at again.
    spoilt = ~torch.isfinite(change.delta.detach().sum())
    return torch.stack([outside, twice, spoilt.to(outside.device)])


def _explain(name: str, change: ChannelChange, subject: str, shape: tuple[int, int] | None) -> None:
    indices = change.indices.detach().long().cpu()
    features = None if shape is None else shape[1 if change.axis == "input" else 0]
    outside = indices[(indices < 0) | (indices >= (features if features is not None else indices.max() + 1))]
    if len(outside):
        limit = "channels of at least 0" if features is None else f"channels of 0 to {features - 1}"
        raise CheckpointError(
            f"{subject} names channel {int(outside[0])} of '{name}'; expected {limit}. It is damaged, or of another "
            "base: save it again, or load its base."
        )
    values, counts = indices.unique(return_counts=True)
    if bool((counts > 1).any()):
        raise CheckpointError(
            f"{subject} names channel {int(values[counts > 1][0])} of '{name}' twice; expected each channel once. It "
            "is damaged: save it again."
        )
    wrong = int((~torch.isfinite(change.delta.detach())).sum())
    if wrong:
        raise NumericsError(
            f"{subject} holds NaNs or infinite numbers, {wrong} in '{name}'; expected finite ones. Load an earlier "
            "adapter, or train it again."
        )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
