import pytest
import torch

from featherweight.linalg.factors import factorize
from featherweight.methods.welore.whiten import (
    Moments,
    refit_left,
    root_of,
    whitened_factors,
    whitened_spectrum,
)


def problem(generator, rows=9, columns=7, tokens=200):
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    scales = torch.logspace(0, 2, columns, dtype=torch.float64)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = (torch.randn(tokens, columns, generator=generator, dtype=torch.float64) * scales) @ mix
    return matrix, inputs


def asvd(matrix, inputs, rank):
    """ASVD: columns scaled by the mean size of their inputs to the power of a half."""
    scale = inputs.abs().mean(0).sqrt()
    left, right = factorize(matrix * scale, rank)
    return left @ (right / scale)


@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (1, 6), (6, 1)])
def test_the_error_of_the_output_is_the_rest_of_the_whitened_spectrum(shape, generator):
    matrix, inputs = problem(generator, *shape)
    second = inputs.mT @ inputs
    values, vectors = torch.linalg.eigh(second)
    exact = type(root_of(second))(vectors * values.sqrt(), (vectors / values.sqrt()).mT)
    damping = 1e-6 * float(second.diagonal().mean())
    for root, damped in ((exact, 0.0), (root_of(second), damping)):
        spectrum = whitened_spectrum(matrix, root)
        for rank in range(1, min(shape) + 1):
            left, right = whitened_factors(matrix, root, rank)
            lost = matrix - left @ right
            error = float((lost @ inputs.mT).square().sum())
            rest = float(spectrum[rank:].square().sum())
            total = error + damped * float(lost.square().sum())
            assert total == pytest.approx(rest, rel=1e-9, abs=1e-9 * float(spectrum[0] ** 2))
            if damped == 0:
                plain_left, plain_right = factorize(matrix, rank)
                for other in (plain_left @ plain_right, asvd(matrix, inputs, rank)):
                    assert error <= float(((matrix - other) @ inputs.mT).square().sum()) * (1 + 1e-9) + 1e-6
            # Nested: the best of a lower rank is the beginning of the best of a higher one.
            full_left, full_right = whitened_factors(matrix, root, min(shape))
            torch.testing.assert_close(full_left[:, :rank] @ full_right[:rank], left @ right, rtol=1e-9, atol=1e-9)


def test_white_inputs_give_the_plain_svd(generator):
    matrix, _ = problem(generator)
    root = root_of(9 * torch.eye(7, dtype=torch.float64))
    for rank in range(1, 8):
        left, right = whitened_factors(matrix, root, rank)
        plain_left, plain_right = factorize(matrix, rank)
        torch.testing.assert_close(left @ right, plain_left @ plain_right, rtol=0, atol=1e-10)


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_few_tokens_do_not_break_the_root(tokens, generator):
    matrix, inputs = problem(generator, tokens=200)
    moments = Moments.zeros(7)
    moments.add_(inputs[:tokens])
    root = root_of(moments.second_NN, moments.tokens)
    left, right = whitened_factors(matrix, root, 7)
    assert torch.isfinite(left).all() and torch.isfinite(right).all()
    if tokens:
        torch.testing.assert_close(left @ right, matrix, rtol=1e-6, atol=1e-6)


def test_moments_add_up_over_batches_and_know_the_mean(generator):
    _, inputs = problem(generator)
    moments = Moments.zeros(7)
    for part in inputs.split([1, 0, 99, 100]):
        moments.add_(part)
    assert moments.tokens == 200
    torch.testing.assert_close(moments.second_NN, inputs.mT @ inputs, rtol=1e-12, atol=1e-9)
    about = inputs - inputs.mean(0)
    torch.testing.assert_close(moments.centred(), about.mT @ about, rtol=1e-9, atol=1e-6)


def test_the_refitted_factor_is_the_solution_of_least_squares(generator):
    matrix, inputs = problem(generator)
    noisy = inputs + 20 * torch.randn(*inputs.shape, generator=generator, dtype=torch.float64)
    _, right = factorize(matrix, 3)
    wished = (inputs + noisy) / 2
    left = refit_left(matrix, right, wished.mT @ noisy, noisy.mT @ noisy)
    exact = torch.linalg.lstsq(noisy @ right.mT, wished @ matrix.mT).solution.mT
    torch.testing.assert_close(left, exact, rtol=0, atol=1e-4 * float(exact.abs().max()))  # damped by 1e-6
