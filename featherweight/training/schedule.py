"""The learning rate over the steps of a run (warm-up, then constant, linear or cosine), and the order inside of a step.

Everything is a factor on the groups' own rates, so groups with different rates keep their ratio.
Source of the cosine: Loshchilov and Hutter, SGDR, arXiv 1608.03983, equation 5, without restarts.
"""

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from featherweight.config import Config


class Schedule(Config):
    """How the learning rate changes over a run."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Optimizer steps of linear warm-up; None takes `warmup_fraction`."""
    warmup_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Warm-up as a share of all steps, rounded down; None is none. Only one of the two may be given."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Factor on the rate that cosine and linear reach when the last step is done; "constant" ignores it."""

    order: Literal["batch", "layer", "chunk"] = "batch"
    """Inside of a step: each micro-batch through the whole model; each layer for all micro-batches, chunk by chunk; or
    each chunk through the whole model. The last two are for rows that are too long for one pass; chunk is for models
    with few heads of keys."""
    chunk_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a chunk under order: layer or chunk; None takes 8192, or a whole row that is shorter."""
    inputs: Literal["device", "host"] = "device"
    """Where the inputs of the layers wait under order: layer."""
    weights: Literal["device", "host"] = "device"
    """Where the weights wait under order: layer; on the host (all but final norm and positions) they need layerwise
    updates."""
    states: Literal["device", "host"] = "device"
    """Where their optimizer states wait under order: layer; on the host they need layerwise updates."""

    attention: Literal["repeat", "keep"] = "repeat"
    """Under order: layer, whether attention is computed once more in the backward pass, or what it has made is kept
    where the inputs wait: about as many bytes as these."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _layers_alone(self) -> "Schedule":
        for key in ("chunk_tokens", "inputs", "weights", "states", "attention"):
            value = getattr(self, key)
            has_effect = self.order == "layer" or (self.order == "chunk" and key == "chunk_tokens")
            if not has_effect and value != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key}={value} has no effect under order={self.order}; expected order=layer beside it. Set "
                    f"schedule.order=layer, or leave {key} out."
                )
        return self

    @model_validator(mode="after")
    def _one_warmup(self) -> "Schedule":
        if self.warmup_steps is not None and self.warmup_fraction is not None:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and warmup_fraction={self.warmup_fraction} are both given; "
                "expected one. "
                "Remove the other."
            )
        return self

    def warmup(self, steps: int) -> int:
        """Return the warm-up in optimizer steps for a run of `steps`."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return int((self.warmup_fraction or 0.0) * steps)


def lr_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Return the factor on the learning rate for one optimizer step.

    The warm-up rises linearly and reaches 1 at its last step; the decay starts from 1 and would reach
    `final_fraction` at index `steps`, so that no step is spent at a rate of 0.

    Args:
        schedule: the shape.
        step: index of the step, from 0.
        steps: optimizer steps of the run.

    Example:
        >>> [lr_factor(Schedule(name="linear", warmup_steps=2, final_fraction=0.0), step, 6) for step in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    warmup = schedule.warmup(steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    shape = 1.0 - progress if schedule.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * shape


def follow_groups(scheduler: Any) -> None:
    """Give a scheduler of torch the rates that its optimizer's groups have by now: it holds copies of ``initial_lr``.

    Call it after a method that changes rates on the way, as InRank does where ranks grow.

    Args:
        scheduler: one with `base_lrs`, such as LambdaLR and what transformers' get_scheduler returns, or accelerate's
            wrapper of one. Others hold no copies and need nothing.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)
    if hasattr(scheduler, "base_lrs"):
        groups = scheduler.optimizer.param_groups
        scheduler.base_lrs = [group.get("initial_lr", group["lr"]) for group in groups]


def restart(scheduler: Any, factor: float) -> list[float]:
    """Put the groups of an optimizer at a factor of their own rates, and a scheduler with them; return the rates."""
    rates = [base * factor for base in scheduler.base_lrs]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler.load_state_dict({**scheduler.state_dict(), "_last_lr": rates})
    return rates
