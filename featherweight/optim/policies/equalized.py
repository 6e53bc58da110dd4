"""A residual without state: what lies outside of the subspace, each of its parts brought to one size.

Adam gives every entry a step of equal size, whatever its energy. A projection takes that from all that it drops: for
the weights of a spectral layer, whose frequency axes carry wave numbers, it is a low-pass filter on the update. The
part outside keeps no moments; divided by its own size it still moves every direction in each step::

    R = G - P(G);   D <- D + w R / rms_m(R)     spectral tensors, the root mean square over the channels of a frequency
                    D <- D + w R / |R|          all others: the sign, a phase for complex numbers

Source: sign descent outside of the subspace is FRUGAL's, arXiv 2411.07837; by frequency it is ours.
"""

import torch
from torch import Tensor

from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim.policies.residual import MIN_SHARE, ResidualPolicy, ServedMatrix, Update, residual_policies


def equalize_(rest: Tensor, grad: Tensor, *, by_frequency: bool) -> Tensor:
    """Bring each part of what the projection has lost to size 1, in place.

    A part below `MIN_SHARE` of the gradient's size is rounding, of the bases or of the products: it is divided by that
    share instead of its own size, so that it stays as small as it is.

    Args:
        rest: what lies outside of the subspace, real or complex; written.
        grad: the gradient, of the same shape.
        by_frequency: whether modes after the first two count frequencies, so that a part is a frequency; otherwise
            each entry is a part.
    Returns:
        `rest`.
    Cost: one temporary of the sizes of the tensor's entries.

    Example:
        >>> rest = torch.tensor([[3.0, -0.5], [0.0, 2.0]])
        >>> equalize_(rest, rest, by_frequency=False)
        tensor([[ 1., -1.],
                [ 0.,  1.]])
    """
    if by_frequency:
        size, whole = _rms(rest, (0, 1)), _rms(grad, (0, 1))
    else:
        size, whole = rest.abs(), _rms(grad, tuple(range(grad.ndim)))
    least = torch.finfo(size.dtype).tiny
    return rest.div_(torch.maximum(size, whole * MIN_SHARE).clamp_min_(least))


def _rms(numbers: Tensor, dims: tuple[int, ...]) -> Tensor:
    sizes = numbers.abs()
    # Scaled, as the square of a small number is zero, and what is divided by nothing is no direction.
    largest = sizes.amax(dims, keepdim=True).clamp_min_(torch.finfo(sizes.dtype).tiny)
    return sizes.div_(largest).square_().mean(dims, keepdim=True).sqrt_().mul_(largest)


class EqualizedResidual(ResidualPolicy):
    """Follow the sign of what lies outside of a matrix's subspace, beside the inner rule's direction inside.

    ``W <- W - lr (scale P D + residual_weight sign(G - P C))``, C the core and D what the rule makes of it.
    """

    is_plain = False
    why_whole = "residual=equalized needs what lies outside of the subspace"

    def needs_gradient(self, matrix: ServedMatrix) -> bool:
        """See `ResidualPolicy.needs_gradient`."""
        return True

    def update(self, matrix: ServedMatrix, core: Tensor, subspace: MatrixSubspace, grad_MN: Tensor | None) -> Update:
        """See `ResidualPolicy.update`."""
        assert grad_MN is not None
        scale, grad_MN = matrix.group["scale"], grad_MN.to(core.dtype)
        extra = equalize_(subspace.project_back(core.neg()).add_(grad_MN), grad_MN, by_frequency=False)
        return Update(matrix.core_direction(core), extra.mul_(matrix.group["residual_weight"] / scale), scale)


residual_policies.register("equalized", EqualizedResidual())
