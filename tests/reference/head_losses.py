"""Losses of an output head, ours and the plain computation."""

import torch
from torch.nn import functional as F

import featherweight as fw

N, D, V = 97, 6, 23  # a prime number of tokens: no chunk size but 1 divides it


def make(generator, ignored=0.3, dtype=torch.float64, bias=True, tokens=N):
    """Return hidden (a non-contiguous view), weight, bias, labels that begin and end ignored."""
    hidden = torch.randn(D, tokens, dtype=torch.float64, generator=generator).t().to(dtype).requires_grad_()
    weight = torch.randn(V, D, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    offset = torch.randn(V, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() if bias else None
    labels = torch.randint(V, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < ignored] = -100
    if ignored and tokens:
        labels[[0, -1]] = -100
    return hidden, weight, offset, labels


def reference(hidden, weight, bias, labels, *, reduction="mean", smoothing=0.0, cap=None, scale=1.0, z_loss=0.0):
    """The loss in plain PyTorch, all logits at once; without any counted label 0, where torch's mean is NaN."""
    logits = F.linear(hidden, weight, bias) * scale
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    losses = losses + z_loss * torch.where(labels == -100, 0, logits.logsumexp(-1).square())
    if reduction == "none":
        return losses
    return losses.sum() / (max(int((labels != -100).sum()), 1) if reduction == "mean" else 1)


def gradients(loss, tensors, upstream=None):
    upstream = torch.ones_like(loss) if upstream is None else upstream
    return torch.autograd.grad(loss, [tensor for tensor in tensors if tensor is not None], upstream)


def assert_equal(ours, theirs, tolerance=1e-12):
    """Compare losses or gradients; fp64 sums over N tokens in another order differ by some 1e-15."""
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def ours(hidden, weight, bias, labels, *, smoothing=0.0, cap=None, scale=1.0, z_loss=0.0, **options):
    return fw.linear_cross_entropy(
        hidden,
        weight,
        labels,
        bias=bias,
        label_smoothing=smoothing,
        logit_softcap=cap,
        logit_scale=scale,
        z_loss=z_loss,
        **options,
    )
