"""InRank: linear layers that start with a tiny rank and grow it while training needs it, in one run."""

from featherweight.methods.inrank.growth import grow
from featherweight.methods.inrank.method import InRank
from featherweight.methods.inrank.state import (
    GrowthState,
    growing_layer,
    growth_state,
    has_growing_ranks,
    mean_ranks,
)

__all__ = ["GrowthState", "InRank", "grow", "growing_layer", "growth_state", "has_growing_ranks", "mean_ranks"]
