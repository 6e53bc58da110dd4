import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import featherweight as fw
from featherweight.errors import ConfigError, ShapeError
from featherweight.nn.cross_entropy import TokenStats
from featherweight.nn.int8_linear import to_int8_

N, D, V = 97, 6, 23  # a prime number of tokens: no chunk size but 1 divides it


def make(generator, ignored=0.3, dtype=torch.float64, bias=True, tokens=N):
    """Return hidden (a non-contiguous view), weight, bias, labels that begin and end ignored."""
    hidden = torch.randn(D, tokens, dtype=torch.float64, generator=generator).t().to(dtype).requires_grad_()
    weight = torch.randn(V, D, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
    offset = torch.randn(V, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() if bias else None
    labels = torch.randint(V, (tokens,), generator=generator)
    labels[torch.rand(tokens, generator=generator) < ignored] = -100
    if ignored and tokens:
        labels[[0, -1]] = -100
    return hidden, weight, offset, labels


def reference(hidden, weight, bias, labels, *, reduction="mean", smoothing=0.0, cap=None, scale=1.0, z_loss=0.0):
    """The loss in plain PyTorch, all logits at once; without any counted label 0, where torch's mean is NaN."""
    logits = F.linear(hidden, weight, bias) * scale
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    losses = losses + z_loss * torch.where(labels == -100, 0, logits.logsumexp(-1).square())
    if reduction == "none":
        return losses
    return losses.sum() / (max(int((labels != -100).sum()), 1) if reduction == "mean" else 1)


def gradients(loss, tensors, upstream=None):
    upstream = torch.ones_like(loss) if upstream is None else upstream
    return torch.autograd.grad(loss, [tensor for tensor in tensors if tensor is not None], upstream)


def assert_equal(ours, theirs, tolerance=1e-12):
    """Compare losses or gradients; fp64 sums over N tokens in another order differ by some 1e-15."""
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


OPTIONS = [{}, {"smoothing": 0.1}, {"cap": 3.0}, {"scale": 0.5}, {"z_loss": 0.01}]
OPTIONS += [{"smoothing": 0.1, "cap": 3.0, "scale": 2.0, "z_loss": 0.01}]


def ours(hidden, weight, bias, labels, *, smoothing=0.0, cap=None, scale=1.0, z_loss=0.0, **options):
    return fw.linear_cross_entropy(
        hidden,
        weight,
        labels,
        bias=bias,
        label_smoothing=smoothing,
        logit_softcap=cap,
        logit_scale=scale,
        z_loss=z_loss,
        **options,
    )


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


@pytest.mark.parametrize("skip_ignored", [True, False])
@pytest.mark.parametrize("compute", ["forward", "backward"])
def test_every_way_to_compute_gives_the_same_gradients(compute, skip_ignored, generator):
    hidden, weight, bias, labels = make(generator)
    options = {"chunk_size": 10, "compute": compute, "skip_ignored": skip_ignored}

    loss = ours(hidden, weight, bias, labels, **options)

    expected = reference(hidden, weight, bias, labels)
    assert_equal([loss], [expected])
    assert_equal(gradients(loss, (hidden, weight, bias)), gradients(expected, (hidden, weight, bias)))


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


# Mutation: writing .grad by hand gives the ratios 2 and 3 here (the paper's official code does).
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_accumulated_head_gradient_is_that_of_one_large_batch(micro_batches, as_tensor, generator):
    parts = [make(generator, ignored=0.2 * (index + 1)) for index in range(micro_batches)]
    weight = parts[0][1]
    count = sum(int((labels != -100).sum()) for *_, labels in parts)
    for hidden, _, _, labels in parts:
        num_items = torch.tensor(count) if as_tensor else count
        fw.linear_cross_entropy(hidden, weight, labels, num_items_in_batch=num_items, chunk_size=10).backward()

    whole = reference(torch.cat([p[0] for p in parts]), weight, None, torch.cat([p[3] for p in parts]))
    (expected,) = gradients(whole, [weight])
    assert_equal([weight.grad], [expected])


def relative_error(ours, exact):
    return ((ours.double() - exact).norm() / exact.norm()).item()


# Mutation: summing in bfloat16 gives 2.1 times the error with these 64 chunks.
def test_bf16_weight_gradient_of_64_chunks_is_as_exact_as_that_of_one(generator):
    hidden = torch.randn(1024, 64, generator=generator).bfloat16().requires_grad_()
    weight = (torch.randn(512, 64, generator=generator) / 8).bfloat16().requires_grad_()
    labels = torch.randint(512, (1024,), generator=generator)
    wide, wide_weight = hidden.detach().double(), weight.detach().double().requires_grad_()
    (exact,) = gradients(F.cross_entropy(wide @ wide_weight.t(), labels), [wide_weight])

    def error(**options):
        loss = fw.linear_cross_entropy(hidden, weight, labels, **options)
        assert loss.dtype == torch.float32
        (gradient,) = gradients(loss, [weight])
        assert gradient.dtype == torch.bfloat16
        return relative_error(gradient, exact)

    # 2 %: the bound of the specification; both are dominated by one rounding of the result to bfloat16.
    assert error(chunk_size=16) <= 1.02 * error(chunk_size=1024)
    assert error(chunk_size=16, accum_dtype=torch.bfloat16) > 1.5 * error(chunk_size=1024)


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


def test_frozen_head_computes_no_weight_gradient(generator):
    hidden, weight, bias, labels = make(generator)
    weight, bias = weight.detach(), bias.detach()
    with fw.measure_memory(nn.Linear(1, 1)) as memory:
        loss = ours(hidden, weight, bias, labels, chunk_size=1)
        (gradient,) = gradients(loss, [hidden])
    shapes = {allocation.shape for allocation in memory.top_allocations(100)}

    assert_equal([gradient], gradients(reference(hidden, weight, bias, labels), [hidden]))
    assert (V, D) not in shapes


def test_frozen_hidden_states_leave_the_gradient_of_the_head(generator):
    hidden, weight, bias, labels = make(generator)

    loss = ours(hidden.detach(), weight, bias, labels, chunk_size=10)

    expected = gradients(reference(hidden, weight, bias, labels), [weight, bias])
    assert_equal(gradients(loss, [weight, bias]), expected)


def test_tied_embedding_gets_the_sum_of_both_gradients(generator):
    table = nn.Parameter(torch.randn(V, D, dtype=torch.float64, generator=generator))
    tokens, labels = torch.randint(V, (2, N), generator=generator)

    def total(loss):
        return gradients(loss(F.embedding(tokens, table).tanh(), table, labels), [table])

    assert_equal(
        total(lambda *arguments: fw.linear_cross_entropy(*arguments, chunk_size=10)),
        total(lambda hidden, weight, labels: reference(hidden, weight, None, labels)),
    )


def test_hooks_on_the_weight_run_once_per_backward_pass(generator):
    hidden, weight, _, labels = make(generator)
    calls = []
    weight.register_post_accumulate_grad_hook(lambda parameter: calls.append("accumulated"))
    weight.register_hook(lambda gradient: calls.append("gradient"))
    for compute in ("forward", "backward"):
        fw.linear_cross_entropy(hidden, weight, labels, chunk_size=5, compute=compute).backward()

    assert calls == ["gradient", "accumulated"] * 2


def test_a_retained_graph_can_be_walked_twice(generator):
    hidden, weight, _, labels = make(generator)
    loss = fw.linear_cross_entropy(hidden, weight, labels, chunk_size=10)

    first = torch.autograd.grad(3 * loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(3 * loss, (hidden, weight))

    assert_equal(first, second, tolerance=0)


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


def test_without_grad_only_the_loss_is_computed(generator):
    hidden, weight, _, labels = make(generator)
    with torch.no_grad(), fw.measure_memory(nn.Linear(1, 1)) as memory:
        loss = fw.linear_cross_entropy(hidden, weight, labels, chunk_size=1)

    assert not loss.requires_grad
    assert not {(V, D), (N, D)} & {allocation.shape for allocation in memory.top_allocations(100)}
    with torch.inference_mode():
        assert fw.linear_cross_entropy(hidden, weight, labels, chunk_size=1) == loss


def test_fake_tensors_pass_through():
    with FakeTensorMode():
        hidden, weight = torch.empty(N, D, requires_grad=True), torch.empty(V, D, requires_grad=True)
        loss = fw.linear_cross_entropy(hidden, weight, torch.zeros(N, dtype=torch.int64), chunk_size=10)
        loss.backward()
    assert weight.grad.shape == (V, D) and hidden.grad.shape == (N, D)


# Mutation: holding the logits of two chunks, or a second buffer of the vocabulary's size, breaks the bound.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_peak_is_the_weight_gradient_and_the_logits_of_one_chunk(dtype, generator):
    tokens, width, vocabulary, chunk = 4096, 64, 8000, 256
    hidden = torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    with fw.measure_memory(nn.Linear(1, 1)) as memory:
        fw.linear_cross_entropy(hidden, weight, labels, chunk_size=chunk).backward()

    bound = vocabulary * width * 4 + 6 * vocabulary * chunk + tokens * width * dtype.itemsize
    assert memory.peak_bytes <= 1.05 * bound  # 20 bytes a token for losses and row factors, and blocks of 0.5 MiB: 4 %


def test_logprobs_are_those_of_the_tempered_distribution(generator):
    hidden, weight, bias, labels = make(generator)
    logits = 3.0 * torch.tanh(F.linear(hidden, weight, bias) / 3.0) / 0.7
    expected = torch.where(labels < 0, 0, logits.log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0])
    upstream = torch.randn(N, dtype=torch.float64, generator=generator)

    logprobs = fw.linear_logprobs(hidden, weight, labels, bias=bias, temperature=0.7, logit_softcap=3.0, chunk_size=10)

    assert_equal([logprobs], [expected])
    assert_equal(gradients(logprobs, (hidden, weight), upstream), gradients(expected, (hidden, weight), upstream))


def test_stats_tell_entropy_and_hits_without_changing_the_loss(generator):
    hidden, weight, _, labels = make(generator)
    labels = labels.clone()
    logits = hidden @ weight.t()
    labels[5] = logits[5].argmax()
    stats = TokenStats()

    loss = fw.linear_cross_entropy(hidden, weight, labels, chunk_size=10, stats=stats)

    counted = labels != -100
    assert_equal([loss], [reference(hidden, weight, None, labels)])
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert_equal([stats.entropy, stats.logsumexp], [entropy * counted, logits.logsumexp(-1) * counted])
    assert torch.equal(stats.is_top, (logits.argmax(-1) == labels) & counted) and stats.is_top[5]
    assert stats.accuracy == pytest.approx(stats.is_top.sum().item() / counted.sum().item())


class LoraHead(nn.Module):
    """A frozen matrix and two thin trainable ones, as PEFT computes it."""

    def __init__(self, generator):
        super().__init__()
        self.base = nn.Linear(D, V, dtype=torch.float64).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(2, D, dtype=torch.float64, generator=generator))
        self.up = nn.Parameter(torch.randn(V, 2, dtype=torch.float64, generator=generator))

    def forward(self, hidden):
        return self.base(hidden) + hidden @ self.down.t() @ self.up.t()


@pytest.mark.parametrize("compute", ["forward", "backward"])
def test_a_head_with_adapters_trains_them_alone(compute, generator):
    head = LoraHead(generator)
    calls = []
    head.up.register_hook(lambda gradient: calls.append("gradient"))
    hidden, _, _, labels = make(generator)
    tensors = (hidden, head.down, head.up)

    loss = fw.linear_cross_entropy(hidden, head, labels, chunk_size=10, compute=compute)
    expected = F.cross_entropy(head(hidden), labels)

    assert_equal([loss], [expected])
    found = gradients(loss, tensors)
    assert calls == ["gradient"]
    assert_equal(found, gradients(expected, tensors))
    assert dict(head.named_parameters())["up"] is head.up  # the stand-ins of the backward pass are gone


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


@pytest.mark.parametrize("compute", ["forward", "backward"])
def test_an_int8_head_gives_the_loss_of_its_values_and_its_handle_the_gradient(compute, generator):
    head = nn.Linear(12, 37, bias=False)
    plain = nn.Linear(12, 37, bias=False)
    quantized = to_int8_(head)
    plain.weight.data = quantized.int8_weight().dequantize()
    hidden = torch.randn(23, 12, generator=generator)
    labels = torch.randint(37, (23,), generator=generator)

    one, two = (hidden.clone().requires_grad_() for _ in range(2))
    loss = fw.linear_cross_entropy(one, quantized, labels, chunk_size=5, compute=compute)
    expected = F.cross_entropy(plain(two), labels)
    loss.backward()
    expected.backward()

    # float32 sums over chunks in another order.
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(head.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-7)
