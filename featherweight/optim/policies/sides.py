"""The sides of a matrix on which a basis may stand, and the words that choose one."""

from typing import Literal, get_args

Side = Literal["left", "right", "both"]
SIDES: tuple[Side, ...] = ("left", "right", "both")
ProjType = Literal["std", "reverse_std", "left", "right", "full", "min_memory"]
"""galore-torch's words, and `min_memory`; see `featherweight.optim.policies.refresh.choose_side`."""
PROJ_TYPES: tuple[str, ...] = get_args(ProjType)
