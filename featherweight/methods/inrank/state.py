"""What InRank remembers of a model: ranks, phase and history, kept on the model itself."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.nn.low_rank_linear import LowRankLinear

# A plain attribute, so that a deep copy of a model carries its ranks along.
ATTRIBUTE = "_featherweight_inrank"


@dataclass
class GrowthState:
    """What InRank knows of a model."""

    ranks: dict[str, int]
    """R by layer."""
    dense: dict[str, str]
    """Layers that stayed dense, and why."""
    is_frozen: bool = False
    quiet_checks: int = 0
    """Checks in a row at which no layer grew."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each layer and check: step, layer, rank, live, explained, values."""
    start: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)
    """The factors that a layer began with, for as long as growth is measured by the change since then."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"start": {}, **state})  # models that were pickled before there was a start


def growth_state(model: nn.Module) -> GrowthState:
    """Return what InRank knows of a model.

    Raises:
        ConfigError: if it is not applied.
    """
    state = vars(model).get(ATTRIBUTE)
    if not isinstance(state, GrowthState):
        raise ConfigError(
            f"InRank: model={type(model).__name__} has no growing layers; expected a model after fw.apply(model, "
            "fw.InRank()). Apply it first."
        )
    return state


def has_growing_ranks(model: nn.Module) -> bool:
    """Tell whether layers of a model may still grow."""
    state = vars(model).get(ATTRIBUTE)
    return isinstance(state, GrowthState) and not state.is_frozen


def growing_layer(model: nn.Module, name: str) -> LowRankLinear:
    """Return a layer by its full name.

    Raises:
        ConfigError: if something else has taken its place.
    """
    layer = model.get_submodule(name)
    if not isinstance(layer, LowRankLinear):
        raise ConfigError(
            f"InRank: '{name}' is a {type(layer).__name__} now; expected the growing layer that InRank put there. End "
            "the growth with InRank.freeze before another method wraps its layers."
        )
    return layer


def mean_ranks(history: list[dict[str, Any]]) -> dict[int, float]:
    """Return the mean rank over the layers by step of a history."""
    by_step: dict[int, list[int]] = defaultdict(list)
    for entry in history:
        by_step[entry["step"]].append(entry["rank"])
    return {step: sum(ranks) / len(ranks) for step, ranks in by_step.items()}
