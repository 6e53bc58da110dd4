"""Cross-entropy of one chunk of logits and its gradient, in the memory of the logits.

Pure functions; `featherweight.nn.linear_cross_entropy` feeds them chunk by chunk.
Shapes: C tokens of a chunk, V vocabulary.
Source: arXiv 2407.15892, section 3.2. Differs from the paper: forward and gradient are one pass over the logits, with
label smoothing as in `torch.nn.functional.cross_entropy`, soft-capped logits (Gemma 2, arXiv 2408.00118) and the z-loss
(PaLM, arXiv 2204.02311, section 5).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossOptions:
    """What is done to logits and loss beyond plain cross-entropy."""

    label_smoothing: float = 0.0
    """Share of the target distribution that is spread evenly over the vocabulary."""
    logit_softcap: float | None = None
    """Logits become ``cap * tanh(logits / cap)``; None leaves them."""
    logit_scale: float = 1.0
    """Multiplies the logits, before the cap."""
    z_loss: float = 0.0
    """Weight of the squared log of the softmax denominator in the loss."""


class TokenStats:
    """What a loss saw of each token, on the way and without a gradient; give it to `linear_cross_entropy` as `stats`.

    Every tensor has the shape of the labels; ignored tokens hold zeros.

    Attributes:
        entropy: of the predicted distribution, in nats, float32.
        logsumexp: log of the softmax denominator, float32.
        is_top: whether the label was the most probable token, bool.
        is_counted: whether the token counts, bool.

    Example:
        >>> from featherweight.nn.linear_cross_entropy import linear_cross_entropy
        >>> stats = TokenStats()
        >>> _ = linear_cross_entropy(torch.eye(3), 5 * torch.eye(3), torch.tensor([0, 1, 0]), stats=stats)
        >>> stats.is_top, round(stats.accuracy, 3)
        (tensor([ True,  True, False]), 0.667)
    """

    entropy: Tensor
    logsumexp: Tensor
    is_top: Tensor
    is_counted: Tensor

    @property
    def accuracy(self) -> float:
        """Share of the counted tokens whose label was the most probable token; 0 if none counts. Waits for a GPU."""
        return float(self.is_top.sum() / self.is_counted.sum().clamp(min=1))


@dataclass
class ChunkLoss:
    """Losses of a chunk and what else was asked for."""

    losses_C: Tensor
    gradient_CV: Tensor | None
    logsumexp_C: Tensor
    entropy_C: Tensor | None
    is_top_C: Tensor | None


def cross_entropy_(
    logits_CV: Tensor, labels_C: Tensor, options: LossOptions, *, with_gradient: bool, with_stats: bool = False
) -> ChunkLoss:
    """Return the loss of each token and, if wanted, its gradient with respect to the logits.

    With L the scaled and capped logits, lse their log-sum-exp, y the label, e the smoothing and z the z-loss:
    ``loss = lse - (1-e) * L[y] - e * mean(L) + z * lse**2`` and ``dloss/dL = (1 + 2*z*lse) * softmax(L) - e/V -
    (1-e) * onehot(y)``.

    Args:
        logits_CV: (C, V) float32 or float64. Overwritten; the gradient is stored there.
        labels_C: (C,) int64, each in [0, V).
        options: see `LossOptions`.
        with_gradient: also return the gradient.
        with_stats: also return entropy and hits.
    Cost: no second (C, V) tensor; with a soft cap one, with statistics one for a moment.
    """
    capped_CV, tanh_CV = _transform_(logits_CV, options)
    labels_C1 = labels_C[:, None]
    is_top_C = capped_CV.argmax(-1) == labels_C if with_stats else None
    # Everything is shifted by the maximum, so that one exponential serves loss and gradient.
    maximum_C1 = capped_CV.amax(-1, keepdim=True)
    shifted_CV = capped_CV.sub_(maximum_C1)
    target_C = shifted_CV.gather(-1, labels_C1)[:, 0]
    smoothing = options.label_smoothing
    mean_C = shifted_CV.mean(-1) if smoothing else None
    exp_CV = shifted_CV.exp_()
    sum_C1 = exp_CV.sum(-1, keepdim=True)
    log_sum_C = sum_C1[:, 0].log()
    logsumexp_C = log_sum_C + maximum_C1[:, 0]
    losses_C = log_sum_C - (1 - smoothing) * target_C
    if mean_C is not None:
        losses_C = losses_C - smoothing * mean_C
    if options.z_loss:
        losses_C = losses_C + options.z_loss * logsumexp_C.square()
    if not with_gradient and not with_stats:
        return ChunkLoss(losses_C, None, logsumexp_C, None, None)
    softmax_CV = exp_CV.div_(sum_C1)
    entropy_C = torch.special.entr(softmax_CV).sum(-1) if with_stats else None
    gradient_CV = None
    if with_gradient:
        if options.z_loss:
            softmax_CV.mul_((1 + 2 * options.z_loss * logsumexp_C)[:, None])
        if smoothing:
            softmax_CV.sub_(smoothing / logits_CV.shape[-1])
        minus_one_C1 = torch.full_like(labels_C1, smoothing - 1, dtype=softmax_CV.dtype)
        gradient_CV = _back_through_transform_(softmax_CV.scatter_add_(-1, labels_C1, minus_one_C1), tanh_CV, options)
    return ChunkLoss(losses_C, gradient_CV, logsumexp_C, entropy_C, is_top_C)


def _transform_(logits_CV: Tensor, options: LossOptions) -> tuple[Tensor, Tensor | None]:
    """Return scaled and capped logits, and the tanh of the cap, which its slope needs."""
    if options.logit_scale != 1:
        logits_CV.mul_(options.logit_scale)
    if options.logit_softcap is None:
        return logits_CV, None
    tanh_CV = logits_CV.div_(options.logit_softcap).tanh_()
    return tanh_CV * options.logit_softcap, tanh_CV


def _back_through_transform_(gradient_CV: Tensor, tanh_CV: Tensor | None, options: LossOptions) -> Tensor:
    if tanh_CV is not None:
        gradient_CV.mul_(tanh_CV.square_().neg_().add_(1))
    return gradient_CV if options.logit_scale == 1 else gradient_CV.mul_(options.logit_scale)
