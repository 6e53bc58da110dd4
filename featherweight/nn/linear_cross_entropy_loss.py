"""The chunked loss as a module, for code that configures its loss once and calls it at every step."""

from typing import Any

from torch import Tensor, nn

from featherweight.errors import LISTED, ConfigError, did_you_mean
from featherweight.nn.linear_cross_entropy import linear_cross_entropy


class LinearCrossEntropyLoss(nn.Module):
    """`linear_cross_entropy` with its options kept; it has no parameters, the head's weight is given at each call.

    Args:
        options: any option of `linear_cross_entropy`, such as ``ignore_index`` or ``label_smoothing``.
    Raises:
        ConfigError: if an option has another name.
    Example:
        >>> import torch
        >>> loss = LinearCrossEntropyLoss(label_smoothing=0.1, chunk_size=256)
        >>> loss(torch.ones(2, 4), torch.zeros(8, 4), torch.tensor([1, -100]))
        tensor(2.0794)
        >>> loss
        LinearCrossEntropyLoss(label_smoothing=0.1, chunk_size=256)
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        known = (linear_cross_entropy.__kwdefaults__ or {}).keys() - {"bias", "num_items_in_batch", "shift_labels"}
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"LinearCrossEntropyLoss: option={name!r} is unknown; expected one of {', '.join(sorted(known))}. "
                    f"{did_you_mean(name, known, otherwise=LISTED)}"
                )
        self.options = options

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor | nn.Module,
        labels: Tensor | None,
        *,
        bias: Tensor | None = None,
        num_items_in_batch: int | Tensor | None = None,
        shift_labels: Tensor | None = None,
    ) -> Tensor:
        """Return the loss; see `linear_cross_entropy`."""
        return linear_cross_entropy(
            hidden,
            weight,
            labels,
            bias=bias,
            num_items_in_batch=num_items_in_batch,
            shift_labels=shift_labels,
            **self.options,
        )

    def extra_repr(self) -> str:
        """Return the options for a printed model."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
