"""The norm of all gradients, and its limit."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from featherweight.distributed.run import clip_rows_
from featherweight.distributed.whole import is_sharded
from featherweight.optim.step.check import norm_of


def clip_(model: nn.Module, limit: float | None) -> float:
    """Scale the gradients of a model down to a norm over all of them, and return the norm that they had.

    Args:
        model: after its backward passes; shares of rows add up over their processes.
        limit: largest norm; None only measures.
    """
    trained = [one for one in model.parameters() if one.grad is not None]
    if is_sharded(model):
        return clip_rows_(trained, limit)
    norm = gradient_norm([one.grad for one in trained if one.grad is not None])
    # With an infinite norm the factor would be 0 or NaN everywhere; left alone, the optimizer skips just the
    # parameters concerned.
    if limit is not None and bool(torch.isfinite(norm)):
        clip_grads_with_norm_(trained, limit, norm)
    return float(norm)


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm over all gradients, accumulated in at least float32.

    Args:
        gradients: any shapes, one device; bf16 ones are summed in float32, because a bf16 norm has only three digits.

    Returns:
        A scalar, on the device of the gradients; 0 if there are none.
    """
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack([norm_of(one) for one in gradients]))
