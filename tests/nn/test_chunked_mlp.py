import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import featherweight as fw
from featherweight.errors import ConfigError, ShapeError
from featherweight.nn.chunked_mlp import feed_forward

T, D, I = 61, 6, 10  # noqa: E741


def make(generator, dtype=torch.float64, tokens=T, width=D, inner=I, biases=True):
    def tensor(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    x = torch.randn(width, tokens, dtype=torch.float64, generator=generator).to(dtype).t().requires_grad_()
    weights = [tensor(inner, width), tensor(inner, width), tensor(width, inner)]
    return x, weights, [tensor(inner), tensor(inner), tensor(width)] if biases else [None] * 3


def plain(x, weights, biases, act=F.silu):
    gate, up, down = (lambda x, i=i: F.linear(x, weights[i], biases[i]) for i in range(3))
    return down(act(gate(x)) * up(x))


def ours(x, weights, biases, **options):
    names = ("gate_bias", "up_bias", "down_bias")
    return fw.chunked_mlp(x, *weights, **dict(zip(names, biases, strict=True)), **options)


def gradients(output, tensors):
    upstream = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype)
    return torch.autograd.grad(output, tensors, upstream)


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)  # fp64 sums in another order, entries up to 100


# Mutation: a wrong product or a dropped tail in the backward pass fails here.
@pytest.mark.parametrize("save", ["input", "products"])
@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh", "relu", "relu2", torch.sigmoid])
@pytest.mark.parametrize("chunk_size", [1, 7, T - 1, T, T + 5])
def test_output_and_gradients_equal_the_plain_layer(chunk_size, act, save, generator):
    x, weights, biases = make(generator)
    functions = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "relu2": lambda x: F.relu(x) ** 2}
    function = functions.get(act, lambda x: F.gelu(x, approximate="tanh")) if isinstance(act, str) else act

    output, expected = ours(x, weights, biases, chunk_size=chunk_size, act=act, save=save), None
    expected = plain(x, weights, biases, function)

    tensors = (x, *weights, *biases)
    assert_equal([output], [expected])
    assert_equal(gradients(output, tensors), gradients(expected, tensors))


def test_gradcheck_passes(generator):
    x, weights, biases = make(generator, tokens=5, width=3, inner=4)

    def layer(x, *operands):
        return ours(x, operands[:3], operands[3:], chunk_size=2)

    assert torch.autograd.gradcheck(layer, (x.detach().contiguous().requires_grad_(), *weights, *biases))


# Chunks of 64 rows take the same path through a CPU's matrix products as all rows do; others may round differently.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_size", [64, 128])
def test_output_and_input_gradient_have_the_same_bits_as_the_plain_layer(chunk_size, dtype, generator):
    x, weights, biases = make(generator, dtype, tokens=512, width=32, inner=96, biases=False)
    x = x.detach().contiguous().requires_grad_()

    output, expected = ours(x, weights, biases, chunk_size=chunk_size), plain(x, weights, biases)

    assert torch.equal(output, expected)
    (gradient, *found), (reference, *others) = gradients(output, (x, *weights)), gradients(expected, (x, *weights))
    assert torch.equal(gradient, reference)
    for one, other in zip(found, others, strict=True):
        # fp32: sums over 512 tokens in another order; bf16: the plain gradient is rounded once, ours too (2**-9 each).
        limit = 1e-6 if dtype == torch.float32 else 2**-8
        assert (one - other).norm() <= limit * other.norm()


def test_16_bit_weight_gradients_are_as_exact_as_those_of_the_plain_layer(generator):
    x, weights, biases = make(generator, torch.bfloat16, tokens=512, width=32, inner=64, biases=False)
    wide = [tensor.detach().double().requires_grad_() for tensor in (x, *weights)]
    exact = gradients(plain(wide[0], wide[1:], biases), wide[1:])

    def errors(output):
        found = gradients(output, weights)
        return [((one.double() - two).norm() / two.norm()).item() for one, two in zip(found, exact, strict=True)]

    # The sums add nothing to the rounding of products and result; measured ratios: 0.97 to 1.01.
    for one, other in zip(
        errors(ours(x, weights, biases, chunk_size=8)), errors(plain(x, weights, biases)), strict=True
    ):
        assert one <= 1.05 * other


@pytest.mark.parametrize("save", ["input", "products"])
@pytest.mark.parametrize("frozen", ["gate", "up", "down", "all weights", "x"])
def test_frozen_operands_get_no_gradient_and_change_no_other(frozen, save, generator):
    x, weights, biases = make(generator, biases=False)
    if frozen == "x":
        x = x.detach()
    names = ("gate", "up", "down")
    weights = [w.detach() if frozen in (name, "all weights") else w for name, w in zip(names, weights, strict=True)]
    tensors = [tensor for tensor in (x, *weights) if tensor.requires_grad]

    output = ours(x, weights, biases, chunk_size=8, save=save)

    assert_equal(gradients(output, tensors), gradients(plain(x, weights, biases), tensors))


@pytest.mark.parametrize("checkpointed", [None, True, False], ids=["plain", "reentrant", "not reentrant"])
def test_hooks_on_weights_run_once_per_backward_pass(checkpointed, generator):
    x, weights, biases = make(generator)
    calls = []
    for index, weight in enumerate([*weights, *biases]):
        weight.register_hook(lambda gradient, index=index: calls.append(("gradient", index)))
        weight.register_post_accumulate_grad_hook(lambda p, index=index: calls.append(("accumulated", index)))

    def run(x):
        return ours(x, weights, biases, chunk_size=8)

    output = run(x) if checkpointed is None else checkpoint(run, x, use_reentrant=checkpointed)
    output.sum().backward()

    assert sorted(calls) == sorted((kind, index) for kind in ("gradient", "accumulated") for index in range(6))


def test_one_weight_in_two_places_gets_the_sum(generator):
    x, weights, biases = make(generator, biases=False)
    gate, _, down = weights

    output = ours(x, [gate, gate, down], biases, chunk_size=8)

    assert_equal(gradients(output, [gate]), gradients(plain(x, [gate, gate, down], biases), [gate]))


def test_a_layer_without_gate_and_one_with_fused_gate_work(generator):
    x, (gate, up, down), _ = make(generator, biases=False)
    fused = torch.cat([gate, up]).detach().requires_grad_()

    def halves(products):
        one, two = products.chunk(2, dim=-1)
        return F.silu(one) * two

    single = feed_forward(x, [(gate, None)], F.gelu, (down, None), chunk_size=8)
    both = feed_forward(x, [(fused, None)], halves, (down, None), chunk_size=8)

    assert_equal(gradients(single, (x, gate)), gradients(F.linear(F.gelu(x @ gate.t()), down), (x, gate)))
    assert_equal(gradients(both, (x, down)), gradients(plain(x, (gate, up, down), [None] * 3), (x, down)))


# Mutation: keeping any inside tensor for all tokens breaks the bound.
def test_backward_needs_six_buffers_of_a_chunk_and_the_gradients(generator):
    tokens, width, inner, chunk_size = 4096, 32, 256, 128
    x, weights, biases = make(generator, torch.float32, tokens=tokens, width=width, inner=inner, biases=False)
    x = x.detach().contiguous().requires_grad_()
    with fw.measure_memory(nn.Linear(1, 1)) as memory:
        output = ours(x, weights, biases, chunk_size=chunk_size)
        kept = memory.live_bytes
        output.backward(torch.ones_like(output))

    upstream = result = gradient = tokens * width * 4
    inside = 6 * inner * chunk_size * 4 + 2 * chunk_size * width * 4
    assert kept - memory.live_by_category["weights"] <= result + 1000  # x itself is from before and not counted
    assert memory.peak_bytes <= 1.01 * (upstream + result + gradient + 3 * inner * width * 4 + inside)


def test_autocast_gives_what_the_plain_layer_gives_under_autocast(generator):
    x, weights, biases = make(generator, torch.float32, tokens=256)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, expected = ours(x, weights, biases, chunk_size=64), plain(x, weights, biases)

    assert output.dtype == torch.bfloat16 and torch.equal(output, expected)
    for one, other in zip(gradients(output, (x, *weights)), gradients(expected, (x, *weights)), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() <= 2**-7 * other.norm()  # the plain gradients are rounded to bfloat16


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_without_gradients(mode, generator):
    x, weights, biases = make(generator)
    with mode():
        output = ours(x, weights, biases, chunk_size=8, save="products")

    assert not output.requires_grad
    assert_equal([output], [plain(x, weights, biases).detach()])


def test_batches_of_sequences_and_no_tokens_work(generator):
    x, weights, biases = make(generator)
    x = x[:60].reshape(3, 20, D)

    assert_equal([ours(x, weights, biases, chunk_size=8)], [plain(x, weights, biases)])
    assert ours(x[:0], weights, biases, chunk_size=8).shape == (0, 20, D)


def test_second_derivatives_are_refused(generator):
    x, weights, biases = make(generator)

    with pytest.raises(ConfigError, match="create_graph=True"):
        torch.autograd.grad(ours(x, weights, biases, chunk_size=8).sum(), x, create_graph=True)


def test_an_activation_that_learns_is_an_error(generator):
    x, weights, biases = make(generator)
    slope = torch.ones((), dtype=torch.float64, requires_grad=True)
    output = ours(x, weights, biases, act=lambda x: x * slope, chunk_size=8)

    with pytest.raises(ConfigError, match="trainable tensor"):
        output.sum().backward()


def test_wrong_arguments_are_named(generator):
    x, (gate, up, down), biases = make(generator)
    for weights, options, error, message in [
        ((gate, up, down), {"act": "sillu"}, ConfigError, "Did you mean 'silu'"),
        ((gate, up, down), {"save": "all"}, ConfigError, "save='all'"),
        ((gate, up, down), {"chunk_size": 0}, ConfigError, "chunk_size=0"),
        ((gate.t(), up, down), {}, ShapeError, "shapes="),
        ((gate, up, down.float()), {}, ConfigError, "dtypes="),
        ((gate[:, :-1], up, down), {}, ShapeError, "does not fit x"),
    ]:
        with pytest.raises(error, match=message):
            ours(x, weights, biases, **options)
