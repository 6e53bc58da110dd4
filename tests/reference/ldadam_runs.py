"""Runs of LDAdam beside its twin, with and without error feedback."""

import torch
from low_rank_twins import LDAdam, assert_follows, gradients, is_left
from torch import nn

from featherweight.optim import LDAdamW

SHAPES = [(7, 11), (11, 7), (8, 8)]


OPTIONS = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "scale": 0.5}


def build(shape, proj_type, *, rank=3, policy="rotate", **options):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    weight = nn.Parameter(start.clone())
    group = {"params": [weight], "rank": rank, "proj_type": proj_type, "moment_policy": policy}
    optimizer = LDAdamW([group], **OPTIONS, **options)
    return optimizer, weight, start


def stored_basis(optimizer, weight):
    state = optimizer.state[weight]
    return (state["basis_left"] if "basis_left" in state else state["basis_right"]).clone()


def follow(shape, proj_type, policy="rotate", steps=10, *, error_feedback):
    left = is_left(shape, proj_type)
    keys = {"error_feedback": error_feedback}
    optimizer, weight, start = build(shape, proj_type, policy=policy, basis_smoothing=0.7, **keys)
    twin = LDAdam(start if left else start.T, smoothing=0.7, rotates=policy == "rotate", **keys, **OPTIONS)

    def take_first_basis():
        if twin.basis is None:
            twin.basis = stored_basis(optimizer, weight)

    # Measured 6e-16. Mutations: a mean without bias correction, the weights of
    # the two parts of B swapped, or old^T new for new^T old differ by 1e-2.
    grads = gradients(shape, steps, seed=1, sizes=(1.0, 3.0, 0.5))
    assert_follows(optimizer, weight, twin, grads, left, before_twin=take_first_basis)
    return optimizer, weight, twin, left
