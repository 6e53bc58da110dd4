"""Inner rules: from a gradient and its moments to a direction.

A rule sees plain tensors of one shape (a whole weight, a flat slice of one, or a low-rank core: it cannot tell) and
updates the moments in place. `LowRankOptimizer` decides what is fed in and where the direction goes.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from featherweight.registry import Registry


class Rule(Protocol):
    """Turns a gradient into a direction; the weight moves by ``-lr * direction``."""

    @property
    def moments(self) -> Mapping[str, bool]:
        """Names of the state tensors, each with whether its values are signed."""
        ...

    def direction(self, grad: Tensor, moments: Mapping[str, Tensor], step: int, group: Mapping[str, Any]) -> Tensor:
        """Update `moments` in place and return the direction.

        Args:
            grad: any shape, float32 or float64. Not modified.
            moments: one tensor of the same shape and dtype for each name in `self.moments`.
            step: number of this step, from 1.
            group: the parameter group with the rule's options.
        Returns:
            New tensor of the shape of `grad`.
        """


class AdamWRule:
    """Adam's direction; decay is decoupled and happens where the weight is written.

    ``m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2``
    ``eps_mode="torch"``:    ``m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)``
    ``eps_mode="official"``: ``sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)``, as galore-torch computes it: its
    eps acts about 30 times more strongly at the first step.

    Source: Loshchilov and Hutter, arXiv 1711.05101.
    """

    moments = {"exp_avg": True, "exp_avg_sq": False}

    def direction(self, grad: Tensor, moments: Mapping[str, Tensor], step: int, group: Mapping[str, Any]) -> Tensor:
        """See `Rule.direction`."""
        beta1, beta2 = group["betas"]
        exp_avg, exp_avg_sq = moments["exp_avg"], moments["exp_avg_sq"]
        exp_avg.lerp_(grad, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        correction1, correction2_sqrt = 1 - beta1**step, (1 - beta2**step) ** 0.5
        denominator = exp_avg_sq.sqrt()
        if group["eps_mode"] == "torch":
            denominator.div_(correction2_sqrt).add_(group["eps"])
            return torch.div(exp_avg, denominator, out=denominator).div_(correction1)
        denominator.add_(group["eps"])
        return torch.div(exp_avg, denominator, out=denominator).mul_(correction2_sqrt / correction1)


class SGDRule:
    """SGD with heavy-ball momentum ``m = b1 m + g``, direction ``m`` (``b1 = betas[0]``; 0 is plain SGD).

    Linear in the gradient, so a full-rank subspace with ``scale=1`` must reproduce SGD exactly: the proof of the
    projection.
    """

    moments = {"exp_avg": True}

    def direction(self, grad: Tensor, moments: Mapping[str, Tensor], step: int, group: Mapping[str, Any]) -> Tensor:
        """See `Rule.direction`."""
        return moments["exp_avg"].mul_(group["betas"][0]).add_(grad).clone()


rules: Registry[Rule] = Registry("rule")
rules.register("adamw", AdamWRule())
rules.register("sgd", SGDRule())
