"""Whether the compiled code of `native` has the bits of PyTorch's operations on this processor.

A processor without fused products, or a PyTorch built for one, rounds elsewhere. So the code is asked, once a process
and in a few milliseconds, before it runs for a user. The operations are those of the twins, written down once more in
their plainest form: a row below must not import the optimizers above it. Tests compare with the twins themselves.
"""

import ctypes

import torch
from torch import Tensor

from featherweight.kernels import native

COUNT = 1031
"""A few blocks and a rest that fills no vector."""
_ALPHA, _BETA = -0.01, 0.99


def differing_result(loaded: ctypes.CDLL) -> str:
    """Return what differs between the compiled code and PyTorch's operations; empty if nothing does."""
    generator = torch.Generator().manual_seed(0)
    for official in (False, True):
        for beta1 in (0.9, 0.3):
            options = native.Options(beta1, 0.999, 1e-8, 3, official)
            difference = _differing_adamw(loaded, options, generator)
            if difference:
                return difference
    return "" if _rounding_agrees(loaded, generator) else "stochastic rounding"


def _numbers(generator: torch.Generator) -> Tensor:
    values = torch.randn(COUNT, generator=generator)
    return values * 10.0 ** (torch.randn(COUNT, generator=generator) * 3 - 4)


def _differing_adamw(loaded: ctypes.CDLL, options: native.Options, generator: torch.Generator) -> str:
    grad, exp_avg, weight = (_numbers(generator) for _ in range(3))
    exp_avg_sq = _numbers(generator).square_()
    ours = tuple(tensor.clone() for tensor in (exp_avg, exp_avg_sq))
    moved = torch.empty(COUNT)
    native.run_adamw(loaded, grad, (ours[0], ours[1]), options, moved, 0)
    written, again = weight.clone(), (exp_avg.clone(), exp_avg_sq.clone())
    write = native.Write(written, _ALPHA, _BETA, lambda span: (0, 0))
    native.run_adamw(loaded, grad, again, options, written, 1, write)

    exp_avg.lerp_(grad, 1 - options.beta1)
    exp_avg_sq.mul_(options.beta2).addcmul_(grad, grad, value=1 - options.beta2)
    correction1, correction2_sqrt = 1 - options.beta1**options.step, (1 - options.beta2**options.step) ** 0.5
    denominator = exp_avg_sq.rsqrt().reciprocal_()
    if options.is_official:
        direction = exp_avg.div(denominator.add_(options.eps)).mul_(correction2_sqrt / correction1)
    else:
        direction = exp_avg.div(denominator.div_(correction2_sqrt).add_(options.eps)).div_(correction1)
    weight.mul_(_BETA).add_(direction, alpha=_ALPHA)
    pairs = {"exp_avg": (exp_avg, ours[0]), "exp_avg_sq": (exp_avg_sq, ours[1]), "direction": (direction, moved)}
    pairs["weight"] = (weight, written)
    return next((name for name, (twin, our) in pairs.items() if not torch.equal(twin, our)), "")


def _rounding_agrees(loaded: ctypes.CDLL, generator: torch.Generator) -> bool:
    """Say whether values that bfloat16 holds stay, and others go to a neighbour."""
    values = _numbers(generator)
    out = torch.empty(COUNT, dtype=torch.bfloat16)
    native.run_round(loaded, out, values, 1.0, 0.0, 5, lambda span: (1, 2), is_update=False)
    held = out.float()
    again = torch.empty_like(out)
    native.run_round(loaded, again, held, 1.0, 0.0, 0, lambda span: (3, 4), is_update=False)
    return torch.equal(again, out) and bool(((held - values).abs() <= values.abs() * 2**-7).all())
