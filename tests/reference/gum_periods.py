"""Periods of full rank as they come, and seeds under which they come as a test wants them."""

import functools

import torch
from low_rank_twins import gradients
from torch import nn

from featherweight.optim import GUM

SHAPES = [(7, 11), (11, 7), (8, 8)]


def run(optimizer, weight, grads):
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()


def periods(shape, probability, seed, gap, steps, **options):
    """Return for every step whether the matrix was in a full period."""
    weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = GUM(
        [{"params": [weight], "rank": 2}], full_rank_probability=probability, seed=seed, update_proj_gap=gap, **options
    )
    flags = []
    for grad in gradients(shape, steps):
        run(optimizer, weight, [grad])
        flags.append("exp_avg_full" in optimizer.state[weight])
    return flags


@functools.cache
def seed_with(pattern, gap=3, probability=0.5, **options):
    """Return the first seed whose successive periods follow the pattern, "s" for subspace, "f" for full."""
    for seed in range(200):
        flags = periods((4, 5), probability, seed, gap, gap * (len(pattern) - 1) + 1, **options)
        if "".join("f" if flag else "s" for flag in flags[::gap]) == pattern:
            return seed
    raise AssertionError(f"no seed gives {pattern}")
