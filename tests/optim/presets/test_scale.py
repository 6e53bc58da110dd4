"""SCALE against the official step, its tiles, its groups, and gradients of linear layers that never exist."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.linalg.outer_product import OuterProduct
from featherweight.models import load_model
from featherweight.optim import Scale, scale_param_groups
from featherweight.optim.step import weight_update
from featherweight.quant.int8_weight import int8_weight_of

DTYPE = torch.float64


class Network(nn.Module):
    """An embedding, two matrices, a bias and a head."""

    def __init__(self, is_tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 24)
        self.tall, self.wide = nn.Linear(24, 300, bias=False), nn.Linear(300, 24)
        self.head = nn.Linear(24, 50, bias=False)
        if is_tied:
            self.head.weight = self.embedding.weight

    def get_output_embeddings(self):
        return self.head

    def loss(self, step):
        index = torch.randint(0, 50, (3, 16), generator=torch.Generator().manual_seed(step))
        hidden = self.embedding(index)
        logits = self.head(hidden + self.wide(torch.tanh(self.tall(hidden))))
        return nn.functional.cross_entropy(logits.flatten(0, 1).double(), (index.flatten() * 7 + 3) % 50)


class Official:
    """The published step: rows of hidden weights, columns of the embedding, momentum in the head, AdamW for vectors."""

    def __init__(self, model, lr):
        self.model, self.lr, self.momentum = model, lr, torch.zeros_like(model.head.weight)
        self.vectors = torch.optim.AdamW([p for p in model.parameters() if p.ndim < 2], lr=lr, weight_decay=0)

    @torch.no_grad()
    def step(self):
        for name, p in self.model.named_parameters():
            if p.ndim < 2:
                continue
            grad, axis = p.grad, 1
            if p is self.model.head.weight:
                self.momentum = grad = 0.9 * self.momentum + 0.1 * p.grad
            elif name == "embedding.weight":
                axis = 0
            p -= self.lr * grad / grad.square().mean(axis, keepdim=True).sqrt().clamp(min=1e-8)
        self.vectors.step()


def networks(is_tied=False):
    return [Network(is_tied).to(DTYPE) for _ in range(2)]


@pytest.mark.parametrize("is_tied", [False, True])
def test_twenty_steps_equal_the_official_ones(is_tied, monkeypatch):
    # Mutation: columns in the place of rows, momentum elsewhere, or rows of the embedding change every weight.
    monkeypatch.setattr(weight_update, "SLICE_ELEMENTS_CPU", 600)  # several tiles for each matrix
    ours, theirs = networks(is_tied)
    optimizer, official = Scale(scale_param_groups(ours), lr=1e-2), Official(theirs, 1e-2)
    for step in range(20):
        for model, one in ((ours, optimizer), (theirs, official)):
            model.zero_grad()
            model.loss(step).backward()
            one.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)
    vector = 24
    assert optimizer.state_bytes() == 8 * (50 * 24 + 2 * vector + len(list(ours.parameters())))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("normalize", ["rows", "columns"])
@pytest.mark.parametrize("bits", [32, 8])
def test_tiles_do_not_change_a_step(momentum, normalize, bits, monkeypatch):
    # Mutation: norms of columns that are those of a tile.
    def run(elements):
        monkeypatch.setattr(weight_update, "SLICE_ELEMENTS_CPU", elements)
        torch.manual_seed(1)
        weight = nn.Parameter(torch.randn(512, 40).bfloat16())
        optimizer = Scale([{"params": [weight], "momentum": momentum, "normalize": normalize}], lr=0.1, state_bits=bits)
        for _ in range(4):
            weight.grad = torch.randn(512, 40).bfloat16()
            optimizer.step()
        return weight.detach()

    a, b = run(1 << 18), run(256 * 40)
    if normalize == "rows":
        assert torch.equal(a, b)  # bit for bit: rounding bits belong to elements
    else:  # sums over tiles differ in the last place, so a weight rounds to its neighbour here and there
        assert ((a - b).abs() <= 2**-7 * a.abs() + 1e-6).all() and (a != b).float().mean() < 1e-2


class LargestMade(TorchDispatchMode):
    """Remembers the largest number of elements that an operation has made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        given = {one.untyped_storage()._cdata for one in args if isinstance(one, torch.Tensor) and not one.is_sparse}
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, torch.Tensor) and not one.is_sparse and one.untyped_storage()._cdata not in given:
                self.elements = max(self.elements, one.numel())
        return result


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize("is_int8", [False, True])
def test_core_gradients_never_form_the_gradient_and_make_the_same_step(max_grad_norm, is_int8, monkeypatch):
    # Mutation: a receiver that forms the matrix; a tile of the factors in the place of all rows.
    monkeypatch.setattr(weight_update, "SLICE_ELEMENTS_CPU", 64 * 24)
    results = {}
    for has_cores in (False, True):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(96, 512, bias=False), nn.Tanh(), nn.Linear(512, 24))
        model = model if is_int8 else model.to(DTYPE)
        if is_int8:
            fw.apply(model, fw.Int8())
        if has_cores:
            fw.apply(model, fw.CoreGradient())
        optimizer = Scale(scale_param_groups(model), lr=1e-2, stochastic_rounding=False)
        with fw.optim.layerwise(model, optimizer, max_grad_norm=max_grad_norm) as handle:
            for step in range(5):
                x = torch.randn(
                    3, 96, generator=torch.Generator().manual_seed(step), dtype=torch.float32 if is_int8 else DTYPE
                )
                seen = LargestMade()
                with seen:
                    model(x).square().mean().backward()
                if has_cores and not is_int8:
                    assert seen.elements <= 96 * 512 / 2  # a tile of 256 rows, where the norm is measured
        assert handle.steps == 5
        weights = [one.dequantize() if (one := int8_weight_of(p)) else p.detach() for p in model.parameters()]
        results[has_cores] = weights, handle.grad_norm if max_grad_norm else None
    # In int8 a code may round the other way: one step of its row of codes.
    tolerance = 2e-2 if is_int8 else 1e-12
    for a, b in zip(results[True][0], results[False][0], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    if max_grad_norm and not is_int8:
        assert results[True][1] == pytest.approx(results[False][1], rel=1e-12)


def test_two_uses_of_a_weight_and_accumulation_give_the_step_of_the_sum():
    # Mutation: norms of one use alone. Two uses come as factors side by side; sums over micro-batches are kept whole.
    def run(has_cores, accumulation_steps):
        torch.manual_seed(0)
        layer = nn.Linear(12, 12, bias=False).to(DTYPE)
        model = nn.Sequential(layer)
        if has_cores:
            fw.apply(model, fw.CoreGradient())
        optimizer = Scale(scale_param_groups(model), lr=1e-2)
        with fw.optim.layerwise(model, optimizer, accumulation_steps=accumulation_steps):
            for _ in range(2 * accumulation_steps):
                layer(torch.tanh(layer(torch.randn(5, 12, dtype=DTYPE)))).square().mean().backward()
            kept = [row[1] for row in optimizer.layerwise.core_rows()]
        return layer.weight.detach(), kept

    for steps, words in ((1, "tiles of rows, from its factors"), (2, "norms of rows are those of the whole sum")):
        (ours, kept), (plain, _) = run(True, steps), run(False, steps)
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
        assert kept == [words]


def test_groups_follow_what_a_weight_does():
    model = load_model("tiny")
    groups = {(g["normalize"], g.get("momentum")): [n for n, _ in g["params"]] for g in scale_param_groups(model)}
    assert groups["columns", 0.0] == ["model.embed_tokens.weight"] and groups["rows", None] == ["lm_head.weight"]
    assert len(groups["rows", 0.0]) == sum(1 for _ in model.parameters()) - 2


def test_what_makes_no_sense_is_refused_in_a_sentence():
    weight = nn.Parameter(torch.ones(8, 8))
    with pytest.raises(ConfigError, match="low_rank=True cannot be used by an optimizer that projects nothing"):
        Scale([{"params": [weight], "rank": 2}])
    with pytest.raises(ConfigError, match="normalize='diagonal' is not allowed; expected one of rows, columns"):
        Scale([weight], normalize="diagonal")
    with pytest.raises(ConfigError, match="rule='scale' is not allowed"):
        fw.optim.GaLoreAdamW([weight], rule="scale", rank=2)
    with pytest.raises(ConfigError, match="has no trainable parameter"):
        scale_param_groups(nn.ReLU())


def test_tiles_of_factors_are_the_rows_of_the_product():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(7, 30, generator=generator), torch.randn(7, 11, generator=generator)
    whole = OuterProduct(left, right)
    # Sums over the same 7 tokens in the same order: equal to the last place of float32.
    torch.testing.assert_close(
        torch.cat([whole.rows(start, start + 10).dense() for start in range(0, 30, 10)]),
        left.mT @ right,
        atol=1e-6,
        rtol=0,
    )
