"""An exponential average of a network's weights, kept beside them: judged and saved in their place.

It lies in buffers of the network, so that checkpoints hold it and a resumed run goes on with it to the bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError

_NAME = "weight_average"
_WARM_UP = 10
"""The decay of step t is at most (1 + t) / (10 + t), or else the first weights would stay in a short run's average."""


class WeightAverage(nn.Module):
    """The average of the weights that train.

    Args:
        model: whose weights; methods are applied to it already.
        decay: share of the average that a step keeps.
    Raises:
        ConfigError: if the weights are parted over processes.
    """

    steps: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        for name, parameter in _trained(model):
            if hasattr(parameter, "device_mesh"):
                raise ConfigError(
                    "bev task: ema is set, but the weights are parted over processes; expected whole weights. Set ema "
                    "to null, or shard nothing."
                )
            self.register_buffer(_buffer(name), parameter.detach().clone())

    def pairs(self, model: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield every weight that trains with its average."""
        for name, parameter in _trained(model):
            yield parameter, self.get_buffer(_buffer(name))

    @torch.no_grad()
    def update_(self, model: nn.Module) -> None:
        """Take the weights of one more step into the average."""
        steps = int(self.steps)
        decay = min(self.decay, (1 + steps) / (_WARM_UP + steps))
        weights, averages = zip(*self.pairs(model), strict=True)
        torch._foreach_lerp_(list(averages), [weight.detach() for weight in weights], 1 - decay)
        self.steps += 1


def keep_average(model: nn.Module, decay: float) -> None:
    """Begin an average beside a network."""
    setattr(model, _NAME, WeightAverage(model, decay))


def average_of(model: nn.Module) -> WeightAverage | None:
    """Return the average beside a network, or None."""
    found = getattr(model, _NAME, None)
    assert found is None or isinstance(found, WeightAverage)
    return found


@contextmanager
def averaged(model: nn.Module) -> Iterator[None]:
    """Let the average take the place of the weights, and hide it, while the block runs; without one nothing changes."""
    average = average_of(model)
    if average is None:
        yield
        return
    pairs = list(average.pairs(model))
    delattr(model, _NAME)
    _exchange(pairs)
    try:
        yield
    finally:
        _exchange(pairs)
        setattr(model, _NAME, average)


def _exchange(pairs: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, average in pairs:
        parameter.data, average.data = average.data, parameter.data


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, one) for name, one in model.named_parameters() if one.requires_grad and one.is_floating_point())


def _buffer(name: str) -> str:
    return name.replace(".", "-")  # the names of buffers hold no points
