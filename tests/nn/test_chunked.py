import pytest
import torch
from chunked_modules import D, L, Norm, assert_equal, inputs
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import featherweight as fw
from featherweight.errors import ConfigError, ShapeError
from featherweight.memory import StorageTracker


def gradients(output, tensors):
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return torch.autograd.grad((output * weights).sum(), tensors)


@pytest.mark.parametrize("chunk_size", [1, 7, L - 1, L, L + 3, "auto"])
@pytest.mark.parametrize("dim", [-2, 1])
def test_output_and_gradients_equal_the_plain_call(chunk_size, dim, generator):
    layer, x = Norm(), inputs(generator)
    tensors = (x, layer.scale, layer.inner.weight, layer.inner.bias)

    ours, plain = fw.chunk(layer, x, chunk_size=chunk_size, dim=dim), layer(x)

    assert_equal([ours], [plain])
    assert_equal(gradients(ours, tensors), gradients(plain, tensors))


def test_several_inputs_and_outputs_are_cut_together(generator):
    layer, x, position = Norm(), inputs(generator), inputs(generator, 1, L, D)
    tensors = (x, position, layer.inner.weight)

    ours, plain = fw.chunk(layer.split, (x, position), chunk_size=8), layer.split(x, position)

    assert isinstance(ours, tuple)
    assert_equal(ours, plain)
    assert_equal(gradients(ours[0] * ours[1], tensors), gradients(plain[0] * plain[1], tensors))
    assert_equal(gradients(fw.chunk(layer.split, (x, position), chunk_size=8)[1], [x]), gradients(plain[1], [x]))


def test_a_function_gets_its_parameters_as_arguments(generator):
    x, weight = inputs(generator).transpose(0, 1), inputs(generator, D, D)  # a view that is not contiguous

    def layer(x, weight):
        return (x @ weight).sin()

    ours = fw.chunk(layer, x, params=(weight,), dim=0, chunk_size=5)

    assert_equal(gradients(ours, (x, weight)), gradients(layer(x, weight), (x, weight)))


def test_gradcheck_passes(generator):
    x, weight = inputs(generator, 7, 3), inputs(generator, 3, 3)

    assert torch.autograd.gradcheck(
        lambda x, weight: fw.chunk(lambda x, weight: (x @ weight).tanh(), x, params=(weight,), chunk_size=3),
        (x, weight),
    )


@pytest.mark.parametrize("checkpointed", [None, True, False], ids=["plain", "reentrant", "not reentrant"])
def test_hooks_on_parameters_run_once_per_backward_pass(checkpointed, generator):
    layer, x = Norm(), inputs(generator)
    calls = []
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient, name=name: calls.append(("gradient", name)))
            parameter.register_post_accumulate_grad_hook(lambda p, name=name: calls.append(("accumulated", name)))

    def run(x):
        return fw.chunk(layer, x, chunk_size=7)

    output = run(x) if checkpointed is None else checkpoint(run, x, use_reentrant=checkpointed)
    output.sum().backward()

    names = ("scale", "inner.weight", "inner.bias")
    assert sorted(calls) == sorted((kind, name) for kind in ("gradient", "accumulated") for name in names)


def test_a_parameter_that_is_not_used_gets_no_gradient(generator):
    layer = Norm()

    fw.chunk(layer.split, (inputs(generator), inputs(generator)), chunk_size=10)[1].sum().backward()

    assert layer.scale.grad is None


def test_frozen_layers_pass_the_gradient_of_x_alone(generator):
    layer, x = Norm().requires_grad_(False), inputs(generator)

    output = fw.chunk(layer, x, chunk_size=10)

    assert_equal(gradients(output, [x]), gradients(layer(x), [x]))
    assert not fw.chunk(layer, x.detach(), chunk_size=10).requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_without_gradients(mode, generator):
    layer, x = Norm(), inputs(generator)
    with mode():
        output = fw.chunk(layer, x, chunk_size=10)

    assert not output.requires_grad
    torch.testing.assert_close(output, layer(x), rtol=1e-12, atol=1e-12)


def test_16_bit_parameter_gradients_are_summed_in_float32(generator):
    layer = nn.Linear(D, D).bfloat16()
    x = torch.rand(4096, D, generator=generator).bfloat16()

    fw.chunk(layer, x, chunk_size=4).sum().backward()

    # 1024 ones of bfloat16 would stop at 256 * 4: the next summand is below half a unit in the last place.
    assert torch.equal(layer.bias.grad, torch.full((D,), 4096.0).bfloat16())


def test_only_one_chunk_of_the_inside_exists(generator):
    layer = nn.Sequential(nn.Linear(16, 512), nn.GELU(), nn.Linear(512, 16))
    x = torch.randn(2048, 16, generator=generator, requires_grad=True)

    def peak(run):
        with fw.measure_memory(layer) as memory:
            run(x).sum().backward()
        return memory.peak_bytes - memory.peak_by_category["weights"]

    # 4 buffers of (64, 512) and 5 of (2048, 16) and the gradients, against 3 of (2048, 512).
    assert peak(lambda x: fw.chunk(layer, x, chunk_size=64)) < 0.2 * peak(layer)


def test_fake_tensors_pass_through():
    with FakeTensorMode():
        layer, x = nn.Linear(D, D), torch.empty(L, D, requires_grad=True)
        fw.chunk(layer, x, chunk_size=10).sum().backward()
    assert x.grad.shape == (L, D) and layer.weight.grad.shape == (D, D)


def test_no_tokens_are_no_error(generator):
    x = inputs(generator, 2, 0, D)

    assert fw.chunk(Norm(), x, chunk_size=4).shape == (2, 0, D)


def test_wrong_arguments_are_named(generator):
    x = inputs(generator)
    for call, error, message in [
        (lambda: fw.chunk(Norm(), x, chunk_size=-1), ConfigError, "chunk_size=-1"),
        (lambda: fw.chunk(Norm(), x, params=(x,)), ConfigError, "params=1"),
        (lambda: fw.chunk(Norm(), x, dim=3), ShapeError, "dim=3"),
        (lambda: fw.chunk(Norm().split, (x, inputs(generator, 1, L + 1, D))), ShapeError, "does not fit"),
        (lambda: fw.chunk(lambda x: x.sum(1), x, chunk_size=10), ShapeError, "fn returns shape"),
    ]:
        with pytest.raises(error, match=message):
            call()


# Mutation: saved tensors that hold their own node are freed only where a gradient passes.
def test_a_branch_that_no_gradient_passes_through_is_freed():
    x = torch.randn(64, 8, requires_grad=True)

    def fn(x_CD):
        x_CD.exp()  # saves its own result
        return 2 * x_CD

    with StorageTracker(nn.Linear(1, 1)) as tracker:
        for _ in range(3):
            torch.autograd.grad(fw.chunk(fn, x, dim=0, chunk_size=8).sum(), x)
            tracker.track(x, "inputs")
            live = tracker.live_bytes

    assert live <= x.nbytes + 100  # x, and the parameters of the model


@pytest.mark.parametrize("chunk_size", [3, 10])
def test_sparse_gradients_of_embeddings_arrive(chunk_size):
    weight = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    index = torch.arange(10).remainder(7).view(1, 10, 1)

    def look_up(index, weight):
        return nn.functional.embedding(index.squeeze(-1), weight, sparse=True)

    fw.chunk(look_up, index, params=(weight,), chunk_size=chunk_size).sum().backward()
    assert torch.equal(weight.grad.to_dense().sum(1), 4.0 * torch.bincount(index.flatten(), minlength=10))
