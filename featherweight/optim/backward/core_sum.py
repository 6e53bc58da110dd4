"""Sums of gradients that never exist: what a layer-wise optimizer keeps between the micro-batches of one step.

A projection is linear, so the core of a sum is the sum of the cores: a projected matrix needs an accumulator of the
core's size. A refresh that is due needs the sum itself, which never exists; what exists is its product with a fixed
matrix, a sketch ``Y = sum(G_i) Omega``. With Omega from the first moment, which remembers earlier cores, ``qr(Y)`` is
a warm subspace iteration. The new basis holds from the next step on.
Shapes: gradient (M, N), core (R, N) behind a left basis, (M, R) behind a right one; a left sketch is (M, K), a right
one (N, K), with K = R, or R + 8 where nothing is remembered; S columns of the sketch of the norm.
Source: LDAdam, arXiv 2410.16103 (warm iteration); Halko et al., arXiv 0909.4061 (sketches).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from featherweight.errors import NumericsError
from featherweight.linalg.outer_product import Gradient, OuterProduct
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim.backward.sketch import (
    NORM_COLUMNS,
    basis_of_sketch,
    begin_sketch,
    norm_key,
    norm_matrix,
    remembered_core,
    sketch_key,
)
from featherweight.optim.backward.step_sum import CommonSketch, Summing
from featherweight.optim.policies.refresh import align
from featherweight.optim.step.check import Size, sizes_of
from featherweight.optim.step.layout import Member
from featherweight.optim.step.matrix import ProjectedMatrix
from featherweight.optim.step.matrix_layout import MatrixLayout
from featherweight.optim.step.step import Step
from featherweight.optim.step.weight_update import copy_back, weight_of


@dataclass
class _MatrixSum:
    """What is kept of the gradients of one matrix."""

    matrix: ProjectedMatrix
    is_first: bool
    """Whether its first basis was fitted to the first micro-batch of this very step."""
    norm_key: tuple[int, ...]
    core: Tensor
    """Filled with NaN if a basis was to be fitted to a gradient that is not finite: then nothing can be summed."""
    has_basis: bool = True
    sketch_matrices: dict[str, Tensor] = field(default_factory=dict)
    """Matrices Omega of the sketches, by side."""
    sketches: dict[str, Tensor] = field(default_factory=dict)
    norm_sketch: Tensor | None = None
    is_outside: bool = False
    """Whether the part inside of the subspace was taken from the sketch of the norm already."""

    def products(self) -> list[Tensor]:
        """Return what has as many rows as the matrix behind a right basis."""
        return [self.core] if self.norm_sketch is None else [self.core, self.norm_sketch]

    def tensors(self) -> list[Tensor]:
        kept = [self.core, *self.sketch_matrices.values(), *self.sketches.values()]
        return kept if self.norm_sketch is None else [*kept, self.norm_sketch]


class _Verdict(NamedTuple):
    """What is known of the sum of one matrix before its step."""

    is_usable: bool
    squared_norm: float
    has_sketch: bool
    """Whether a sketch holds anything: zeros give no basis."""
    is_used: bool
    """Whether any process has used the matrix: an expert without a gradient is left as it is."""


class CoreSum:
    """The cores of one parameter's matrices, summed in float32; with sketches where a refresh is due.

    Args:
        step: of the parameter.
        member: the parameter.
        matrices: its projected matrices.
        how: what the step asks of the sum.
    """

    def __init__(self, step: Step, member: Member, matrices: list[ProjectedMatrix], how: Summing) -> None:
        self.step, self.member, self.matrices, self.how = step, member, matrices, how
        self.layout: MatrixLayout = matrices[0].layout.whole
        """Of the whole matrices: a gradient that comes as its factors is one of all rows."""
        self.local: MatrixLayout = matrices[0].layout
        self.sums: dict[int, _MatrixSum] = {}
        self._verdicts: list[_Verdict] | None = None  # of the matrices in `sums`, until something changes them

    def add(self, grad: Gradient) -> None:
        """See `StepSum.add`; a gradient may also come as its factors."""
        self._verdicts = None
        grads = self.layout.gradients(grad)
        # A zero gradient of an only matrix is a gradient; an expert without one was not used. One wait for the device.
        # Among several processes all experts take part in what is averaged, as another process may have used them.
        is_used = [True] * len(grads)
        if self.layout.blocks is None or self.how.is_shared:
            pass
        elif isinstance(grad, Tensor):
            is_used = self.layout.used_matrices(grad).tolist()
        else:
            is_used = torch.stack([torch.as_tensor(one.any()) for one in grads]).tolist()
        for index, grad_MN in enumerate(grads):
            if is_used[index]:
                self._add(index, grad_MN)

    def _add(self, index: int, grad_MN: Gradient) -> None:
        matrix = self.matrices[index]
        total = self.sums.get(index)
        if total is None:
            total = self.sums[index] = self._begin(matrix, grad_MN)
        if not total.has_basis:
            return
        total.core += matrix.subspace(self.layout.product_dtype).project(grad_MN)
        for side, omega in total.sketch_matrices.items():
            total.sketches[side] += _times(grad_MN if side == "left" else grad_MN.mT, omega)
        if total.norm_sketch is not None:
            total.norm_sketch += _times(grad_MN, norm_matrix(self.layout, total.norm_key, grad_MN.device))

    def add_thin(self, left_TM: Tensor, thin_TK: Tensor) -> None:
        """Add ``left^T x``, where of x (T, N) only its product with `input_sketch_matrix` is left.

        Args:
            left_TM: output gradient.
            thin_TK: ``x @ input_sketch_matrix(...)``.
        Raises:
            NumericsError: if a refresh has become due since, which needs x itself.
        """
        self._verdicts = None
        (matrix,) = self.matrices
        total = self.sums.get(0)
        if total is None:
            total = self.sums[0] = self._begin(matrix, None)
        if total.sketch_matrices:
            raise NumericsError(
                f"optimizer: the subspace of '{self.layout.name}' is due for a refresh since the forward pass; "
                "expected each backward pass before the next step. Run forward and backward of a batch in turn."
            )
        rank = self.layout.rank
        left = matrix.subspace(self.layout.product_dtype).left if self.layout.side == "both" else None
        if left is None:  # one product for both: the few columns of the norm alone take half the time of a core
            both = left_TM.mT @ thin_TK
            core, norm_sketch = both[:, :rank], both[:, rank:]
        else:
            core = (left_TM @ left.to(left_TM.dtype)).mT @ thin_TK[:, :rank]
            norm_sketch = left_TM.mT @ thin_TK[:, rank:]
        total.core += core
        if total.norm_sketch is not None:
            total.norm_sketch += norm_sketch

    def _begin(self, matrix: ProjectedMatrix, grad_MN: Gradient | None) -> _MatrixSum:
        """Begin the sum of one matrix with its first gradient; None if it needs no refresh."""
        if self.how.common is not None:
            return self._begin_common(matrix, self.how.common)
        device = matrix.device
        is_first, is_seeded = not matrix.has_subspace(), self.layout.seeded_basis is not None
        is_sketched = not self.how.is_only and not is_seeded and (is_first or matrix.refresh_is_due())
        core = self.layout.zero_core(device)
        total = _MatrixSum(matrix, is_first, norm_key(matrix), core)
        fits = not is_seeded and matrix.refresh_is_due() and (self.how.is_only or is_first)
        assert grad_MN is not None or not (fits or is_first)
        if fits and grad_MN is not None and not _is_finite(grad_MN):
            core.fill_(float("nan"))
            total.has_basis = False
            return total
        if is_first and self.how.is_shared and not is_seeded:
            matrix.stand_in()  # the same for all processes, until their common sketch gives the first basis
        elif grad_MN is not None and (self.how.is_only or is_first or is_seeded):
            matrix.refresh(grad_MN)  # before a first basis there is nothing to sum in
            matrix.store_carried()
        if is_sketched:
            for side, (omega, start) in _sketch_matrices(matrix).items():
                total.sketch_matrices[side], total.sketches[side] = omega, start
        self._begin_norm_sketch(total)
        return total

    def _begin_common(self, matrix: ProjectedMatrix, common: CommonSketch) -> _MatrixSum:
        """Begin the sum of a matrix with a shared basis, which no gradient of its own can change."""
        omega = common.sketch_matrix(matrix.layout)  # before the core: this is where a first basis comes from
        core = self.layout.zero_core(matrix.device)
        total = _MatrixSum(matrix, False, common.norm_key(), core)
        if omega is not None:
            total.sketch_matrices["right"], total.sketches["right"] = (
                omega,
                core.new_zeros(self.layout.columns, omega.shape[1]),
            )
        self._begin_norm_sketch(total)
        return total

    def _begin_norm_sketch(self, total: _MatrixSum) -> None:
        if self.how.estimates_norm:
            total.norm_sketch = total.core.new_zeros(self.layout.rows, NORM_COLUMNS)

    @property
    def is_sketched(self) -> bool:
        """Whether gradients are sketched for a refresh, which needs all of their factors."""
        return any(total.sketch_matrices for total in self.sums.values())

    def squared_norm(self) -> float:
        """Return the squared norm of the sum: exact inside the subspace, estimated without bias outside of it.

        Without their sketch, of the part inside the subspace alone. Matrices whose sum is not finite are left out.
        """
        return sum(verdict.squared_norm for verdict in self._read())

    def _read(self) -> "list[_Verdict]":
        """Return what is to be known of the sums before the step; the device is waited for once."""
        if self._verdicts is not None:
            return self._verdicts
        measured: list[Tensor] = []
        for each in self.sums.values():
            measured += [each.core, *self._outside(each)]
        has_sketch = [sketch.any() for each in self.sums.values() for sketch in each.sketches.values()]
        found, flags = sizes_of(measured, has_sketch)
        sizes, sketched = iter(found), iter(flags)
        self._verdicts = []
        for each in self.sums.values():
            core = next(sizes)
            outside = 0.0 if each.norm_sketch is None else next(sizes).squared_norm
            # Columns of a gaussian projection are not orthonormal: there is no inside and outside.
            is_whole = each.norm_sketch is not None and self.layout.seeded_basis == "gaussian"
            squared = outside if is_whole else core.squared_norm + outside
            is_sketched = any([next(sketched) for _ in each.sketches])
            is_used = self.layout.blocks is None or core.squared_norm != 0 or is_sketched
            self._verdicts.append(_Verdict(core.is_usable, squared if core.is_usable else 0.0, is_sketched, is_used))
        return self._verdicts

    def _outside(self, total: _MatrixSum) -> list[Tensor]:
        """Return the tensor whose norm stands for what lies outside of the subspace, if one is kept."""
        if total.norm_sketch is None or total.is_outside or self.layout.seeded_basis == "gaussian":
            return [] if total.norm_sketch is None else [total.norm_sketch]
        omega = norm_matrix(self.layout, total.norm_key, total.norm_sketch.device)
        return [total.norm_sketch - _back_times(total.matrix.subspace(), total.core, omega)]

    def shared_tensors(self) -> Sequence[Tensor]:
        """See `StepSum.shared_tensors`; in the order of the matrices, whichever came first here."""
        self._verdicts = None
        self.sums = dict(sorted(self.sums.items()))
        sums = self.sums.values()
        products = [] if self._comes_in_parts else [tensor for total in sums for tensor in total.products()]
        return [*products, *(sketch for total in sums for sketch in total.sketches.values())]

    @property
    def _comes_in_parts(self) -> bool:
        return self.local.shares_core

    def row_tensors(self) -> Sequence[Tensor]:
        """See `RowSum.row_tensors`; columns or blocks of a core as rows."""
        if not self._comes_in_parts:
            return []
        share = self.local.core_share
        if share is None:
            return [tensor for total in self.sums.values() for tensor in total.products()]
        # What lies outside of a left basis takes whole columns to tell: told before these part, as it is linear, too.
        return [one for total in self.sums.values() for one in (share.as_rows(total.core), *self._outside(total))]

    def take_rows(self, rows: Sequence[Tensor]) -> None:
        """See `RowSum.take_rows`."""
        share, mine = self.local.core_share, iter(rows)
        for total in self.sums.values() if rows else ():
            core = next(mine)
            total.core, total.is_outside = (core, False) if share is None else (share.part_of_rows(core), True)
            total.norm_sketch = None if total.norm_sketch is None else next(mine)

    def size(self) -> Size:
        """See `RowSum.size`."""
        (verdict,) = self._read()
        # Where every process has the whole core it counts once.
        is_whole = self.local.shard is not None and not self._comes_in_parts
        share = 1 / self.local.shard.collectives.world_size if is_whole and self.local.shard is not None else 1.0
        return Size(verdict.squared_norm * share, verdict.is_usable)

    def agree(self, size: Size) -> None:
        """See `RowSum.agree`."""
        (verdict,) = self._read()
        squared = size.squared_norm if size.is_usable else 0.0
        self._verdicts = [verdict._replace(is_usable=size.is_usable, squared_norm=squared)]

    def update_(self, factor: float) -> int:
        """See `StepSum.update_`: the step of every matrix that got a gradient, then its refresh if one was due."""
        weight = weight_of(self.member.parameter)
        weights = self.local.weights(weight)
        skipped = 0
        for (index, total), verdict in zip(self.sums.items(), self._read(), strict=True):
            if not (verdict.is_usable and verdict.is_used):
                skipped += not verdict.is_usable
                continue
            matrix, step = total.matrix, total.matrix.counter("step")
            core = total.core if factor == 1.0 else total.core * factor
            matrix.update_(weights[index], core, matrix.subspace_at_hand(self.layout.product_dtype), None)
            if self.how.common is not None:
                for sketch in total.sketches.values():
                    self.how.common.add(sketch)
            elif verdict.has_sketch:
                fresh, subspace = _basis_of(total, self.layout), matrix.subspace(self.layout.product_dtype)
                if matrix.group["basis_smoothing"] > 0:
                    fresh = align(fresh, subspace)
                is_scheduled = total.is_first and matrix.counter("refresh_count") > 0
                matrix.install(fresh, subspace, step=None if is_scheduled else step)
                matrix.store_carried()
            self.step.ran = matrix.ran
        copy_back(self.member.parameter, weight)
        return skipped

    def tensors(self) -> Iterable[Tensor]:
        """See `StepSum.tensors`."""
        return [tensor for total in self.sums.values() for tensor in total.tensors()]


def core_sum_bytes(layout: MatrixLayout, *, is_sketched: bool, estimates_norm: bool) -> int:
    """Return the bytes of the sums of one projected parameter, in a step with or without a refresh.

    Args:
        layout: of a projected parameter.
        is_sketched: whether all its matrices refresh in the step.
        estimates_norm: see `Summing`.
    """
    rows, columns = layout.core_shape
    elements = rows * columns
    if is_sketched:  # a omega matrix and a sketch on each side that has a basis (before a first moment 8 columns more)
        elements += sum((layout.rows + layout.columns) * layout.rank for _ in layout.basis_shapes())
    if estimates_norm:
        elements += layout.rows * NORM_COLUMNS
    return layout.count * elements * layout.dtype.itemsize


def _basis_of(total: _MatrixSum, layout: MatrixLayout) -> MatrixSubspace:
    """Return the subspace that the sketches span."""
    key = sketch_key(total.matrix)
    bases = {side: basis_of_sketch(sketch, layout.rank, key) for side, sketch in total.sketches.items()}
    return MatrixSubspace(left=bases.get("left"), right=bases.get("right"))


def _is_finite(grad: Gradient) -> bool:
    return grad.is_finite() if isinstance(grad, OuterProduct) else bool(grad.isfinite().all())


def _back_times(subspace: MatrixSubspace, core: Tensor, test_NS: Tensor) -> Tensor:
    """Return ``project_back(core) @ omega`` without the large matrix in between."""
    inner = core @ (test_NS if subspace.right is None else subspace.right.mT @ test_NS)
    return inner if subspace.left is None else subspace.left @ inner


def _times(matrix: Gradient, omega: Tensor) -> Tensor:
    """Return a product with a tall thin matrix, a 16-bit one converted tile by tile."""
    return MatrixSubspace(right=omega).project(matrix)


def _sketch_matrices(matrix: ProjectedMatrix) -> dict[str, tuple[Tensor, Tensor]]:
    """Return by side the matrix Omega and what the sketch starts from."""
    layout, subspace = matrix.layout, matrix.subspace()
    if layout.side == "both":  # each side's basis is the omega matrix of the other one
        assert subspace.left is not None and subspace.right is not None
        zeros = {side: torch.zeros_like(basis) for side, basis in (("left", subspace.left), ("right", subspace.right))}
        return {"left": (subspace.right.clone(), zeros["left"]), "right": (subspace.left.clone(), zeros["right"])}
    basis = subspace.left if subspace.left is not None else subspace.right
    assert basis is not None
    length = layout.all_columns if layout.side == "left" else layout.all_rows
    mean_KR = remembered_core(matrix)
    if mean_KR is not None and layout.side == "left":
        mean_KR = mean_KR.mT
    key = sketch_key(matrix, matrix.counter("step"))
    return {layout.side: begin_sketch(basis, mean_KR, length, smoothing=matrix.group["basis_smoothing"], key=key)}
