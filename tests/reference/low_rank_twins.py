"""Slow twins of the low-rank optimizers: one float64 matrix, plain PyTorch, the formulas one after another.

Every twin has its basis on the left of a weight (M, N). For a basis on the right it gets the transposed weight and
gradients, so that a wrong axis in the fast code cannot be copied here. A twin's `step(grad)` moves its `weight`.
Shapes: P (M, R), core C (R, N).
"""

import math

import torch

MAX_GROWTH = 1.01


def is_left(shape, proj_type):
    """Say on which side the basis is: `std` takes the smaller side, and the right one of a square matrix."""
    rows, columns = shape
    return {"std": rows < columns, "reverse_std": rows >= columns, "left": True, "right": False}[proj_type]


def gradients(shape, steps, seed=0, sizes=(1.0,)):
    """Return float64 gradients that share a part, as real ones do, with norms that follow `sizes` periodically."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(shape, generator=generator, dtype=torch.float64)
    each = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)]
    return [sizes[i % len(sizes)] * (0.5 * shared + one) for i, one in enumerate(each)]


def assert_follows(optimizer, weight, twin, grads, left, *, rtol=1e-9, before_twin=None):
    """Step optimizer and twin side by side and compare the weights after every step.

    Args:
        rtol: the largest difference, relative to the largest weight. Float64 leaves about 1e-13 after ten steps.
        before_twin: called after each step of the optimizer, before that of the twin.
    """
    for step, grad in enumerate(grads):
        weight.grad = grad.clone()
        optimizer.step()
        if before_twin is not None:
            before_twin()
        twin.step(grad if left else grad.T)
        ours = weight.detach() if left else weight.detach().T
        error = (ours - twin.weight).abs().max() / twin.weight.abs().max()
        assert error < rtol, f"step {step}: relative difference {error:.2e}"


def svd_basis(matrix, rank):
    """Return the R leading left singular vectors; the entry of largest magnitude of each is positive."""
    return with_fixed_signs(torch.linalg.svd(matrix, full_matrices=False)[0][:, :rank])


def with_fixed_signs(basis):
    """Return columns whose entry of largest magnitude is positive."""
    basis = basis.clone()
    for column in range(basis.shape[1]):
        largest = max(basis[:, column].tolist(), key=abs)
        if largest < 0:
            basis[:, column] *= -1
    return basis


def nearest_basis(basis, old):
    """Return the orthonormal basis of the same span that is nearest to the old one (Procrustes)."""
    left, _, right = torch.linalg.svd(basis.T @ old)
    return basis @ (left @ right)


class Adam:
    """Adam's moments of a core and the direction they give."""

    def __init__(self, betas, eps):
        self.betas, self.eps, self.steps = betas, eps, 0
        self.first = self.second = None

    def direction(self, core):
        beta1, beta2 = self.betas
        if self.first is None:
            self.first, self.second = torch.zeros_like(core), torch.zeros_like(core)
        self.steps += 1
        self.first = beta1 * self.first + (1 - beta1) * core
        self.second = beta2 * self.second + (1 - beta2) * core * core
        return self.mean() / (torch.sqrt(self.variance()) + self.eps)

    def mean(self):
        return self.first / (1 - self.betas[0] ** self.steps)

    def variance(self):
        return self.second / (1 - self.betas[1] ** self.steps)

    def rotate(self, overlap):
        """Express the moments in a new basis; overlap = new^T old."""
        mean, variance = self.mean(), self.variance()
        new_mean = overlap @ mean
        new_square = (overlap * overlap) @ (variance - mean * mean) + new_mean * new_mean
        self.first = overlap @ self.first
        self.second = (1 - self.betas[1] ** self.steps) * new_square.abs()


class GrowthLimit:
    """Fira's limit: a direction may be at most 1.01 times as long as the one before."""

    def __init__(self):
        self.last = None
        self.times_reached = 0

    def __call__(self, direction):
        norm = math.sqrt((direction * direction).sum().item())
        if self.last is not None and norm > MAX_GROWTH * self.last:
            self.times_reached += 1
            direction = direction * (MAX_GROWTH * self.last / norm)
            norm = MAX_GROWTH * self.last
        self.last = norm
        return direction


def column_ratios(direction, core):
    """Return phi_j = ||D_j|| / (||C_j|| + 1e-8) of each column."""
    return torch.stack([direction[:, j].norm() / (core[:, j].norm() + 1e-8) for j in range(core.shape[1])])


class Apollo:
    """APOLLO; moments stay when the projection changes.

    Args:
        new_projection: `new_projection(count, grad)` returns projection number `count`, from 1.
    """

    def __init__(self, weight, new_projection, gap, by_channel, *, lr, betas, eps, weight_decay, scale):
        self.weight, self.new_projection, self.gap, self.by_channel = weight.clone(), new_projection, gap, by_channel
        self.lr, self.weight_decay, self.scale = lr, weight_decay, scale
        self.adam, self.limit, self.done, self.projection = Adam(betas, eps), GrowthLimit(), 0, None

    def step(self, grad):
        if self.done % self.gap == 0:
            self.projection = self.new_projection(1 + self.done // self.gap, grad)
        self.done += 1
        core = self.projection.T @ grad
        direction = self.adam.direction(core)
        if self.by_channel:
            scaled = grad * column_ratios(direction, core)[None, :]
        else:
            scaled = grad * (direction.norm() / (core.norm() + 1e-8))
        update = math.sqrt(self.scale) * self.limit(scaled)
        self.weight = (1 - self.lr * self.weight_decay) * self.weight - self.lr * update


class GaLore:
    """GaLore with exact bases and rotated moments; what lies outside the subspace is dropped, or scaled as in Fira."""

    def __init__(self, weight, rank, gap, *, lr, betas, eps, weight_decay, scale, rotates=True, has_residual=False):
        self.weight, self.rank, self.gap, self.rotates = weight.clone(), rank, gap, rotates
        self.has_residual = has_residual
        self.lr, self.weight_decay, self.scale = lr, weight_decay, scale
        self.adam, self.limit, self.done, self.basis = Adam(betas, eps), GrowthLimit(), 0, None

    def step(self, grad):
        if self.done % self.gap == 0:
            old, self.basis = self.basis, svd_basis(grad, self.rank)
            if old is not None and self.rotates:
                self.adam.rotate(self.basis.T @ old)
        self.done += 1
        core = self.basis.T @ grad
        direction = self.adam.direction(core)
        update = self.basis @ direction
        if self.has_residual:
            update = update + self.limit((grad - self.basis @ core) * column_ratios(direction, core)[None, :])
        update = self.scale * update
        self.weight = (1 - self.lr * self.weight_decay) * self.weight - self.lr * update


class LDAdam:
    """LDAdam, Algorithm 1, with B formed explicitly; its first basis has to be set from outside.

    With error feedback ``A = G + E`` takes the gradient's place, and ``E`` becomes
    ``A - P P^T A + b1 / (1 - b1) (P_old m_old - P m)``, m being the first moment after the rotation.
    """

    def __init__(self, weight, *, lr, betas, eps, weight_decay, scale, smoothing, error_feedback, rotates=True):
        self.weight, self.lr, self.weight_decay, self.scale = weight.clone(), lr, weight_decay, scale
        self.rotates = rotates
        self.smoothing, self.error_feedback = smoothing, error_feedback
        self.adam, self.basis = Adam(betas, eps), None
        self.error = torch.zeros_like(weight)

    def step(self, grad):
        total = grad + self.error if self.error_feedback else grad
        lost = torch.zeros_like(grad)
        if self.adam.steps > 0:
            old = self.basis
            smoothed = self.smoothing * (old @ self.adam.mean()) + (1 - self.smoothing) * total
            self.basis = nearest_basis(torch.linalg.qr(smoothed @ (smoothed.T @ old))[0], old)
            remembered = old @ self.adam.first
            if self.rotates:
                self.adam.rotate(self.basis.T @ old)
            lost = remembered - self.basis @ self.adam.first
        core = self.basis.T @ total
        beta1 = self.adam.betas[0]
        self.error = total - self.basis @ core + beta1 / (1 - beta1) * lost
        update = self.scale * (self.basis @ self.adam.direction(core))
        self.weight = (1 - self.lr * self.weight_decay) * self.weight - self.lr * update


def newton_schulz(matrix):
    """Return five Newton-Schulz steps, written with the Gram matrix of the rows, whatever the shape."""
    current = matrix / torch.sqrt((matrix * matrix).sum())
    for _ in range(5):
        gram = current @ current.T
        current = 3.4445 * current - 4.7750 * gram @ current + 2.0315 * gram @ gram @ current
    return current


def muon(momentum):
    """Return Muon's direction with the factor that gives it the size of Adam's."""
    return 0.2 * math.sqrt(max(momentum.shape)) * newton_schulz(momentum)


class GUM:
    """Low-rank Muon with periods of full rank; `is_full` says in which the present period is."""

    def __init__(self, weight, rank, gap, *, lr, momentum, weight_decay, scale, probability, rotates=True):
        self.weight, self.rank, self.gap, self.rotates = weight.clone(), rank, gap, rotates
        self.lr, self.momentum, self.weight_decay, self.scale = lr, momentum, weight_decay, scale
        self.probability, self.is_full, self.was_full = probability, False, False
        self.buffer, self.basis, self.done = None, None, 0

    def step(self, grad):
        if self.done % self.gap == 0:
            old, self.basis = self.basis, svd_basis(grad, self.rank)
            if self.is_full or self.was_full or old is None:
                self.buffer = None
            elif self.rotates:
                self.buffer = (self.basis.T @ old) @ self.buffer
            self.was_full = self.is_full
        self.done += 1
        core = self.basis.T @ grad
        if self.is_full:
            fed = (grad - self.basis @ core) / self.probability
        else:
            fed = core / (1 - self.probability)
        self.buffer = fed if self.buffer is None else self.momentum * self.buffer + fed
        update = muon(self.buffer)
        if not self.is_full:
            update = self.basis @ update
        self.weight = (1 - self.lr * self.weight_decay) * self.weight - self.lr * self.scale * update


class Adafactor:
    """Adafactor's moments of a matrix and the direction they give, the second moment formed explicitly."""

    def __init__(self, beta1):
        self.beta1, self.steps = beta1, 0
        self.first = self.row = self.column = None

    def direction(self, grad):
        self.steps += 1
        kept = 1 - self.steps**-0.8
        square = grad * grad + 1e-30
        row, column = square.mean(dim=1), square.mean(dim=0)
        self.row = row if self.row is None else kept * self.row + (1 - kept) * row
        self.column = column if self.column is None else kept * self.column + (1 - kept) * column
        estimate = self.row[:, None] * self.column[None, :] / self.row.mean()
        direction = grad / torch.sqrt(estimate)
        direction = direction / max(1.0, math.sqrt((direction * direction).mean().item()))
        if not self.beta1:
            return direction
        first = torch.zeros_like(grad) if self.first is None else self.first
        self.first = self.beta1 * first + (1 - self.beta1) * direction
        return self.first

    def rotate(self, overlap):
        """Express the moments in a new basis of the rows; overlap = new^T old.

        ``V = row col / mean(row)`` becomes ``(C * C) V``, and row and column its means: both have the same mean again.
        """
        if self.first is not None:
            self.first = overlap @ self.first
        second = (overlap * overlap) @ (self.row[:, None] * self.column[None, :] / self.row.mean())
        self.row, self.column = second.mean(dim=1), second.mean(dim=0)


class GaLoreAdafactor:
    """Adafactor on the cores, with exact bases and rotated moments."""

    def __init__(self, weight, rank, gap, *, lr, beta1, weight_decay, scale, rotates=True):
        self.weight, self.rank, self.gap, self.rotates = weight.clone(), rank, gap, rotates
        self.lr, self.weight_decay, self.scale = lr, weight_decay, scale
        self.rule, self.done, self.basis = Adafactor(beta1), 0, None

    def step(self, grad):
        if self.done % self.gap == 0:
            old, self.basis = self.basis, svd_basis(grad, self.rank)
            if old is not None and self.rotates:
                self.rule.rotate(self.basis.T @ old)
        self.done += 1
        update = self.scale * (self.basis @ self.rule.direction(self.basis.T @ grad))
        self.weight = (1 - self.lr * self.weight_decay) * self.weight - self.lr * update
