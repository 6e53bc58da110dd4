"""The recipe's key `sharding`: what of a model every process holds."""

from typing import Literal

from pydantic import Field

from featherweight.config import Config

KINDS = ("auto", "none", "ddp", "fsdp2")


class ShardingOptions(Config):
    """How several processes train one model; a name alone takes the defaults. Free on resume."""

    kind: Literal["auto", "none", "ddp", "fsdp2"] = "auto"
    """none: one process; ddp: every process holds the whole model, what is sent are cores of gradients; auto: none for
    one process, else ddp. fsdp2 (shares of rows) is for loops of your own for now."""
    check_every: int = Field(default=100, ge=0)
    """Optimizer steps between comparisons of what all processes hold alike; 0 never compares."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """What cores and gradients below double precision are sent as."""
