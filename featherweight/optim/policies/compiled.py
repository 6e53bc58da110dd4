"""AdamW's direction as one compiled kernel: `rule="adamw_compiled"`.

A dozen small operations on a core become one pass over it. The first step waits for the compiler, about half a minute;
shapes are dynamic, so that it runs once for all cores.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import DeviceError
from featherweight.optim.policies.rules import AdamWRule


class CompiledAdamWRule(AdamWRule):
    """`AdamWRule` through torch.compile; directions are equal to rounding. Parameters without subspace run AdamW.

    Raises:
        DeviceError: at the first step, if nothing on this machine can compile.
    """

    def direction(self, grad: Tensor, moments: Mapping[str, Tensor], step: int, group: Mapping[str, Any]) -> Tensor:
        """See `Rule.direction`."""
        beta1, beta2 = group["betas"]
        # As tensors: numbers would be part of the compiled code, which would have to be compiled anew at each step.
        numbers = (1 - beta1, beta2, 1 - beta2, 1 - beta1**step, (1 - beta2**step) ** 0.5, group["eps"])
        scalars = [grad.new_full((), number) for number in numbers]
        try:
            return compiled_direction()(
                grad, moments["exp_avg"], moments["exp_avg_sq"], scalars, group["eps_mode"] == "official"
            )
        except (torch._dynamo.exc.BackendCompilerFailed, torch._inductor.exc.InductorError) as error:
            raise DeviceError(
                f"optimizer: rule='adamw_compiled' cannot be compiled for device={grad.device}; expected a C++ "
                f"compiler (CPU) or Triton (GPU). Use rule='adamw'. torch says: {error}"
            ) from error


@lru_cache(maxsize=1)
def compiled_direction() -> Callable[..., Tensor]:
    """Return the compiled form of `adamw_direction`."""
    compiled: Callable[..., Tensor] = torch.compile(adamw_direction, dynamic=True, fullgraph=True)
    return compiled


def adamw_direction(
    grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, scalars: list[Tensor], is_official: bool
) -> Tensor:
    """Update both moments in place and return the direction, as `AdamWRule` does.

    Args:
        grad: any shape.
        exp_avg: same shape.
        exp_avg_sq: same shape.
        scalars: ``1 - b1, b2, 1 - b2, 1 - b1^t, sqrt(1 - b2^t), eps``, 0-d each.
        is_official: galore-torch's place of eps.
    """
    rest1, beta2, rest2, correction1, correction2_sqrt, eps = scalars
    exp_avg.add_((grad - exp_avg) * rest1)
    exp_avg_sq.mul_(beta2).add_(grad * grad * rest2)
    if is_official:
        return exp_avg / (exp_avg_sq.sqrt() + eps) * (correction2_sqrt / correction1)
    return exp_avg / (exp_avg_sq.sqrt() / correction2_sqrt + eps) / correction1


COMPILED_ADAMW = CompiledAdamWRule()
"""The rule that `rules` names."""
