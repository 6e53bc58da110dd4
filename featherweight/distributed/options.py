"""The recipe's key `sharding`: what of a model every process holds."""

from typing import Literal

from pydantic import Field

from featherweight.config import Config

KINDS = ("auto", "none", "ddp", "fsdp2", "hsdp")


class ShardingOptions(Config):
    """How several processes train one model; a name alone takes the defaults. Free on resume."""

    kind: Literal["auto", "none", "ddp", "fsdp2", "hsdp"] = "auto"
    """none: one process; ddp: every process holds the whole model, what is sent are cores of gradients; fsdp2: every
    process holds a share of the rows of every weight and moment; hsdp: the same in several copies, one on each machine;
    auto: none for one process, else ddp."""
    shard_size: int | None = Field(default=None, ge=1)
    """hsdp: processes that share one copy; the default are those of one machine."""
    check_every: int = Field(default=100, ge=0)
    """Optimizer steps between comparisons of what all processes hold alike; 0 never compares."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """What cores and gradients below double precision are sent as."""
    cores: Literal["auto"] | bool = "auto"
    """Send cores in place of gradients. auto: layer-wise updates do, and under ddp other steps without max_grad_norm.
    true: under ddp also with max_grad_norm, which then limits the norm of what the optimizer uses; fsdp2 and hsdp ask
    for layer-wise updates with core_gradient then. false: whole gradients, which layer-wise updates under ddp and
    core_gradient do not have."""
    reshard_after_forward: bool = True
    """fsdp2 and hsdp: free the weights of a layer between its forward and its backward pass, and gather them twice."""
    placement: Literal["side", "rows"] = "side"
    """fsdp2 and hsdp: side: each process holds rows of a weight, and of one behind a left basis its columns, so that no
    core has to be sent; rows: rows of all weights. Int8 weights, moments below 32 bits and columns that the processes
    do not divide stay with rows."""
    basis: Literal["auto", "replicated", "sharded"] = "auto"
    """fsdp2 and hsdp: replicated: every process has all bases; sharded: a share of each, gathered where a product needs
    it; auto: sharded if all bases take more than 5 % of the smallest card, else replicated."""
