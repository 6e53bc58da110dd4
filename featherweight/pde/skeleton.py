"""The task by shape alone: what a simulation of its memory trains.

Samples of a problem are not generated for it. Files are read, since their shapes decide.
Shapes: B samples, C channels, s_1 .. s_d points.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.pde.metrics import relative_error
from featherweight.pde.network import new_network
from featherweight.pde.operator import FieldOperator
from featherweight.pde.options import PdeConfig
from featherweight.pde.problem_options import problem_options
from featherweight.pde.problems import PROBLEMS
from featherweight.pde.splits import is_periodic, load_splits
from featherweight.training.task import Batch, Skeleton


class PdeSkeleton(Skeleton):
    """Stands for a `PdeTask` in a simulation.

    Args:
        config: options of the task.
        layers: build only so many of the Fourier layers; None builds all.
    Raises:
        ConfigError: if the data cannot be found or do not fit the model.
    """

    def __init__(self, config: PdeConfig, *, layers: int | None = None) -> None:
        self.config, self.words = config, config.words()
        self.layers = config.n_layers
        self._built_layers = layers or config.n_layers
        self._x, self._y = _shapes(config)
        self._is_periodic = is_periodic(config)

    def build_model(self) -> nn.Module:
        """Return the operator, with the weights of whatever device or mode is on."""
        network = new_network(self.config, self._x[0], self._y[0], layers=self._built_layers)
        x, y = (torch.zeros(2, shape[0], *[1] * (len(shape) - 1)) for shape in (self._x, self._y))
        return FieldOperator(network, x, y).train()

    def batches(self, split: Any, *, micro_batch_size: int, **others: Any) -> Iterator[dict[str, Tensor]]:
        """Yield micro-batches of the right shapes for ever; their content means nothing."""
        while True:
            yield {"x": torch.zeros(micro_batch_size, *self._x), "y": torch.zeros(micro_batch_size, *self._y)}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the sum of the errors and the number of samples, as the task does."""
        errors = relative_error(model(batch["x"]), batch["y"], self.config.loss, periodic=self._is_periodic)
        return errors.float().sum(), len(batch["x"])


def _shapes(config: PdeConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (C, s_1, .., s_d) of a sample's input and solution."""
    if config.data not in PROBLEMS:
        train, _ = load_splits(config)
        return tuple(train.x.shape[1:]), tuple(train.y.shape[1:])
    chosen = problem_options(config)
    options, dimensions = chosen.to_dict(), PROBLEMS[config.data].axes_of(chosen)
    points = (options["resolution"],) * dimensions
    return (1, *points), (options.get("snapshots", 1), *points)
