"""One right basis for several weights whose layers read the same input, such as query, key and value projections.

The members are the rows of one matrix ``[W_1; W_2; ...]`` with gradient ``[G_1; G_2; ...]`` and one right basis Q. So
the product ``x Q`` is computed and kept once for all of them. A refresh is one warm iteration of the stacked matrix,
``Q' = qr(sum(G_i^T C_i))``: C_i are a member's rows of an orthonormal basis of what is remembered of all cores. It
holds from the next step on, since members are updated one after the other and none may move the basis of the rest.

Each member keeps moments of its own and a copy of the basis. The copies cost the memory of N*R numbers each; for them,
the state is that of a weight with a basis of its own, and can be continued without sharing, and the other way round. A
member without gradient in a step does not hold up the
others; it follows them to the new basis.
Shapes: T tokens, M_i rows of a member, N columns, R rank, K columns of a sketch.
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.linalg.subspace import MatrixSubspace
from featherweight.optim.backward.sketch import (
    basis_and_norm_matrix,
    basis_of_sketch,
    begin_sketch,
    norm_key,
    remembered_core,
    sketch_key,
)
from featherweight.optim.backward.window import Window
from featherweight.optim.policies.refresh import align
from featherweight.optim.step.layout import Layout, parts_of
from featherweight.optim.step.matrix import ProjectedMatrix
from featherweight.optim.step.matrix_layout import MatrixLayout

_FOLLOWED_COUNTERS = ("refresh_count", "refresh_gap", "similarity_count")


@dataclass
class _Decision:
    """What is decided for one optimizer step of all members, before any of them makes its own."""

    leader: int
    """Position of the member that has made the most steps: its counters say when the next refresh is due."""
    step: int
    """Steps that it has made."""
    is_due: bool
    norm_key: tuple[int, ...]
    sketch_matrices: dict[int, Tensor] | None = None
    """Rows of Omega by the index of a member's layout."""
    sketch_start: Tensor | None = None
    """What is remembered, as a sketch."""
    sketch: Tensor | None = None
    """Sum of those of the members that have made their step."""


class SharedBasis:
    """The common refresh and the common product of some parameters; made by `Layerwise.core_receiver`.

    Args:
        window: of the running layer-wise optimizer.
        parameters: at least two for which `why_alone` says nothing.
    """

    def __init__(self, window: Window, parameters: Sequence[Tensor]) -> None:
        self.window, self.parameters = window, tuple(parameters)
        self._is_joined = False
        self._decided: _Decision | None = None
        self._product: _KeptProduct | None = None

    def matrices(self) -> list[ProjectedMatrix]:
        """Return the members, with the stagger position of the first: they refresh together."""
        found = [self.window.matrices(parameter)[0] for parameter in self.parameters]
        for matrix in found:
            matrix.stagger_position = found[0].stagger_position
        return found

    # ---- the product with the input

    def product(self, x: Tensor, cast_x: Tensor) -> Tensor | None:
        """Return ``x @ [Q | matrix of the norm]``, one tensor for all members that read this x; None to keep x itself.

        Args:
            x: (..., T, N) as the layer got it, by which it is known again.
            cast_x: x in the dtype of the product.
        """
        if self.is_due():
            return None
        if self._product is not None and self._product.is_of(x, cast_x.dtype):
            return self._take_product()
        key = self.decision().norm_key if self.window.estimates_norm else None
        value = cast_x @ basis_and_norm_matrix(self.matrices()[0], key).to(cast_x.dtype)
        self._product = None
        if not x.is_inference():
            self._product = _KeptProduct(x, value, others=len(self.parameters) - 1)
        return value

    def _take_product(self) -> Tensor | None:
        product = self._product
        assert product is not None
        value = product.value
        product.others -= 1
        if product.others == 0:  # all have it: from now on it lives as long as their graph
            self._product = None
        return value

    # ---- one optimizer step

    def is_due(self) -> bool:
        """Say whether this step refreshes; the same answer to all members, whoever has made its own step already."""
        if self._decided is None and not all(self.window.optimizer.state.get(each) for each in self.parameters):
            return True
        return self.decision().is_due

    def decision(self) -> _Decision:
        """Return what is decided for this step; the first call decides."""
        if self._decided is None:
            matrices = self.matrices()
            leader = max(range(len(matrices)), key=lambda index: _progress(matrices[index]))
            if not self._is_joined:
                self._join(matrices, matrices[leader])
            step = matrices[leader].counter("step")
            key = norm_key(matrices[0], step)
            self._decided = _Decision(leader, step, any(matrix.refresh_is_due() for matrix in matrices), key)
        return self._decided

    def _join(self, matrices: list[ProjectedMatrix], leader: ProjectedMatrix) -> None:
        """Bring all members into one subspace: at the first step a random one, later that of the leader."""
        if not leader.has_subspace():
            leader = matrices[0]
            leader.stand_in()
        for matrix in matrices:
            if matrix is not leader and not _same_basis(matrix, leader):
                _follow(matrix, leader)
        self._is_joined = True

    def sketch_matrix(self, layout: Layout) -> Tensor | None:
        """See `CommonSketch.sketch_matrix`."""
        decided = self.decision()
        if not decided.is_due:
            return None
        if decided.sketch_matrices is None:
            matrices = self.matrices()
            rows = [each.layout.all_rows for each in matrices]
            means = [remembered_core(one) for one in matrices]
            mean = None
            if any(one is not None for one in means):
                mean = torch.cat(
                    [
                        one.layout.whole.zero_core(one.device) if found is None else found
                        for one, found in zip(matrices, means, strict=True)
                    ]
                )
            basis = matrices[0].subspace().right
            assert basis is not None
            key, smoothing = sketch_key(matrices[0], decided.step), matrices[0].group["basis_smoothing"]
            omega, decided.sketch_start = begin_sketch(basis, mean, sum(rows), smoothing=smoothing, key=key)
            parts = omega.split(rows)
            decided.sketch_matrices = {each.layout.index: part for each, part in zip(matrices, parts, strict=True)}
        return decided.sketch_matrices[layout.index]

    def norm_key(self) -> tuple[int, ...]:
        """See `CommonSketch.norm_key`."""
        return self.decision().norm_key

    def add(self, sketch: Tensor) -> None:
        """See `CommonSketch.add`."""
        decided = self.decision()
        decided.sketch = sketch if decided.sketch is None else decided.sketch + sketch

    def end_window(self) -> None:
        """Take the new basis if a refresh was due and a member had a gradient."""
        decided, self._decided, self._product = self._decided, None, None
        if decided is None or decided.sketch is None or not bool(decided.sketch.any()):
            return
        assert decided.sketch_start is not None
        matrices = self.matrices()
        leader, layout = matrices[decided.leader], matrices[0].layout
        fresh = basis_of_sketch(decided.sketch + decided.sketch_start, layout.rank, sketch_key(matrices[0]))
        subspace, old = MatrixSubspace(right=fresh), leader.subspace()
        if leader.group["basis_smoothing"] > 0:
            subspace = align(subspace, old)
        leader.install(subspace, old, step=decided.step)
        leader.store_carried()
        for matrix in matrices:
            if matrix is not leader:
                _follow(matrix, leader)

    def discard(self) -> None:
        """Forget the present step; a state may have been loaded since."""
        self._decided, self._product, self._is_joined = None, None, False

    def tensors(self) -> Iterator[Tensor]:
        """Yield what is kept of this step besides the members' sums."""
        if self._decided is not None:
            yield from (self._decided.sketch_matrices or {}).values()
            if self._decided.sketch is not None:
                yield self._decided.sketch


class _KeptProduct:
    """A product with an input that is known by identity and version. It lets go of both when the input is freed."""

    def __init__(self, x: Tensor, value: Tensor, others: int) -> None:
        self.value: Tensor | None = value
        self.others = others
        """How many members are still to ask for it."""
        self._version, self._dtype = x._version, value.dtype
        me = weakref.ref(self)

        def release(_: weakref.ref[Tensor]) -> None:
            product = me()
            if product is not None:
                product.value = None

        self._source = weakref.ref(x, release)

    def is_of(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Say whether this is the product of x, as x is now."""
        same = self._source() is x and self.value is not None and self._dtype == dtype
        return same and x._version == self._version


def why_alone(layout: MatrixLayout) -> str | None:
    """Return why a parameter cannot share its basis; None if it can.

    Args:
        layout: of a parameter that leaves cores.
    """
    if layout.seeded_basis is not None:
        return "a random basis belongs to its own weight"
    if layout.alternative is not None:
        return "proj_type=min_memory may move its basis to the other side"
    if layout.blocks is not None:
        return f"it is split into {layout.blocks} matrices"
    if layout.side != "right":
        return f"its basis is on side={layout.side}"
    return None


def why_different(layout: MatrixLayout, first: MatrixLayout) -> str | None:
    """Return why a parameter does not fit the first member of a group; None if it does."""
    for name in ("columns", "rank", "dtype"):
        mine, other = getattr(layout, name), getattr(first, name)
        if mine != other:
            return f"{name}={mine} differs from {other} of '{first.name}'"
    return None


def _progress(matrix: ProjectedMatrix) -> tuple[int, int]:
    return matrix.counter("step"), matrix.counter("refresh_count")


def _same_basis(one: ProjectedMatrix, other: ProjectedMatrix) -> bool:
    if one.counter("refresh_count") != other.counter("refresh_count"):
        return False
    if one.layout.shares_bases:  # equal parts on one process say nothing of those on others
        mine, theirs = one.subspace().right, other.subspace().right
        assert mine is not None and theirs is not None
        return torch.equal(mine, theirs)
    return all(torch.equal(mine, theirs) for mine, theirs in _basis_parts(one, other))


def _follow(matrix: ProjectedMatrix, leader: ProjectedMatrix) -> None:
    """Take over the basis of the leader as it is stored, with the time of its next refresh, and carry the moments."""
    right = matrix.subspace().right
    assert right is not None
    old = MatrixSubspace(right=right.clone())
    for mine, theirs in _basis_parts(matrix, leader):
        mine.copy_(theirs)
    if matrix.counter("moment_step"):
        matrix.carry(old)
        matrix.store_carried()
    for name in _FOLLOWED_COUNTERS:
        if name in matrix.state:
            matrix.set_counter(name, leader.counter(name))
    if "similarities" in matrix.state:
        matrix.state["similarities"].copy_(leader.state["similarities"])
    wait = leader.counter("next_refresh") - leader.counter("step")
    matrix.set_counter("next_refresh", matrix.counter("step") + wait)


def _basis_parts(one: ProjectedMatrix, other: ProjectedMatrix) -> list[tuple[Tensor, Tensor]]:
    mine, theirs = (parts_of(matrix.state, "basis_right") for matrix in (one, other))
    return [(mine[suffix], theirs[suffix]) for suffix in mine]
