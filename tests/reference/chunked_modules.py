"""A layer that is cut into chunks, and what it must equal."""

import torch
from torch import nn

L, D = 53, 6


class Norm(nn.Module):
    """A token-wise layer whose parameter is used by two products, one of them frozen."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, D, dtype=torch.float64))
        self.inner = nn.Linear(D, D, dtype=torch.float64)
        self.frozen = nn.Linear(D, D, dtype=torch.float64).requires_grad_(False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.frozen(self.inner(x * self.scale).tanh()) * self.scale)

    def split(self, x, position):
        return self.inner(x + position), x.sum(-1, keepdim=True)


def inputs(generator, *shape):
    return torch.randn(*(shape or (2, L, D)), dtype=torch.float64, generator=generator).requires_grad_()


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)  # fp64 sums in another order: some 1e-15
