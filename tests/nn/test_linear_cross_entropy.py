import pytest
import torch
from head_losses import D, N, V, assert_equal, gradients, make, ours, reference
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import featherweight as fw
from featherweight.errors import ConfigError, ShapeError

OPTIONS = [{}, {"smoothing": 0.1}, {"cap": 3.0}, {"scale": 0.5}, {"z_loss": 0.01}]
OPTIONS += [{"smoothing": 0.1, "cap": 3.0, "scale": 2.0, "z_loss": 0.01}]


# Mutation: dropping the tail chunk, dividing by the number of chunks, or a wrong term of a gradient fails here.
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("chunk_size", [1, 7, 64, N - 1, N, N + 5])
def test_loss_and_gradients_equal_the_plain_computation(chunk_size, ignored, reduction, options, generator):
    hidden, weight, bias, labels = make(generator, ignored)
    upstream = torch.rand(N if reduction == "none" else (), dtype=torch.float64, generator=generator)

    loss = ours(hidden, weight, bias, labels, reduction=reduction, chunk_size=chunk_size, **options)
    expected = reference(hidden, weight, bias, labels, reduction=reduction, **options)

    assert loss.dtype == torch.float64 and loss.shape == expected.shape
    assert_equal([loss], [expected])
    tensors = (hidden, weight, bias)
    assert_equal(gradients(loss, tensors, upstream), gradients(expected, tensors, upstream))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck_passes(reduction, generator):
    hidden, weight, bias, labels = make(generator, tokens=7)

    def loss(*tensors):
        return ours(*tensors, labels, reduction=reduction, chunk_size=3, smoothing=0.1, cap=4.0, z_loss=0.1)

    assert torch.autograd.gradcheck(loss, (hidden.contiguous(), weight, bias))


def test_a_batch_without_labels_has_loss_zero_and_zero_gradients(generator):
    hidden, weight, bias, labels = make(generator, ignored=1.0)
    for compute in ("forward", "backward"):
        for skip_ignored in (True, False):
            loss = ours(hidden, weight, bias, labels, compute=compute, skip_ignored=skip_ignored)
            assert loss == 0
            assert all(not gradient.any() for gradient in gradients(loss, (hidden, weight, bias)))


def test_no_tokens_at_all_are_a_loss_of_zero(generator):
    hidden, weight, _, labels = make(generator, tokens=0)

    loss = fw.linear_cross_entropy(hidden, weight, labels)

    assert loss == 0
    assert [gradient.shape for gradient in gradients(loss, (hidden, weight))] == [(0, D), (V, D)]


def test_shift_predicts_the_next_token_of_each_row(generator):
    hidden, weight, _, labels = make(generator, tokens=24)
    hidden, labels = hidden.view(2, 12, D) if hidden.is_contiguous() else hidden.reshape(2, 12, D), labels.view(2, 12)
    expected = reference(hidden[:, :-1].reshape(-1, D), weight, None, labels[:, 1:].reshape(-1))

    shifted = fw.linear_cross_entropy(hidden, weight, labels, shift=True, chunk_size=5)
    given = fw.linear_cross_entropy(hidden, weight, None, shift_labels=F.pad(labels[:, 1:], (0, 1), value=-100))

    assert_equal([shifted, given], [expected, expected])


def test_bf16_loss_and_gradients_round_no_more_than_the_plain_computation(generator):
    hidden, weight, bias, labels = make(generator, dtype=torch.bfloat16)
    expected = F.cross_entropy(F.linear(hidden, weight, bias).float(), labels)

    loss = fw.linear_cross_entropy(hidden, weight, labels, bias=bias, chunk_size=16)

    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)  # the same bf16 logits, then float32 arithmetic
    for one, other in zip(
        gradients(loss, (hidden, weight, bias)), gradients(expected, (hidden, weight, bias)), strict=True
    ):
        # Two roundings to bfloat16 (2**-9 each) on either side, relative to the largest entry.
        assert (one - other).abs().max() <= 4 * 2**-9 * other.abs().max()


def test_hooks_on_the_weight_run_once_per_backward_pass(generator):
    hidden, weight, _, labels = make(generator)
    calls = []
    weight.register_post_accumulate_grad_hook(lambda parameter: calls.append("accumulated"))
    weight.register_hook(lambda gradient: calls.append("gradient"))
    for compute in ("forward", "backward"):
        fw.linear_cross_entropy(hidden, weight, labels, chunk_size=5, compute=compute).backward()

    assert calls == ["gradient", "accumulated"] * 2


@pytest.mark.parametrize("compute", ["forward", "backward"])
def test_second_derivatives_are_refused(compute, generator):
    hidden, weight, _, labels = make(generator)
    loss = fw.linear_cross_entropy(hidden, weight, labels, compute=compute)

    with pytest.raises(ConfigError, match="create_graph=True"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("compute", ["forward", "backward"])
def test_works_inside_a_checkpoint(use_reentrant, compute, generator):
    hidden, weight, _, labels = make(generator)

    def loss(hidden):
        return fw.linear_cross_entropy(hidden.tanh(), weight, labels, chunk_size=10, compute=compute)

    checkpoint(loss, hidden, use_reentrant=use_reentrant).backward()

    expected = gradients(reference(hidden.tanh(), weight, None, labels), (hidden, weight))
    assert_equal([hidden.grad, weight.grad], expected)


def test_autocast_gives_what_the_plain_computation_gives_under_autocast(generator):
    hidden, weight, bias, labels = make(generator, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = F.cross_entropy(F.linear(hidden, weight, bias).float(), labels)
        loss = fw.linear_cross_entropy(hidden, weight, labels, bias=bias, chunk_size=16)

    torch.testing.assert_close(loss, expected)
    for one, other in zip(
        gradients(loss, (hidden, weight, bias)), gradients(expected, (hidden, weight, bias)), strict=True
    ):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() <= 4 * 2**-9 * other.abs().max()  # as for bf16 above


def test_fake_tensors_pass_through():
    with FakeTensorMode():
        hidden, weight = torch.empty(N, D, requires_grad=True), torch.empty(V, D, requires_grad=True)
        loss = fw.linear_cross_entropy(hidden, weight, torch.zeros(N, dtype=torch.int64), chunk_size=10)
        loss.backward()
    assert weight.grad.shape == (V, D) and hidden.grad.shape == (N, D)


def test_logprobs_are_those_of_the_tempered_distribution(generator):
    hidden, weight, bias, labels = make(generator)
    logits = 3.0 * torch.tanh(F.linear(hidden, weight, bias) / 3.0) / 0.7
    expected = torch.where(labels < 0, 0, logits.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0])
    upstream = torch.randn(N, dtype=torch.float64, generator=generator)

    logprobs = fw.linear_logprobs(hidden, weight, labels, bias=bias, temperature=0.7, logit_softcap=3.0, chunk_size=10)

    assert_equal([logprobs], [expected])
    assert_equal(gradients(logprobs, (hidden, weight), upstream), gradients(expected, (hidden, weight), upstream))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(5, dtype=torch.int64)}, ShapeError, "labels of shape"),
        ({"weight": torch.zeros(V, D + 1, dtype=torch.float64)}, ShapeError, "weight of shape"),
        ({"bias": torch.zeros(V + 1, dtype=torch.float64)}, ShapeError, "bias of shape"),
        ({"weight": torch.zeros(V, D)}, ConfigError, "dtypes="),
        ({"labels": None}, ConfigError, "labels=None"),
        ({"shift": True, "shift_labels": torch.zeros(N, dtype=torch.int64)}, ConfigError, "shift=True"),
        ({"reduction": "avg"}, ConfigError, "reduction='avg'"),
        ({"reduction": "sum", "num_items_in_batch": 3}, ConfigError, "num_items_in_batch=3"),
        ({"num_items_in_batch": -1}, ConfigError, "num_items_in_batch=-1"),
        ({"reduction": "none", "compute": "forward"}, ConfigError, "compute='forward'"),
        ({"label_smoothing": 1.5}, ConfigError, "label_smoothing=1.5"),
        ({"logit_softcap": 0.0}, ConfigError, "logit_softcap=0.0"),
        ({"chunk_size": 0}, ConfigError, "chunk_size=0"),
        ({"chunk_size": True}, ConfigError, "chunk_size=True"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_argument_is_named(change, error, message, generator):
    hidden, weight, _, labels = make(generator)
    arguments = {"hidden": hidden, "weight": weight, "labels": labels, **change}
    with pytest.raises(error, match=message):
        fw.linear_cross_entropy(arguments.pop("hidden"), arguments.pop("weight"), arguments.pop("labels"), **arguments)


def test_a_label_outside_the_vocabulary_is_an_error(generator):
    hidden, weight, _, labels = make(generator)
    for wrong in (V, -5):
        labels[3] = wrong
        with pytest.raises((RuntimeError, IndexError)):
            fw.linear_cross_entropy(hidden, weight, labels)
