"""The one place that chooses what computes an inner update: by the rule, the storage of the moments, and the device.

| words in `optimizer.report()` | when | where |
|---|---|---|
| torch's fused kernel | AdamW, parameter without subspace; weight, gradient, moments of one dtype | here |
| C kernel | AdamW on a CPU, float32 arithmetic, any storage of moments | `fused_adamw.py` |
| Triton kernel | the same on a GPU, where `featherweight.kernels` switches them on | `fused_adamw.py` |
| lists of tensors | AdamW on cores off the CPU, where launches cost more than elementwise work | `together.py` |
| PyTorch operations | every other rule, storage and device; flat slices where the rule is elementwise | here |

All compute what the rule's `direction` computes; what differs in the last place is said where it stands.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from featherweight.optim import state as states
from featherweight.optim.policies.rules import rules
from featherweight.optim.step import fused_adamw
from featherweight.optim.step.layout import Layout, MatrixLayout, Stored
from featherweight.optim.step.state_check import check_fused
from featherweight.optim.step.step import Member
from featherweight.optim.step.weight_update import (
    add_direction_,
    copy_back,
    rounding_of,
    slices_of,
    weight_of,
    write_factors,
)
from featherweight.quant.int8_weight import Int8Weight, int8_weight_of

TORCH_FUSED = "torch's fused kernel"
LISTS = "lists of tensors"
PLAIN = "PyTorch operations"


def core_direction(
    stored: Stored, held: Mapping[str, Tensor] | None, core: Tensor, step: int, group: Mapping[str, Any]
) -> tuple[Tensor, str]:
    """Run the inner rule on a core and store its moments.

    Args:
        stored: the moments; written in place.
        held: the moments in the dtype of the arithmetic, if a refresh has changed them since they were stored.
        core: of this step's gradient. Not modified.
        step: number of this step of the moments, from 1.
        group: options of the rule.
    Returns:
        The direction, and words for what computed it.
    """
    layout = stored.layout
    if held is None and (kernel := fused_adamw.kernel_for(layout, core, group)) is not None:
        flat = replace(stored, offset=stored.matrix * core.numel(), matrix=0)
        return fused_adamw.direction(kernel, flat, core, step, group), fused_adamw.words_for(kernel)
    moments = stored.read() if held is None else held
    rule = rules.get(layout.rule)
    direction = rule.direction(core, moments, step, group)
    stored.write(moments)
    return direction, rule.words


def may_wait(layout: MatrixLayout, core: Tensor, group: Mapping[str, Any]) -> bool:
    """Say whether a matrix can be updated in a list: its update needs nothing but the core, and no kernel fits."""
    is_plain = layout.rule == "adamw" and layout.residual.is_plain
    return is_plain and fused_adamw.kernel_for(layout, core, group) is None


def fits_torch_kernel(layout: Layout, member: Member, grad: Tensor) -> bool:
    """Say whether torch's fused AdamW computes the update of a parameter without a subspace."""
    parameter, group = member.parameter, member.group
    dense = all(storage.name == "dense" for storage in layout.moments.values())
    plain = layout.rule == "adamw" and group["eps_mode"] == "torch" and group["decay_order"] == "before"
    same = parameter.dtype == grad.dtype == layout.dtype and parameter.is_contiguous() and grad.is_contiguous()
    return dense and plain and same and int8_weight_of(parameter) is None


def step_fused_(members: Sequence[Member], grads: list[Tensor]) -> None:
    """Let torch's fused kernel update float32 weights with float32 moments: no temporaries at all.

    Args:
        members: of one group; written in place.
        grads: of the same shapes.
    Raises:
        ShapeError: if a gradient or moment does not fit its parameter.
    """
    group, parameters = members[0].group, [member.parameter for member in members]
    exp_avgs, exp_avg_sqs = ([member.state[name] for member in members] for name in ("exp_avg", "exp_avg_sq"))
    check_fused(parameters, grads, (exp_avgs, exp_avg_sqs))
    beta1, beta2 = group["betas"]
    counts = [states.read_counter(member.state, "step", None) for member in members]
    for member, count in zip(members, counts, strict=True):
        states.write_counter(member.state, "step", None, count + 1)
    torch_adamw(
        parameters,
        grads,
        exp_avgs,
        exp_avg_sqs,
        [],
        _on_devices(counts, parameters),
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=float(group["lr"]),
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def _on_devices(counts: list[int], parameters: list[Tensor]) -> list[Tensor]:
    """Return the steps as the kernel counts them: float tensors beside the weights, to which it adds the 1 itself.

    One transfer for each device, and none that waits.
    """
    values = torch.tensor(counts, dtype=torch.float32)
    by_device = {device: values.to(device, non_blocking=True).unbind() for device in {p.device for p in parameters}}
    return [by_device[parameter.device][index] for index, parameter in enumerate(parameters)]


def step_dense_(layout: Layout, member: Member, grad: Tensor) -> str:
    """Update a parameter without a subspace, by a kernel or by the rule; return words for what computed it.

    An elementwise rule runs on flat slices: its temporaries are a few slices, whatever the size.

    Args:
        layout: of the parameter.
        member: written in place, its moments and step count too.
        grad: of its shape.
    """
    state, group = member.state, member.group
    rule = rules.get(layout.rule)
    step = states.read_counter(state, "step", None) + 1
    states.write_counter(state, "step", None, step)
    alpha, beta = write_factors(group)
    weight, rounding, words = weight_of(member.parameter), rounding_of(group, layout.index, step), rule.words
    parts = {name: states.parts_of(state, name, None) for name in layout.moments}
    whole = Stored(layout, parts, rounding)

    def run(weight: Tensor | Int8Weight, grad: Tensor, stored: Stored) -> None:
        moments = stored.read(tuple(grad.shape) if rule.is_elementwise else None)
        direction = rule.direction(grad.to(layout.dtype), moments, step, group)
        stored.write(moments)
        add_direction_(weight, direction, alpha=alpha, beta=beta, rounding=rounding, offset=stored.offset)

    if (kernel := fused_adamw.kernel_for(layout, grad, group)) is not None:
        fused_adamw.step_(kernel, weight, grad, whole, step, group)
        words = fused_adamw.words_for(kernel)
    elif rule.is_elementwise:
        flat_grad = grad.reshape(-1)
        for start, stop, piece in slices_of(weight):
            run(piece, flat_grad[start:stop], whole.slice(start, stop))
    else:
        run(weight, grad, whole)
    copy_back(member.parameter, weight)
    return words
