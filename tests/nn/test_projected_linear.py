"""A linear layer whose backward pass hands out the factors of its weight's gradient."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featherweight.nn.projected_linear import projected_linear


class Factors:
    """Keeps what it is given; with a basis, the product with it stands for the input."""

    def __init__(self, basis=None):
        self.basis, self.sum = basis, 0.0

    def product(self, x, cast_x):
        return None if self.basis is None else cast_x @ self.basis

    def version(self):
        return 0

    def add(self, left_TM, right_TN):
        self.sum = self.sum + left_TM.T @ right_TN

    def add_thin(self, left_TM, thin_TK, version):
        self.sum = self.sum + left_TM.T @ thin_TK


@pytest.mark.parametrize("is_transposed", [False, True])
def test_output_and_other_gradients_are_those_of_the_layer_and_the_sink_gets_the_weights(is_transposed, generator):
    x = torch.randn(4, 7, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(3, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, generator=generator, requires_grad=True)
    upstream = torch.randn(4, 7, 3, dtype=torch.float64, generator=generator)
    expected = torch.autograd.grad(F.linear(x, weight, bias), (x, weight, bias), upstream)

    sink = Factors()
    stored = nn.Parameter(weight.detach().T.contiguous() if is_transposed else weight.detach().clone())
    output = projected_linear(x, stored, bias, sink, is_transposed=is_transposed)
    torch.testing.assert_close(output, F.linear(x, weight, bias))
    x.grad = bias.grad = None
    output.backward(upstream)
    torch.testing.assert_close(x.grad, expected[0])
    torch.testing.assert_close(bias.grad, expected[2])
    torch.testing.assert_close(sink.sum, expected[1].T if is_transposed else expected[1])
    assert stored.grad.is_sparse and stored.grad._nnz() == 0 and stored.grad.shape == stored.shape


def test_a_product_with_a_basis_is_kept_in_the_place_of_the_input(generator):
    x = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    weight = nn.Parameter(torch.randn(3, 5, dtype=torch.float64, generator=generator))
    basis = torch.randn(5, 2, dtype=torch.float64, generator=generator)
    whole, thin = Factors(), Factors(basis)
    for sink in (whole, thin):
        projected_linear(x, weight, None, sink).square().sum().backward()
    torch.testing.assert_close(thin.sum, whole.sum @ basis)
