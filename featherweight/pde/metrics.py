"""Errors of predicted fields: relative L2 and H1, largest error, error by frequency.

Shapes: B samples, C channels, s_1 .. s_d points.
Source: Li et al., arXiv 2010.08895 (relative L2); Czarnecki et al., arXiv 1706.04859 (Sobolev training).
"""

from typing import Literal

import torch
from torch import Tensor

from featherweight.errors import ShapeError
from featherweight.pde.spectral import shell_spectrum

ErrorKind = Literal["l2", "h1", "h1_periodic"]
ERROR_KINDS: tuple[ErrorKind, ...] = ("l2", "h1", "h1_periodic")
"""Relative errors by the names that recipes and reports use."""


def relative_l2(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return ``||p - y|| / ||y||`` of each sample.

    Args:
        prediction: (B, ...) float.
        truth: same shape.
    Returns:
        (B,) float32 or float64, with gradient.
    Raises:
        ShapeError: if the shapes differ.
    Example:
        >>> relative_l2(torch.tensor([[3.0, 3.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([0.2000])
    """
    _require_same(prediction, truth)
    difference = (prediction - truth).flatten(1)
    return torch.linalg.vector_norm(difference, dim=1) / torch.linalg.vector_norm(truth.flatten(1), dim=1)


def relative_h1(prediction: Tensor, truth: Tensor, *, periodic: bool) -> Tensor:
    """Return ``sqrt((||e||^2 + ||grad e||^2) / (||y||^2 + ||grad y||^2))`` of each sample, e = p - y.

    Derivatives are central differences; at walls, of fields that are not periodic, one-sided ones of third order.

    Args:
        prediction: (B, C, s_1, .., s_d) float.
        truth: same shape.
        periodic: whether the fields wrap around (points at i / s) or end at walls (points at i / (s - 1)). The H1 loss
            of neuraloperator wraps around by default, and so do all published errors of Darcy flow.
    Returns:
        (B,), with gradient.
    Raises:
        ShapeError: if the shapes differ, or walls leave fewer than 4 points.
    """
    _require_same(prediction, truth)
    if not periodic and min(truth.shape[2:]) < 4:
        raise ShapeError(
            f"relative_h1: truth={tuple(truth.shape)} has fewer than 4 points in an axis; expected at least 4 for "
            "derivatives at walls. Use relative_l2."
        )
    error = prediction - truth
    lost, norm = error.flatten(1).square().sum(dim=1), truth.flatten(1).square().sum(dim=1)
    for axis in range(2, truth.ndim):
        lost = lost + derivative(error, axis, periodic=periodic).flatten(1).square().sum(dim=1)
        norm = norm + derivative(truth, axis, periodic=periodic).flatten(1).square().sum(dim=1)
    return (lost / norm).sqrt()


def relative_error(prediction: Tensor, truth: Tensor, kind: ErrorKind, *, periodic: bool) -> Tensor:
    """Return the relative error of each sample, (B,), that `kind` names; "h1_periodic" always wraps around."""
    if kind == "l2":
        return relative_l2(prediction, truth)
    return relative_h1(prediction, truth, periodic=periodic or kind == "h1_periodic")


def derivative(field: Tensor, axis: int, *, periodic: bool) -> Tensor:
    """Return the derivative of a field on the unit interval along an axis.

    Args:
        field: values, any shape.
        axis: which; points at i / s (periodic) or i / (s - 1).
        periodic: whether the axis wraps around.
    Returns:
        Same shape.
    """
    size = field.shape[axis]
    if periodic:
        return (field.roll(-1, axis) - field.roll(1, axis)) * (size / 2)
    x = field.movedim(axis, -1)
    inner = (x[..., 2:] - x[..., :-2]) / 2
    weights = x.new_tensor([-11 / 6, 3, -3 / 2, 1 / 3])
    first = (x[..., :4] * weights).sum(dim=-1, keepdim=True)
    last = -(x[..., -4:].flip(-1) * weights).sum(dim=-1, keepdim=True)
    return (torch.cat([first, inner, last], dim=-1) * (size - 1)).movedim(-1, axis)


def largest_error(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the largest absolute difference of each sample, (B,)."""
    _require_same(prediction, truth)
    return (prediction - truth).flatten(1).abs().amax(dim=1)


def error_by_shell(prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spectra of truth and of the error, summed over shells of equal wavenumber.

    Args:
        prediction: (B, s_1, .., s_d).
        truth: same shape.
    Returns:
        Two (K,) float64 tensors; see `shell_spectrum`.
    Raises:
        ShapeError: if the shapes differ.
    """
    _require_same(prediction, truth)
    return shell_spectrum(truth), shell_spectrum(prediction - truth)


def _require_same(prediction: Tensor, truth: Tensor) -> None:
    if prediction.shape != truth.shape:
        raise ShapeError(
            f"metrics: prediction={tuple(prediction.shape)} and truth={tuple(truth.shape)} differ; expected equal "
            f"shapes. "
            "Decode and squeeze both in the same way."
        )
