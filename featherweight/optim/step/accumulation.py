"""Sums of gradients that never exist: what a layer-wise optimizer keeps between the micro-batches of one step.

A projection is linear, so the core of a sum is the sum of the cores: a projected matrix needs an accumulator of the
core's size. A refresh that is due needs the sum itself, which never exists; what exists is its product with a fixed
matrix, a sketch ``Y = sum(G_i) Omega``. With Omega from the first moment, which remembers earlier cores, ``qr(Y)`` is
a warm subspace iteration. The new basis holds from the next step on.
Shapes: gradient (M, N), core (R, N) behind a left basis, (M, R) behind a right one; a left sketch is (M, K), a right
one (N, K), with K = R, or R + 8 where nothing is remembered; S columns of the probe of the norm.
Source: LDAdam, arXiv 2410.16103 (warm iteration); Halko et al., arXiv 0909.4061 (sketches).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from featherweight.errors import NumericsError
from featherweight.linalg.basis import fit_left_basis, fix_signs
from featherweight.linalg.orthonormal import orthonormalize
from featherweight.linalg.outer_product import Gradient, OuterProduct
from featherweight.linalg.random import keyed_generator, random_normal
from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim.policies.refresh import align
from featherweight.optim.step.finite import Size, sizes_of
from featherweight.optim.step.layout import Layout
from featherweight.optim.step.matrix import ProjectedMatrix

PROBE_COLUMNS = 8
"""Random columns that estimate the norm of what lies outside the subspace."""

OVERSAMPLING = 8
_PROBE, _SKETCH = 101, 102  # tell the random numbers of one matrix apart


AllReduce = Callable[[Tensor, Mapping[str, Any]], None]
"""`Reducer.all_reduce`."""


class GradientSum(Protocol):
    """The sum of the gradients of one parameter over the micro-batches of a step, or what is kept of it."""

    def add(self, grad: Tensor) -> None:
        """Take in the gradient of one micro-batch; it may be kept and changed."""
        ...

    def squared_norm(self) -> float:
        """Return the squared norm of the sum."""
        ...

    def reduce(self, all_reduce: AllReduce, group: Mapping[str, Any]) -> None:
        """Average what is kept over the processes; `group` is the parameter group."""
        ...

    def tensors(self) -> Iterable[Tensor]:
        """Yield all tensors that are kept."""
        ...


@dataclass
class FullSum:
    """The sum itself, in the dtype of the gradients: as torch accumulates into ``.grad``."""

    grad: Tensor | None = None
    _size: Size | None = None

    def add(self, grad: Tensor) -> None:
        """See `GradientSum.add`."""
        self._size = None
        self.grad = grad if self.grad is None else self.grad.add_(grad)

    def squared_norm(self) -> float:
        """See `GradientSum.squared_norm`."""
        return self.size().squared_norm

    def size(self) -> Size:
        """Return norm and use of the sum; the device is waited for once."""
        if self._size is None:
            assert self.grad is not None
            (self._size,), _ = sizes_of([self.grad])
        return self._size

    def reduce(self, all_reduce: AllReduce, group: Mapping[str, Any]) -> None:
        """See `GradientSum.reduce`."""
        assert self.grad is not None
        self._size, self.grad = None, self.grad.resolve_conj().contiguous()
        # As pairs: backends of torch.distributed do not all take complex numbers.
        all_reduce(torch.view_as_real(self.grad) if self.grad.is_complex() else self.grad, group)

    def tensors(self) -> Iterable[Tensor]:
        """See `GradientSum.tensors`."""
        return () if self.grad is None else (self.grad,)


class CommonSketch(Protocol):
    """What several parameters with one right basis sketch together; see `shared_basis.py`."""

    def test_of(self, matrix: ProjectedMatrix) -> Tensor | None:
        """Return a member's rows of the matrix Omega of this step's sketch; None if no refresh is due."""
        ...

    def probe_key(self) -> tuple[int, ...]:
        """Return the key of the probe of the norm, one for all members."""
        ...

    def add(self, sketch: Tensor) -> None:
        """Take in what a member's gradient gives to the sketch."""
        ...


@dataclass
class _MatrixSum:
    """What is kept of the gradients of one matrix."""

    matrix: ProjectedMatrix
    is_first: bool
    """Whether its first basis was fitted to the first micro-batch of this very step."""
    probe_key: tuple[int, ...]
    core: Tensor
    """Filled with NaN if a basis was to be fitted to a gradient that is not finite: then nothing can be summed."""
    has_basis: bool = True
    tests: dict[str, Tensor] = field(default_factory=dict)
    """Matrices Omega of the sketches, by side."""
    sketches: dict[str, Tensor] = field(default_factory=dict)
    probe: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        kept = [self.core, *self.tests.values(), *self.sketches.values()]
        return kept if self.probe is None else [*kept, self.probe]


class _Verdict(NamedTuple):
    """What is known of the sum of one matrix before its step."""

    is_usable: bool
    squared_norm: float
    has_sketch: bool
    """Whether a sketch holds anything: zeros give no basis."""


class CoreSum:
    """The cores of one parameter's matrices, summed in float32; with sketches where a refresh is due.

    Args:
        layout: of the parameter, on the side that its state is on.
        matrices: its projected matrices.
        exact_refresh: fit due bases to the first gradient that comes, as an ordinary step does, because it is the only
            one of the step. Else a due refresh is made from a sketch, and holds from the next step on.
        probe_norm: also keep what estimates the norm of the part outside the subspace.
        is_shared: other processes sum other gradients of the same parameter; nothing may be fitted to these alone.
        common: where the sketch of a right basis goes that the parameter shares with others; they refresh it together.
    """

    def __init__(
        self,
        layout: Layout,
        matrices: list[ProjectedMatrix],
        *,
        exact_refresh: bool,
        probe_norm: bool,
        is_shared: bool = False,
        common: CommonSketch | None = None,
    ) -> None:
        self.layout, self.matrices, self.is_shared, self.common = layout, matrices, is_shared, common
        self.exact_refresh, self.probe_norm = exact_refresh, probe_norm
        self.sums: dict[int, _MatrixSum] = {}
        self._verdicts: list[_Verdict] | None = None  # of the matrices in `sums`, until something changes them

    def add(self, grad: Gradient) -> None:
        """See `GradientSum.add`; a gradient may also come as its factors."""
        self._verdicts = None
        grads = self.layout.gradients(grad)
        # A zero gradient of an only matrix is a gradient; an expert without one was not used. One wait for the device.
        is_used = [True]
        if self.layout.blocks is not None and isinstance(grad, Tensor):
            is_used = self.layout.used_matrices(grad).tolist()
        elif self.layout.blocks is not None:
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
        total.core += matrix.product_subspace().project(grad_MN)
        for side, test in total.tests.items():
            total.sketches[side] += _times(grad_MN if side == "left" else grad_MN.mT, test)
        if total.probe is not None:
            total.probe += _times(grad_MN, probe_test(self.layout, total.probe_key, grad_MN.device))

    def add_thin(self, left_TM: Tensor, thin_TK: Tensor) -> None:
        """Add ``left^T x``, where of x (T, N) only its product with `input_test` is left.

        Args:
            left_TM: output gradient.
            thin_TK: ``x @ input_test(...)``.
        Raises:
            NumericsError: if a refresh has become due since, which needs x itself.
        """
        self._verdicts = None
        (matrix,) = self.matrices
        total = self.sums.get(0)
        if total is None:
            total = self.sums[0] = self._begin(matrix, None)
        if total.tests:
            raise NumericsError(
                f"optimizer: the subspace of '{self.layout.name}' is due for a refresh since the forward pass; "
                "expected each backward pass before the next step. Run forward and backward of a batch in turn."
            )
        rank = self.layout.rank
        left = matrix.product_subspace().left if self.layout.side == "both" else None
        if left is None:  # one product for both: the few columns of a probe alone take half the time of a core
            both = left_TM.mT @ thin_TK
            core, probe = both[:, :rank], both[:, rank:]
        else:
            core = (left_TM @ left.to(left_TM.dtype)).mT @ thin_TK[:, :rank]
            probe = left_TM.mT @ thin_TK[:, rank:]
        total.core += core
        if total.probe is not None:
            total.probe += probe

    def _begin(self, matrix: ProjectedMatrix, grad_MN: Gradient | None) -> _MatrixSum:
        """Begin the sum of one matrix with its first gradient; None if it needs no refresh."""
        if self.common is not None:
            return self._begin_common(matrix, self.common)
        device = matrix.device
        is_first, is_seeded = not matrix.has_subspace(), self.layout.seeded_basis is not None
        is_sketched = not self.exact_refresh and not is_seeded and (is_first or matrix.refresh_is_due())
        core = torch.zeros(self.layout.core_shape, dtype=self.layout.dtype, device=device)
        total = _MatrixSum(matrix, is_first, probe_key(matrix), core)
        fits = not is_seeded and matrix.refresh_is_due() and (self.exact_refresh or is_first)
        assert grad_MN is not None or not (fits or is_first)
        if fits and grad_MN is not None and not _is_finite(grad_MN):
            core.fill_(float("nan"))
            total.has_basis = False
            return total
        if is_first and self.is_shared and not is_seeded:
            matrix.stand_in()  # the same for all processes, until their common sketch gives the first basis
        elif grad_MN is not None and (self.exact_refresh or is_first or is_seeded):
            matrix.refresh(grad_MN)  # before a first basis there is nothing to sum in
            matrix.store_carried()
        if is_sketched:
            for side, (test, start) in _sketch_tests(matrix).items():
                total.tests[side], total.sketches[side] = test, start
        self._begin_probe(total)
        return total

    def _begin_common(self, matrix: ProjectedMatrix, common: CommonSketch) -> _MatrixSum:
        """Begin the sum of a matrix with a shared basis, which no gradient of its own can change."""
        test = common.test_of(matrix)  # before the core: this is where a first basis comes from
        core = torch.zeros(self.layout.core_shape, dtype=self.layout.dtype, device=matrix.device)
        total = _MatrixSum(matrix, False, common.probe_key(), core)
        if test is not None:
            total.tests["right"], total.sketches["right"] = test, core.new_zeros(self.layout.columns, test.shape[1])
        self._begin_probe(total)
        return total

    def _begin_probe(self, total: _MatrixSum) -> None:
        if self.probe_norm:
            total.probe = total.core.new_zeros(self.layout.rows, PROBE_COLUMNS)

    @property
    def is_sketched(self) -> bool:
        """Whether gradients are sketched for a refresh, which needs all of their factors."""
        return any(total.tests for total in self.sums.values())

    def squared_norm(self) -> float:
        """Return the squared norm of the sum: exact inside the subspace, estimated without bias outside of it.

        Without probes, of the part inside the subspace alone. Matrices whose sum is not finite are left out.
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
            outside = 0.0 if each.probe is None else next(sizes).squared_norm
            # Columns of a gaussian projection are not orthonormal: there is no inside and outside.
            is_whole = each.probe is not None and self.layout.seeded_basis == "gaussian"
            squared = outside if is_whole else core.squared_norm + outside
            is_sketched = any([next(sketched) for _ in each.sketches])
            self._verdicts.append(_Verdict(core.is_usable, squared if core.is_usable else 0.0, is_sketched))
        return self._verdicts

    def _outside(self, total: _MatrixSum) -> list[Tensor]:
        """Return the tensor whose norm stands for what lies outside of the subspace, if there is a probe."""
        if total.probe is None or self.layout.seeded_basis == "gaussian":
            return [] if total.probe is None else [total.probe]
        test = probe_test(self.layout, total.probe_key, total.probe.device)
        return [total.probe - _back_times(total.matrix.subspace(), total.core, test)]

    def reduce(self, all_reduce: AllReduce, group: Mapping[str, Any]) -> None:
        """See `GradientSum.reduce`."""
        self._verdicts = None
        for total in self.sums.values():
            for tensor in (total.core, *total.sketches.values(), *(() if total.probe is None else (total.probe,))):
                all_reduce(tensor, group)

    def update_(self, weights: list[Any], factor: float | Tensor) -> int:
        """Make the step of every matrix that got a gradient, then its refresh if one was due.

        Args:
            weights: (M, N) each, float or int8; written in place.
            factor: of the gradient, from clipping.
        Returns:
            Number of matrices that were left out because their sum is not finite.
        """
        skipped = 0
        for (index, total), verdict in zip(self.sums.items(), self._read(), strict=True):
            if not verdict.is_usable:
                skipped += 1
                continue
            matrix, subspace = total.matrix, total.matrix.product_subspace()
            step = matrix.counter("step")
            core = total.core if factor == 1.0 else total.core * factor
            matrix.update_(weights[index], core, subspace, None)
            if self.common is not None:
                for sketch in total.sketches.values():
                    self.common.add(sketch)
            elif verdict.has_sketch:
                fresh = _basis_of(total, self.layout)
                if matrix.group["basis_smoothing"] > 0:
                    fresh = align(fresh, subspace)
                is_scheduled = total.is_first and matrix.counter("refresh_count") > 0
                matrix.install(fresh, subspace, step=None if is_scheduled else step)
                matrix.store_carried()
        return skipped

    def tensors(self) -> Iterable[Tensor]:
        """See `GradientSum.tensors`."""
        return [tensor for total in self.sums.values() for tensor in total.tensors()]


def probe_key(matrix: ProjectedMatrix, step: int | None = None) -> tuple[int, ...]:
    """Return the key of the random numbers of a step's probe of the norm; without `step`, of the next one."""
    step = matrix.counter("step") if step is None else step
    return (matrix.group["seed"], matrix.layout.index, matrix.block or 0, step, _PROBE)


def probe_test(layout: Layout, key: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the random (N, S) matrix whose product with a gradient estimates the gradient's norm."""
    shape = (layout.columns, PROBE_COLUMNS)
    generator = keyed_generator(*key, device=device)
    return torch.randn(shape, generator=generator, dtype=layout.dtype, device=device) / PROBE_COLUMNS**0.5


def input_test(matrix: ProjectedMatrix, *, probe_norm: bool) -> Tensor | None:
    """Return the (N, R + S) matrix whose product with a linear layer's input is all that its gradient's core needs.

    Args:
        matrix: of a weight (M, N) that is multiplied with its input on the side of N.
        probe_norm: as in `CoreSum`.
    Returns:
        Basis and probe side by side; None while the input itself is needed: behind a left basis, before the first
        basis, and where a refresh is due.
    """
    layout = matrix.layout
    if layout.side == "left" or layout.blocks is not None or not matrix.has_subspace() or matrix.refresh_is_due():
        return None
    return basis_and_probe(matrix, probe_key(matrix) if probe_norm else None)


def basis_and_probe(matrix: ProjectedMatrix, key: tuple[int, ...] | None) -> Tensor:
    """Return the right basis and the probe of the norm with this key side by side, (N, R + S); (N, R) without key."""
    basis = matrix.subspace().right
    assert basis is not None
    return basis if key is None else torch.cat([basis, probe_test(matrix.layout, key, basis.device)], dim=1)


def core_sum_bytes(layout: Layout, *, is_sketched: bool, probe_norm: bool) -> int:
    """Return the bytes of the sums of one projected parameter, in a step with or without a refresh.

    Args:
        layout: of a projected parameter.
        is_sketched: whether all its matrices refresh in the step.
        probe_norm: as in `CoreSum`.
    """
    assert layout.rank is not None
    if layout.tensor is not None:
        return layout.tensor.sum_bytes(layout.dtype)
    rows, columns = layout.core_shape
    elements = rows * columns
    if is_sketched:  # a test matrix and a sketch on each side that has a basis (before a first moment 8 columns more)
        elements += sum((layout.rows + layout.columns) * layout.rank for _ in layout.basis_shapes())
    if probe_norm:
        elements += layout.rows * PROBE_COLUMNS
    return (layout.blocks or 1) * elements * layout.dtype.itemsize


def _sketch_tests(matrix: ProjectedMatrix) -> dict[str, tuple[Tensor, Tensor]]:
    """Return by side the matrix Omega and what the sketch starts from."""
    layout, subspace = matrix.layout, matrix.subspace()
    assert layout.rank is not None
    if layout.side == "both":  # each side's basis is the test matrix of the other one
        assert subspace.left is not None and subspace.right is not None
        zeros = {side: torch.zeros_like(basis) for side, basis in (("left", subspace.left), ("right", subspace.right))}
        return {"left": (subspace.right.clone(), zeros["left"]), "right": (subspace.left.clone(), zeros["right"])}
    basis = subspace.left if subspace.left is not None else subspace.right
    assert basis is not None
    length = layout.columns if layout.side == "left" else layout.rows
    mean_KR = None
    if remembers(matrix):
        mean_KR = matrix.mean_core().mT if layout.side == "left" else matrix.mean_core()
    key = sketch_key(matrix, matrix.counter("step"))
    return {layout.side: begin_sketch(basis, mean_KR, length, smoothing=matrix.group["basis_smoothing"], key=key)}


def remembers(matrix: ProjectedMatrix) -> bool:
    """Say whether there is a first moment that is not zero, from which a sketch can begin."""
    if matrix.counter("moment_step") == 0:
        return False
    moments = matrix.read_moments()
    return "exp_avg" in moments and bool(moments["exp_avg"].any())


def sketch_key(matrix: ProjectedMatrix, *step: int) -> tuple[int, ...]:
    """Return the key of the random numbers of a sketch, at a step, or of the basis that is fitted to it."""
    return (matrix.group["seed"], matrix.layout.index, matrix.block or 0, *step, _SKETCH)


def begin_sketch(
    basis_NR: Tensor, mean_MR: Tensor | None, rows: int, *, smoothing: float, key: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return the matrix Omega (M, K) of a sketch ``G^T Omega`` for a right basis, and what the sketch starts from.

    Args:
        basis_NR: the present basis. For a left basis all is transposed: (M, R), then (N, R) and (N, K).
        mean_MR: what is remembered of the cores; None if nothing is.
        rows: M.
        smoothing: share of the remembered part, as in `featherweight.optim.policies.refresh.smoothed_iteration`.
        key: of the random numbers where nothing is remembered.
    """
    if mean_MR is None:
        width = min(basis_NR.shape[1] + OVERSAMPLING, rows, len(basis_NR))
        test = random_normal((rows, width), generator=keyed_generator(*key), like=basis_NR)
        return test, basis_NR.new_zeros(len(basis_NR), width)
    test = orthonormalize(mean_MR)
    return test, basis_NR @ (mean_MR.mT @ test) * (smoothing / (1 - smoothing))


def basis_of_sketch(sketch_NK: Tensor, rank: int, key: tuple[int, ...]) -> Tensor:
    """Return the (N, R) basis that a sketch gives: its span, or the leading directions of an oversampled one."""
    if sketch_NK.shape[1] == rank:
        return fix_signs(orthonormalize(sketch_NK))
    return fit_left_basis(sketch_NK, rank, "gram", generator=keyed_generator(*key))


def _basis_of(total: _MatrixSum, layout: Layout) -> MatrixSubspace:
    """Return the subspace that the sketches span."""
    assert layout.rank is not None
    key = sketch_key(total.matrix)
    bases = {side: basis_of_sketch(sketch, layout.rank, key) for side, sketch in total.sketches.items()}
    return MatrixSubspace(left=bases.get("left"), right=bases.get("right"))


def _is_finite(grad: Gradient) -> bool:
    return grad.is_finite() if isinstance(grad, OuterProduct) else bool(grad.isfinite().all())


def _times(matrix: Gradient, test: Tensor) -> Tensor:
    """Return a product with a tall thin matrix, a 16-bit one converted tile by tile."""
    return MatrixSubspace(right=test).project(matrix)


def _back_times(subspace: MatrixSubspace, core: Tensor, test_NS: Tensor) -> Tensor:
    """Return ``project_back(core) @ test`` without the large matrix in between."""
    inner = core @ (test_NS if subspace.right is None else subspace.right.mT @ test_NS)
    return inner if subspace.left is None else subspace.left @ inner
