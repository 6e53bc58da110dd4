"""How subspaces of tensors are fitted to a gradient: by Gram matrices of its unfoldings.

`fit_tucker` is the entry for bases by mode, `fit_slices` for bases by frequency, `fit_selection` for indices. No
singular value decomposition of an unfolding is taken, and the transient copy of an unfolding is bounded.
Shapes: D modes of sizes n_k with ranks r_k; F frequencies.
Source: Vannieuwenhoven et al., SIAM J. Sci. Comput. 34 (2012), A1027 (sequential truncation); De Lathauwer et al., SIAM
J. Matrix Anal. 21 (2000), 1324 (orthogonal iteration).
"""

from collections.abc import Iterator, Sequence
from math import inf, prod
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor

from featherweight.errors import LISTED, ConfigError, NumericsError, ShapeError, did_you_mean
from featherweight.linalg.limits import MAX_WORKSPACE_BYTES
from featherweight.linalg.orthonormal import one_thread
from featherweight.linalg.tucker import (
    SliceSubspace,
    TuckerSubspace,
    contract,
    mode_product,
    slices_of,
    squared_norm,
    upcast,
)

TuckerMethod = Literal["auto", "st_hosvd", "hooi", "subspace", "randomized"]
TUCKER_METHODS: tuple[str, ...] = get_args(TuckerMethod)

LARGE_MODE = 1024
"""Above this size "auto" avoids the eigenvectors of an n x n matrix."""


class TuckerFit(NamedTuple):
    """A fitted subspace, the core of the fitted tensor, and what the fit lost."""

    subspace: TuckerSubspace
    core: Tensor
    error_sq: float
    """``||G - P(G)||^2``. From `st_hosvd`: the sum of the eigenvalues that were dropped, an identity, not a bound."""


@torch.no_grad()
def fit_tucker(
    grad: Tensor,
    ranks: Sequence[int],
    method: str = "auto",
    *,
    old: TuckerSubspace | None = None,
    generator: Generator | None = None,
    max_workspace_bytes: int = MAX_WORKSPACE_BYTES,
) -> TuckerFit:
    """Fit one basis for each mode whose rank is below its size.

    Choices of `method`:

    - "st_hosvd": truncates mode by mode, smallest first; within sqrt(D) of the best error, usually within 0.1 %.
    - "hooi": one sweep of orthogonal iteration from `old`; costs more than "st_hosvd" and gains little on it.
    - "subspace": one power step from `old`, without eigenvectors; falls behind where the gradient turns fast.
    - "randomized": a Gaussian sketch with one power step for each mode, for modes too large for an n x n matrix.
    - "auto": "st_hosvd", with a sketch for modes above `LARGE_MODE`.

    Without an `old`, warm methods start from "auto".

    Args:
        grad: (n_1, .., n_D) finite, real or complex, any strides. Not modified.
        ranks: r_k for each mode, 1 <= r_k <= n_k; a mode with r_k = n_k gets no factor.
        method: one of the names above.
        old: where a warm method starts.
        generator: source of random numbers, needed by "randomized"; None draws from a fixed seed.
        max_workspace_bytes: largest transient copy of an unfolding.
    Returns:
        Subspace with float32 or complex64 (float64 or complex128) factors, the core, and the squared error.
    Raises:
        ConfigError: for an unknown method.
        ShapeError: if ranks and tensor do not fit.
        NumericsError: if the gradient holds NaN or infinity.
    Cost: "st_hosvd" about 2*N*(n_k + r_k) for the first mode and less for each other (times 4 for complex numbers).
        Waits for the device.
    Example:
        >>> grad = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
        >>> fit = fit_tucker(grad, (3, 5, 2))
        >>> [None if factor is None else tuple(factor.shape) for factor in fit.subspace.factors]
        [(6, 3), None, (4, 2)]
    """
    grad, ranks = upcast(grad), tuple(ranks)
    _require_ranks(grad, ranks, method)
    total = squared_norm(grad)
    if not total < inf:  # NaN compares as False, too
        raise NumericsError(
            f"fit_tucker: grad={tuple(grad.shape)} holds NaN or infinity, or its squares leave the number range; "
            "expected finite values. Skip this step and keep the old subspace."
        )
    if total == 0:
        subspace = old or _identity(grad, ranks)
        return TuckerFit(subspace, subspace.project(grad), 0.0)
    warm = method in ("hooi", "subspace")
    if not warm or old is None:
        fit = _sequential(grad, ranks, "auto" if warm else method, generator, max_workspace_bytes)
        return fit if not warm else _swept(grad, ranks, method, fit.subspace, total, max_workspace_bytes)
    return _swept(grad, ranks, method, old, total, max_workspace_bytes)


@torch.no_grad()
def fit_slices(grad: Tensor, rank: int) -> SliceSubspace:
    """Fit the leading left basis of each frequency slice.

    Args:
        grad: (n_1, n_2, m_1, .., m_d) finite. Not modified.
        rank: r <= n_1 columns.
    Raises:
        ShapeError: for fewer than three modes, or a rank that does not fit.
    Cost: 2*N*n_1 FLOPs and F eigenvector problems of size n_1 (or, cheaper, n_2 if that is smaller).
    """
    if grad.ndim < 3 or not 1 <= rank <= grad.shape[0]:
        raise ShapeError(
            f"fit_slices: rank={rank} for grad={tuple(grad.shape)}; expected three or more modes and 1 <= rank <= "
            "the first. Lower the rank."
        )
    slices_FMN = slices_of(upcast(grad))
    vectors, _ = _leading(slices_FMN @ slices_FMN.mH, rank, slices_FMN.dtype)
    return SliceSubspace(tuple(grad.shape), vectors.to(slices_FMN.dtype))


@torch.no_grad()
def fit_selection(grad: Tensor, ranks: Sequence[int], modes: Sequence[int]) -> TuckerSubspace:
    """Select on some modes the indices with the most energy, and rotate the others.

    Args:
        grad: (n_1, .., n_D) finite. Not modified.
        ranks: r_k for each mode.
        modes: which modes select, the frequencies for example.
    Returns:
        A subspace whose factors on `modes` are ascending indices; the others are fitted to what was selected.
    Raises:
        ShapeError: if ranks and tensor do not fit.
    """
    grad, ranks = upcast(grad), tuple(ranks)
    _require_ranks(grad, ranks, "st_hosvd")
    squares, rest = grad.abs().square(), grad
    kept: dict[int, Tensor] = {}
    for mode in modes:
        if ranks[mode] < grad.shape[mode]:
            by_index = squares.sum(dim=[k for k in range(grad.ndim) if k != mode])
            # A stable order, so that equal energies do not depend on the device.
            order = by_index.argsort(descending=True, stable=True)[: ranks[mode]]
            kept[mode] = order.sort().values
            rest = rest.index_select(mode, kept[mode])
    inner = tuple(rest.shape[k] if k in modes else ranks[k] for k in range(grad.ndim))
    rotations = fit_tucker(rest, inner).subspace.factors
    factors = tuple(kept.get(mode, rotations[mode]) for mode in range(grad.ndim))
    return TuckerSubspace(tuple(grad.shape), factors)


def mode_gram(tensor: Tensor, mode: int, max_workspace_bytes: int = MAX_WORKSPACE_BYTES) -> Tensor:
    """Return ``A A^H`` of the unfolding A along a mode, summed in double precision.

    Args:
        tensor: (n_1, .., n_D) float32, float64, complex64 or complex128.
        mode: which.
        max_workspace_bytes: largest transient copy.
    Returns:
        (n_k, n_k) float64 or complex128, Hermitian (float32 or complex64 on devices without double precision).
    Cost: 2*N*n_k FLOPs (8 for complex numbers).
    """
    size = tensor.shape[mode]
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    gram = torch.zeros(size, size, dtype=wide, device=tensor.device)
    for block in _unfolded(tensor, mode, max_workspace_bytes):
        gram += block @ block.mH
    return (gram + gram.mH) / 2


def _unfolded(tensor: Tensor, mode: int, max_workspace_bytes: int) -> Iterator[Tensor]:
    """Yield the unfolding (n_k, rest) in pieces of columns: views where the memory order allows it."""
    shape = tensor.shape
    before, size, behind = prod(shape[:mode]), shape[mode], prod(shape[mode + 1 :])
    if before == 1:
        step = max(1, max_workspace_bytes // (max(1, size) * tensor.element_size()))
        yield from tensor.reshape(size, behind).split(step, dim=1)
        return
    batches = tensor.reshape(before, size, behind)
    rows = max(1, max_workspace_bytes // max(1, size * behind * tensor.element_size()))
    for start in range(0, before, rows):
        yield batches[start : start + rows].transpose(0, 1).reshape(size, -1)


def _sequential(
    grad: Tensor, ranks: tuple[int, ...], method: str, generator: Generator | None, max_workspace_bytes: int
) -> TuckerFit:
    """Truncate mode by mode, the smallest first, each on what the earlier ones left."""
    factors: list[Tensor | None] = [None] * grad.ndim
    rest, lost = grad, 0.0
    for mode in sorted(range(grad.ndim), key=lambda k: grad.shape[k]):
        rank, size = ranks[mode], grad.shape[mode]
        if rank == size:
            continue
        if method == "randomized" or (method == "auto" and size > LARGE_MODE):
            before = squared_norm(rest)
            factor = _sketched(rest, mode, rank, generator or torch.Generator().manual_seed(0), max_workspace_bytes)
            rest = mode_product(rest, factor.mH, mode)
            lost += max(0.0, before - squared_norm(rest))
        else:
            vectors, dropped = _leading(mode_gram(rest, mode, max_workspace_bytes), rank, grad.dtype)
            factor = vectors.to(grad.dtype)
            rest = mode_product(rest, factor.mH, mode)
            lost += float(dropped)
        factors[mode] = factor
    return TuckerFit(TuckerSubspace(tuple(grad.shape), tuple(factors)), rest, lost)


def _swept(
    grad: Tensor, ranks: tuple[int, ...], method: str, old: TuckerSubspace, total: float, max_workspace_bytes: int
) -> TuckerFit:
    """Renew each factor once with all others held fixed."""
    factors = list(old.factors)
    for mode, rank in enumerate(ranks):
        if rank == grad.shape[mode]:
            continue
        others = [None if u is None or k == mode else u.mH for k, u in enumerate(factors)]
        gram = mode_gram(contract(grad, others), mode, max_workspace_bytes)
        start = factors[mode]
        if method == "subspace" and start is not None:
            factors[mode] = orthonormal_columns(gram @ start.to(gram.dtype)).to(grad.dtype)
        else:
            factors[mode] = _leading(gram, rank, grad.dtype)[0].to(grad.dtype)
    subspace = TuckerSubspace(tuple(grad.shape), tuple(factors))
    core = subspace.project(grad)
    return TuckerFit(subspace, core, max(0.0, total - squared_norm(core)))


def _sketched(tensor: Tensor, mode: int, rank: int, generator: Generator, max_workspace_bytes: int) -> Tensor:
    """Return leading columns from products with the unfolding alone: a random start and one power step."""
    size = tensor.shape[mode]
    width = min(size, rank + 8)
    start = torch.randn(size, width, generator=generator, dtype=torch.float64)
    columns = orthonormal_columns(start.to(tensor.device, tensor.dtype))
    for _ in range(2):
        product = torch.zeros_like(columns)
        for block in _unfolded(tensor, mode, max_workspace_bytes):
            product += block @ (block.mH @ columns)
        columns = orthonormal_columns(product)
    product = torch.zeros_like(columns)
    for block in _unfolded(tensor, mode, max_workspace_bytes):
        product += block @ (block.mH @ columns)
    rotation, _ = _leading(columns.mH @ product, rank, tensor.dtype)
    return columns @ rotation.to(columns.dtype)


def _leading(gram: Tensor, rank: int, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvectors (.., n, r) of Gram matrices, and the sum of the other eigenvalues.

    Eigenvectors of eigenvalues that are only rounding of the largest one would be noise, and different on each machine;
    they are replaced by an orthonormal completion that depends on the leading ones alone.

    Args:
        gram: (.., n, n) Hermitian.
        rank: r.
        precision: type in which the products were made.
    """
    wide = torch.complex128 if gram.is_complex() else torch.float64
    gram = (gram + gram.mH) / 2
    with one_thread(gram.device):
        values, vectors = torch.linalg.eigh(gram.to(wide))
    dropped = values[..., : gram.shape[-1] - rank].clamp_min(0).sum()
    leading = fix_phases(vectors[..., gram.shape[-1] - rank :].flip(-1))
    share = 1e-12 if precision in (torch.float64, torch.complex128) else 1e-6
    is_noise = values[..., gram.shape[-1] - rank :].flip(-1) <= share * values[..., -1:]
    if bool(is_noise.any()):
        drawn = torch.randn(leading.shape[-2:], dtype=wide, generator=torch.Generator().manual_seed(0))
        leading = orthonormal_columns(torch.where(is_noise[..., None, :], drawn.to(leading.device), leading))
    return leading, dropped


def orthonormal_columns(matrix: Tensor) -> Tensor:
    """Return orthonormal columns, real or complex, with the leading ones spanning what those of the input span.

    Args:
        matrix: (n, r), n >= r, finite.
    """
    with one_thread(matrix.device):
        basis, triangle = torch.linalg.qr(matrix)
    diagonal = triangle.diagonal(dim1=-2, dim2=-1)
    phase = torch.where(diagonal.abs() > 0, diagonal / diagonal.abs().clamp_min(1e-300), torch.ones_like(diagonal))
    return basis * phase[..., None, :]


def fix_phases(basis: Tensor) -> Tensor:
    """Return the basis with phases such that each column's entry of largest modulus is real and positive.

    Args:
        basis: (.., n, r).
    """
    magnitude = basis.abs()
    # Nearly equal moduli must not change places by rounding: the first one within a billionth of the largest counts.
    is_largest = magnitude >= magnitude.amax(dim=-2, keepdim=True) * (1 - 1e-9)
    pivot = basis.gather(-2, is_largest.to(torch.uint8).argmax(dim=-2, keepdim=True))
    return basis * (pivot.conj() / pivot.abs())


def _identity(grad: Tensor, ranks: tuple[int, ...]) -> TuckerSubspace:
    """Return the first columns of the identity: a subspace for a gradient that says nothing."""
    factors = [
        None if rank == size else torch.eye(size, rank, dtype=grad.dtype, device=grad.device)
        for size, rank in zip(grad.shape, ranks, strict=True)
    ]
    return TuckerSubspace(tuple(grad.shape), tuple(factors))


def _require_ranks(grad: Tensor, ranks: tuple[int, ...], method: str) -> None:
    if method not in TUCKER_METHODS:
        raise ConfigError(
            f"fit_tucker: method='{method}' is unknown; expected one of {', '.join(TUCKER_METHODS)}. "
            f"{did_you_mean(method, TUCKER_METHODS, otherwise=LISTED)}"
        )
    fits = len(ranks) == grad.ndim and all(1 <= r <= n for r, n in zip(ranks, grad.shape, strict=True))
    if not fits or grad.numel() == 0:
        raise ShapeError(
            f"fit_tucker: ranks={ranks} do not fit grad={tuple(grad.shape)}; expected 1 <= r <= n for each mode. "
            "Compute them with tucker_ranks."
        )
