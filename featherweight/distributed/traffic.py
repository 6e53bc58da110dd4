"""What a rank sends in an optimizer step, by formula; `Traffic` counts what it has sent.

A ring sends ``(W-1)/W`` of a tensor for a gather or a scattered sum and twice that for a sum that all have.
Refreshes are left out: a matrix is due once in `update_proj_gap` steps.
"""

from collections.abc import Iterable
from typing import NamedTuple

from featherweight.optim.policies.refresh import choose_side


class Sizes(NamedTuple):
    """Elements of a model, as an optimizer of one rank treats them."""

    projected: int
    """P, of the weights that are projected."""
    cores: int
    """C, of their cores."""
    left_cores: int
    """Of those behind a left basis, of weights of which processes hold rows, so that fsdp2 sums them."""
    others: int
    """E, of everything else."""


def sizes_of(matrices: Iterable[tuple[int, int]], others: int, *, rank: int | None, proj_type: str = "std") -> Sizes:
    """Return the sizes that traffic follows from.

    Args:
        matrices: (M, N) of each weight that may be projected.
        others: elements of everything else.
        rank: R; None for a full-rank optimizer.
        proj_type: side of the bases.
    Example:
        >>> sizes_of([(16, 8), (8, 16), (4, 4)], 10, rank=4)
        Sizes(projected=256, cores=128, left_cores=64, others=26)
    """
    projected = cores = left_cores = 0
    for rows, columns in matrices:
        if rank is None or rank >= min(rows, columns):
            others += rows * columns
            continue
        side = choose_side(rows, columns, proj_type)
        core = {"right": rows * rank, "left": rank * columns, "both": rank * rank}[side]
        projected, cores = projected + rows * columns, cores + core
        left_cores += core if side == "left" else 0
    return Sizes(projected, cores, left_cores, others)


def ddp_bytes(sizes: Sizes, world_size: int, *, core_bytes: int = 4, other_bytes: int = 4) -> float:
    """Return what a rank sends in a step under ddp: cores, and whole gradients of everything else.

    Args:
        sizes: of the model; of one without projected weights for whole gradients.
        world_size: W.
        core_bytes: of an element of a core.
        other_bytes: of an element of another gradient.
    Example:
        >>> ddp_bytes(Sizes(projected=256, cores=128, left_cores=64, others=26), 2)
        616.0
    """
    return 2 * (world_size - 1) / world_size * (core_bytes * sizes.cores + other_bytes * sizes.others)


def fsdp2_bytes(
    sizes: Sizes,
    world_size: int,
    *,
    weight_bytes: float = 2,
    gradient_bytes: float = 4,
    core_bytes: int = 4,
    sums_cores: bool = False,
    passes: int = 1,
) -> float:
    """Return what a rank sends in a step under fsdp2.

    FSDP2 gathers every weight twice in each backward pass and sums its gradient once. The optimizer sends cores behind
    left bases, as a sum that all have; with layer-wise core gradients all cores, in place of gradients, once a step.

    Args:
        sizes: of the model.
        world_size: W.
        weight_bytes: of an element that is gathered; ``1 + 4 / 256`` for int8 codes with their scales.
        gradient_bytes: of an element that is summed.
        core_bytes: of an element of a core.
        sums_cores: gradients of projected weights are not formed, their cores are summed by rows.
        passes: backward passes of a step.
    Example:
        >>> sizes = Sizes(projected=256, cores=128, left_cores=64, others=26)
        >>> fsdp2_bytes(sizes, 2), fsdp2_bytes(sizes, 2, sums_cores=True)
        (1384.0, 1000.0)
    """
    share = (world_size - 1) / world_size
    gathered = 2 * weight_bytes * passes * (sizes.projected + sizes.others)
    formed = gradient_bytes * passes * (sizes.others + (0 if sums_cores else sizes.projected))
    by_rows = core_bytes * (sizes.cores - sizes.left_cores) if sums_cores else 0
    return share * (gathered + formed + by_rows + 2 * core_bytes * sizes.left_cores)


def copies_bytes(sizes: Sizes, copies: int, shard_size: int, *, other_bytes: int = 4, core_bytes: int = 4) -> float:
    """Return what a rank of hybrid sharding sends to the other copies in a step of core gradients.

    Args:
        sizes: of the model; of one without projected weights for whole gradients.
        copies: number of copies.
        shard_size: processes that share one.
        other_bytes: of an element of a gradient that is formed.
        core_bytes: of an element of a core.
    Example:
        >>> copies_bytes(Sizes(projected=256, cores=128, left_cores=0, others=26), 2, 4)
        154.0
    """
    sent = core_bytes * sizes.cores + other_bytes * sizes.others
    return 2 * (copies - 1) / copies * sent / shard_size
