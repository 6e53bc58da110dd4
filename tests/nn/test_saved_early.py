import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import featherweight as fw
from featherweight.nn.saved_early import SavedEarly

CHUNKS, ROWS, D, F = 4, 32, 8, 24


class CountProducts(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        self.count += func in (aten.mm.default, aten.addmm.default, aten.addmm_.default, aten.linear.default)
        return func(*args, **(kwargs or {}))


class Block(nn.Module):
    """Norm, feed-forward layer and residual of a decoder layer, with or without a norm behind the layer."""

    def __init__(self, norm_behind):
        super().__init__()
        self.before = nn.LayerNorm(D, dtype=torch.float64)
        self.behind = nn.LayerNorm(D, dtype=torch.float64) if norm_behind else nn.Identity()
        self.weights = nn.ParameterList(torch.randn(*shape, dtype=torch.float64) for shape in ((F, D), (F, D), (D, F)))

    def forward(self, x, chunk_size=ROWS):
        return x + self.behind(fw.chunked_mlp(self.before(x), *self.weights, chunk_size=chunk_size))


# Mutation: saving the input after the output is computed makes it 14 products per chunk; skipping the output in a block
# whose norm needs it makes the gradients wrong.
@pytest.mark.parametrize(("norm_behind", "products"), [(False, 3 + 2 + 6), (True, 3 + 3 + 2 + 6)])
def test_a_checkpoint_computes_no_output_that_nobody_reads(norm_behind, products):
    torch.manual_seed(0)
    block = Block(norm_behind)
    x = torch.randn(CHUNKS * ROWS, D, dtype=torch.float64, requires_grad=True)
    tensors = [x, *block.parameters()]
    expected = torch.autograd.grad(block(x, chunk_size=10**6).square().sum(), tensors)

    with CountProducts() as counter:
        found = torch.autograd.grad(checkpoint(block, x, use_reentrant=False).square().sum(), tensors)

    assert counter.count == CHUNKS * products
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)  # fp64 sums over 128 tokens in another order


@pytest.mark.parametrize("run", ["chunk", "chunked_mlp"])
def test_hooks_on_saved_tensors_see_what_is_kept(run):
    torch.manual_seed(0)
    block = Block(norm_behind=False)
    x = torch.randn(CHUNKS * ROWS, D, dtype=torch.float64, requires_grad=True)
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if run == "chunk":
            output = fw.chunk(nn.Sequential(nn.Linear(D, F, dtype=torch.float64), nn.GELU()), x, chunk_size=ROWS)
        else:
            output = fw.chunked_mlp(x, *block.weights, chunk_size=ROWS)
    output.sum().backward()

    assert packed.count(x.shape) == 1 and x.grad is not None
    assert not any(len(shape) == 2 and shape[1] == F and shape[0] == ROWS for shape in packed)  # inside of a chunk


def test_released_tensors_are_gone_and_others_stay():
    kept = SavedEarly(torch.ones(3), None)

    assert [one if one is None else one.tolist() for one in kept.tensors(release=False)] == [[1, 1, 1], None]
    kept.tensors(release=True)
    with pytest.raises(AttributeError):
        kept.tensors(release=True)
