"""The step of parameters without a subspace: torch's fused kernel where it fits, else slices of the rule."""

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from featherweight.optim import state as states
from featherweight.optim.policies.rules import rules
from featherweight.optim.state_check import check_fused
from featherweight.optim.step import fused_adamw
from featherweight.optim.step.layout import Layout
from featherweight.optim.step.matrix import Group, read_moments, rounding_of, write_factors, write_moments
from featherweight.optim.step.weight_update import add_direction_, copy_back, slices_of, weight_of
from featherweight.quant.int8_weight import Int8Weight, int8_weight_of


def fits_torch_kernel(layout: Layout, parameter: Tensor, grad: Tensor, group: Group) -> bool:
    """Say whether torch's fused AdamW computes the update of a parameter."""
    is_whole = layout.rank is None and layout.tensor is None
    dense = is_whole and all(storage.name == "dense" for storage in layout.moments.values())
    plain = layout.rule == "adamw" and group["eps_mode"] == "torch" and group["decay_order"] == "before"
    same = parameter.dtype == grad.dtype == layout.dtype and parameter.is_contiguous() and grad.is_contiguous()
    return dense and plain and same and int8_weight_of(parameter) is None


def step_fused_(parameters: list[Tensor], grads: list[Tensor], by_parameter: list[states.State], group: Group) -> None:
    """Let torch's fused kernel update float32 weights with float32 moments: no temporaries at all.

    Args:
        parameters: of one group; written in place.
        grads: of the same shapes.
        by_parameter: their states.
        group: their group.
    Raises:
        ShapeError: if a gradient or moment does not fit its parameter.
    """
    exp_avgs, exp_avg_sqs = ([state[name] for state in by_parameter] for name in ("exp_avg", "exp_avg_sq"))
    check_fused(parameters, grads, (exp_avgs, exp_avg_sqs))
    beta1, beta2 = group["betas"]
    counts = [states.read_counter(state, "step", None) for state in by_parameter]
    for state, count in zip(by_parameter, counts, strict=True):
        states.write_counter(state, "step", None, count + 1)
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


def step_dense_(parameter: Tensor, grad: Tensor, layout: Layout, state: states.State, group: Group) -> None:
    """Run the rule, an elementwise one on flat slices: its temporaries are a few slices, whatever the size.

    Args:
        parameter: written in place, its moments and step count too.
        grad: of its shape.
        layout: of the parameter.
        state: of the parameter.
        group: of the parameter.
    """
    rule = rules.get(layout.rule)
    step = states.read_counter(state, "step", None) + 1
    states.write_counter(state, "step", None, step)
    alpha, beta = write_factors(float(group["lr"]), group)
    weight = weight_of(parameter)
    rounding = rounding_of(group, layout, step)
    stored = {name: states.parts_of(state, name, None) for name in layout.moments}

    if fused_adamw.kernel_for(layout, grad, group) is not None:
        fused_adamw.step_(weight, grad, layout, stored, step, group, rounding, alpha=alpha, beta=beta)
        copy_back(parameter, weight)
        return

    def run(weight: Tensor | Int8Weight, grad: Tensor, parts: dict[str, dict[str, Tensor]], start: int) -> None:
        shapes = {n: tuple(grad.shape) for n in parts} if rule.is_elementwise else layout.moment_shapes
        moments = read_moments(layout, parts, shapes)
        direction = rule.direction(grad.to(layout.dtype), moments, step, group)
        write_moments(layout, parts, moments, rounding, offset=start)
        add_direction_(weight, direction, alpha=alpha, beta=beta, rounding=rounding, offset=start)

    if rule.is_elementwise:
        flat_grad = grad.reshape(-1)
        for start, stop, piece in slices_of(weight):
            parts = {name: layout.moments[name].slice(stored[name], start, stop) for name in stored}
            run(piece, flat_grad[start:stop], parts, start)
    else:
        run(weight, grad, stored, 0)
    copy_back(parameter, weight)
