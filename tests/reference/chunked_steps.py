"""What steps in chunks, layer by layer or chunk by chunk, are compared with: whole sequences of small models."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from tiny_models import SETTINGS, new_model
from torch import Tensor, nn

LENGTH = 23
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "gemma2": {},
    "gemma3_text": {"sliding_window": 6, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "qwen3": {
        "use_sliding_window": True,
        "sliding_window": 6,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "head_dim": 8,
    },
    "gpt2": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
}


def built(name: str, **options: Any) -> Any:
    """Return a fresh model in training mode and float64."""
    model: Any = new_model({"model_type": name, **SETTINGS.get(name, {}), **ARCHITECTURES[name], **options}).train()
    if name == "mixtral":
        model.set_experts_implementation("eager")  # grouped products know no float64
    return model.double()


def tokens(rows: int = 2, length: int = LENGTH, seed: int = 0) -> Tensor:
    """Return (rows, length) token ids."""
    return torch.randint(1, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of each gradient that is there."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def require_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-12) -> None:
    """Require the same names, and tensors alike in the norm of their difference."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error = float((found[name] - gradient).norm()) / max(float(gradient.norm()), 1e-12)
        assert error <= tolerance, (name, error)


def in_chunks(kind: Any, **options: Any) -> Callable[[Any, Mapping[str, Tensor]], Tensor]:
    """Return what makes a step with a driver: of a model and a batch."""
    return lambda model, batch: kind(model, **options).step(batch)


def compare_with_whole(
    step: Callable[..., Tensor], model: Any, batch: Mapping[str, Tensor], tolerance: float = 1e-12
) -> None:
    """Run the whole sequences on a copy, and `step(model, batch)`, and require equal losses and gradients."""
    whole = copy.deepcopy(model)
    loss = whole(**batch, use_cache=False).loss  # with a cache, transformers takes a packed row for one document
    loss.backward()
    found = step(model, batch)
    torch.testing.assert_close(found.double(), loss.detach().double(), rtol=1e-6, atol=0)  # the loss is in float32
    require_equal(gradients(model), gradients(whole), tolerance)


def require_slope_of_dropped_loss(step: Callable[..., Tensor], model: Any, batch: Mapping[str, Tensor]) -> None:
    """Require the slope of a GPT-2's loss under one draw of dropout to be that of a finite difference.

    It is so only where forward and backward, and steps from one state of the generator, draw the same masks.
    """
    torch.manual_seed(3)
    step(model, batch)
    weight = model.transformer.h[0].mlp.c_fc.weight
    direction = torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(0))
    slope, losses = float((weight.grad * direction).sum()), []
    for size in (1e-3, -1e-3):
        with torch.no_grad():
            weight.add_(direction, alpha=size)
        torch.manual_seed(3)
        losses.append(float(step(model, batch)))
        with torch.no_grad():
            weight.sub_(direction, alpha=size)
    assert slope == pytest.approx((losses[0] - losses[1]) / 2e-3, rel=2e-3)
