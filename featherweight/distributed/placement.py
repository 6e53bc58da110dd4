"""What lies where under `fsdp2` and `hsdp`: weights by rows or columns, bases whole or in shares.

A core behind a left basis is local to a process that holds columns of the weight, as one behind a right basis is to one
that holds rows. Which weights these are an optimizer says that was planned for the model before it is sharded.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from featherweight.distributed.group import world_size
from featherweight.distributed.options import ShardingOptions
from featherweight.distributed.world import World, common, device_name
from featherweight.errors import DeviceError
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.sharding import shard_of, share_bases
from featherweight.optim.step.layout import Layout
from featherweight.optim.step.matrix_layout import MatrixLayout
from featherweight.optim.step.plan import plans_silently
from featherweight.quant.int8_weight import int8_weight_of
from featherweight.quant.storage import DenseStorage

LARGE_BASES = 0.05
"""Share of a card from which `basis: auto` shares the bases."""


def left_sided(optimizer: Any, processes: int | None = None) -> list[str]:
    """Return the names of the weights of which processes should hold columns: those behind left bases.

    Left out, and held by rows, are int8 weights, moments below 32 bits (whose blocks, or random bits, run along rows of
    the core), and columns that the processes do not divide, which FSDP2 does not know.

    Args:
        optimizer: one of `fw.optim`, of groups with named parameters, built before the model is sharded.
        processes: that share one copy; None for all.
    Example:
        >>> import featherweight as fw
        >>> wide, tall = torch.nn.Parameter(torch.zeros(4, 8)), torch.nn.Parameter(torch.zeros(8, 4))
        >>> optimizer = fw.optim.GaLoreAdamW([("wide", wide), ("tall", tall)], rank=2)
        >>> left_sided(optimizer, 2), left_sided(optimizer, 3)
        (['wide'], [])
    """
    count = world_size() if processes is None else processes
    if not isinstance(optimizer, LowRankOptimizer):
        return []
    return [
        layout.name
        for parameter, layout in optimizer.layouts.items()
        if int8_weight_of(parameter) is None and takes_columns(layout, count)
    ]


def takes_columns(layout: Layout, processes: int) -> bool:
    """Say whether a parameter of this layout lies by columns on so many processes, where they are to hold these."""
    if not isinstance(layout, MatrixLayout) or layout.side != "left" or layout.alternative is not None:
        return False
    is_plain = len(layout.shape) == 2 and layout.blocks is None
    is_dense = all(isinstance(kept, DenseStorage) and kept.dtype is None for kept in layout.moments.values())
    return is_plain and is_dense and layout.all_columns % processes == 0


def columns_of_run(options: ShardingOptions, processes: int, build: Callable[[], Any]) -> list[str]:
    """Return the names of the weights of which a run's processes hold columns.

    Args:
        options: of its recipe.
        processes: that share one copy.
        build: returns the optimizer of the model as it is now, which is planned and thrown away.
    """
    if options.kind not in ("fsdp2", "hsdp") or options.placement != "side":
        return []
    with plans_silently():
        return left_sided(build(), processes)


def shares_bases(choice: str, basis_bytes: int, card_bytes: int | None) -> bool:
    """Say whether processes keep shares of the bases.

    Args:
        choice: key `basis` of a recipe.
        basis_bytes: of all bases, whole.
        card_bytes: memory of the smallest card; None without one.
    Example:
        >>> shares_bases("auto", 5 << 30, 80 << 30), shares_bases("auto", 5 << 30, None), shares_bases("sharded", 1, 0)
        (True, False, True)
    """
    if choice == "auto":
        return card_bytes is not None and basis_bytes > LARGE_BASES * card_bytes
    return choice == "sharded"


def basis_bytes_of(layouts: Iterable[Layout]) -> int:
    """Return the bytes of all bases, each counted whole."""
    return sum((one.whole if isinstance(one, MatrixLayout) else one).basis_bytes() for one in layouts)


def place_bases(world: World, optimizer: Any, options: ShardingOptions) -> Any:
    """Let an optimizer of a sharded model keep its bases as a recipe says, and return it; a collective.

    Args:
        world: of the run.
        optimizer: before its first step.
        options: of the recipe.
    """
    if not isinstance(optimizer, LowRankOptimizer) or world.size == 1:
        return optimizer
    sharded = [one for one in optimizer.layouts if shard_of(one) is not None]
    if not sharded:
        return optimizer
    cards = world.gather(_card_bytes(world.device))
    smallest = None if None in cards else min(cards)
    basis = basis_of_unlike(world.gather(device_name(world.device)), options.basis)
    if shares_bases(basis, basis_bytes_of(optimizer.layouts.values()), smallest):
        share_bases(sharded)
        optimizer.forget_layouts()
    return optimizer


def basis_of_unlike(names: Sequence[str], choice: str) -> str:
    """Return the choice that devices of these names can keep: of different kinds each fits another basis.

    The digits in which these differ would part rows of one moment. Shares are gathered, so that all have the same bits.

    Args:
        names: of the devices, by rank.
        choice: key `basis` of a recipe.
    Raises:
        DeviceError: if the recipe asks for a basis on each device of different kinds.
    Example:
        >>> basis_of_unlike(["H100", "A100"], "auto"), basis_of_unlike(["A100", "A100"], "auto")
        ('sharded', 'auto')
    """
    other = next((number for number, one in enumerate(names) if one != names[0]), None)
    if other is None:
        return choice
    if choice == "replicated":
        raise common(
            DeviceError(
                f"recipe: sharding.basis=replicated, but rank 0 has {names[0]} and rank {other} {names[other]}; "
                "expected one kind of device, or bases in shares, as each kind would fit a basis of its own. Set "
                "sharding.basis=sharded, or auto."
            )
        )
    return "sharded"


def _card_bytes(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
