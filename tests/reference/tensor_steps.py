"""One tensor and its steps, as tests of the optimizers of tensors need them."""

import torch
from torch import Tensor, nn

from featherweight.optim import TensorGaLoreAdamW

SHAPE = (6, 5, 4, 3)


KINDS = ("tucker", "tucker_channels", "matrix", "slices", "select")


def weight_of(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.complex128) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(7)))


def gradients(count: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.complex128) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(shape, dtype=dtype, generator=generator)
    return [base + torch.randn(shape, dtype=dtype, generator=generator) for _ in range(count)]


def train(optimizer: torch.optim.Optimizer, weight: Tensor, grads: list[Tensor]) -> Tensor:
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
    return weight.detach()


def build(weight: Tensor, **options) -> TensorGaLoreAdamW:
    defaults = {"lr": 1e-2, "rank": 0.3, "min_numel": 1, "update_proj_gap": 4, "stagger": False}
    defaults |= {"proj_type": "tucker", "residual": None, "scale": 1.0}  # the paper's
    return TensorGaLoreAdamW([weight], **{**defaults, **options})


# ---- full rank is AdamW


def uneven_gradients(count: int, shape: tuple[int, ...]) -> list[Tensor]:
    """Gradients of full rank whose energy lies in few directions of the first mode and in all of the others."""
    size = torch.logspace(0, -3, shape[0], dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
    return [(grad * size).to(torch.complex64) for grad in gradients(count, shape)]


class Product(nn.Module):
    """Entry-wise product with a complex tensor: its gradient is the conjugate of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).real.sum() + 0.05 * (self.weight.abs() ** 2 * x.abs()).sum()
