"""The network that the options of a task describe: ours, or that of the package neuraloperator."""

from typing import Any

from torch import nn

from featherweight.errors import MissingExtraError
from featherweight.pde.fno import FNO
from featherweight.pde.options import PdeConfig


def new_network(config: PdeConfig, in_channels: int, out_channels: int, *, layers: int | None = None) -> nn.Module:
    """Return the network with random weights.

    Args:
        config: options of the task.
        in_channels: of the inputs.
        out_channels: of the solutions.
        layers: in place of `n_layers`.
    Raises:
        MissingExtraError: if its package is missing.
    """
    options: dict[str, Any] = {
        "n_modes": tuple(config.n_modes),
        "in_channels": in_channels,
        "out_channels": out_channels,
        "hidden_channels": config.hidden_channels,
        "n_layers": layers or config.n_layers,
        "projection_channel_ratio": config.projection_channel_ratio,
    }
    if config.model == "fno":
        return FNO(**options, domain_padding=config.domain_padding)
    return _neuraloperator_fno(options, config.domain_padding)


def _neuraloperator_fno(options: dict[str, Any], domain_padding: float) -> nn.Module:
    try:
        from neuralop.models import FNO as TheirFNO
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingExtraError(
            "pde task: model=neuraloperator needs the package neuraloperator; expected it installed. Run pip install "
            "'featherweight[operators]', or take model: fno, which has the same layers."
        ) from error
    return TheirFNO(**options, domain_padding=domain_padding or None)
