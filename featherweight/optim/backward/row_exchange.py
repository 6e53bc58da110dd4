"""Sums of parameters of which every process holds some rows: to each its rows, to all one norm and one verdict.

A core behind a right basis has the rows of its matrix, so each process gets the mean of its own rows (a reduce-scatter,
in one buffer for all that wait together). Whether a sum is finite, and its norm, must be the same everywhere: a NaN in
one row is seen by the owner of that row alone.
"""

from collections.abc import Mapping

from torch import Tensor

from featherweight.optim.backward.step_sum import RowSum, StepSum
from featherweight.optim.sharding import shard_of
from featherweight.optim.step.check import Size


def exchange_rows(totals: Mapping[Tensor, StepSum]) -> None:
    """Average what only the owner of a row needs, and agree on norms and verdicts; two collectives, or none.

    Args:
        totals: sums by parameter, in the same order on all processes; those of whole parameters are left alone.
    """
    found = {parameter: shard_of(parameter) for parameter in totals}
    sharded: list[RowSum] = [totals[parameter] for parameter, shard in found.items() if shard is not None]  # type: ignore[misc]
    collectives = next((shard.collectives for shard in found.values() if shard is not None), None)
    if collectives is None:
        return
    wholes = [total.row_tensors() for total in sharded]
    rows = iter(collectives.mean_rows([tensor for one in wholes for tensor in one]) if any(wholes) else ())
    for total, mine in zip(sharded, wholes, strict=True):
        total.take_rows([next(rows) for _ in mine])
    sizes = [total.size() for total in sharded]
    squares = [size.squared_norm if size.is_usable else 0.0 for size in sizes]
    broken = [float(not size.is_usable) for size in sizes]
    agreed = collectives.sums([*squares, *broken])
    for total, squared, count in zip(sharded, agreed[: len(sizes)], agreed[len(sizes) :], strict=True):
        total.agree(Size(float("nan") if count else squared, not count))
