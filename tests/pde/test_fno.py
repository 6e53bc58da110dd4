"""The Fourier Neural Operator."""

import math

import pytest
import torch

from featherweight.errors import ConfigError, ShapeError
from featherweight.pde.fno import FNO, SpectralConv


def build(**options) -> FNO:
    torch.manual_seed(0)
    defaults = {"n_modes": (6, 6), "in_channels": 1, "out_channels": 2, "hidden_channels": 4, "n_layers": 2}
    return FNO(**{**defaults, **options})


def test_names_and_shapes_are_those_of_neuraloperator():
    shapes = {name: tuple(tensor.shape) for name, tensor in build(n_layers=1).state_dict().items()}
    assert shapes == {
        "fno_blocks.convs.0.bias": (4, 1, 1),
        "fno_blocks.convs.0.weight.tensor": (4, 4, 6, 4),
        "fno_blocks.fno_skips.0.conv.weight": (4, 4, 1),
        "fno_blocks.channel_mlp.0.fcs.0.weight": (2, 4, 1),
        "fno_blocks.channel_mlp.0.fcs.0.bias": (2,),
        "fno_blocks.channel_mlp.0.fcs.1.weight": (4, 2, 1),
        "fno_blocks.channel_mlp.0.fcs.1.bias": (4,),
        "fno_blocks.channel_mlp_skips.0.weight": (1, 4, 1, 1),
        "lifting.fcs.0.weight": (8, 3, 1),
        "lifting.fcs.0.bias": (8,),
        "lifting.fcs.1.weight": (4, 8, 1),
        "lifting.fcs.1.bias": (4,),
        "projection.fcs.0.weight": (8, 4, 1),
        "projection.fcs.0.bias": (8,),
        "projection.fcs.1.weight": (2, 8, 1),
        "projection.fcs.1.bias": (2,),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("n_modes", "sizes"), [((8,), (16,)), ((6, 6), (16, 12)), ((32, 32), (16, 16)), ((4, 4, 4), (8, 8, 6))]
)
def test_outputs_equal_those_of_neuraloperator(n_modes, sizes):
    models = pytest.importorskip("neuralop.models", exc_type=ImportError)
    options = {"n_modes": n_modes, "in_channels": 1, "out_channels": 1, "hidden_channels": 4, "n_layers": 2}
    theirs, ours = models.FNO(**options, projection_channel_ratio=2), FNO(**options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 1, *sizes)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("sizes", [(16,), (15,), (8, 9), (7, 7)])
def test_spectral_convolution_is_a_convolution_with_real_kernels(sizes):
    torch.manual_seed(0)
    layer = SpectralConv(1, 1, [4] * len(sizes))
    with torch.no_grad():
        layer.bias.zero_()
    x = torch.randn(1, 1, *sizes)
    moved = torch.roll(layer(x), [1] * len(sizes), list(range(2, 2 + len(sizes))))
    # It commutes with shifts: also on odd grids, where a forward shift in place of the inverse one does not.
    again = layer(torch.roll(x, [1] * len(sizes), list(range(2, 2 + len(sizes)))))
    torch.testing.assert_close(moved, again, rtol=1e-4, atol=1e-5)


def test_band_limited_fields_give_the_same_answer_at_any_resolution():
    model = build(n_layers=1, n_modes=(4, 4))

    def field(size: int) -> torch.Tensor:
        x = torch.arange(size) / size
        return (torch.sin(2 * math.pi * x)[:, None] * torch.cos(2 * math.pi * x))[None, None]

    layer = model.fno_blocks.convs[0]
    lifted = [field(size).expand(1, 4, size, size) for size in (16, 32)]
    coarse, fine = (layer(one) for one in lifted)
    torch.testing.assert_close(coarse, fine[:, :, ::2, ::2], rtol=1e-4, atol=1e-5)


def test_padding_and_checkpointing_keep_shapes_and_numbers():
    x = torch.randn(2, 1, 12, 10)
    assert build(domain_padding=0.25)(x).shape == (2, 2, 12, 10)
    plain, checkpointed = build(), build(activation_checkpointing=True)
    for model in (plain, checkpointed):
        model(x).square().sum().backward()
    for one, two in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_slices_of_a_gradient_have_at_most_the_rank_of_the_batch():
    model = build(hidden_channels=6)
    model(torch.randn(2, 1, 16, 16)).square().sum().backward()
    grad = model.fno_blocks.convs[0].weight.tensor.grad
    values = torch.linalg.svdvals(grad.permute(2, 3, 0, 1))
    assert float((values[..., 2] / values[..., 0]).max()) < 1e-4  # float32


def test_wrong_inputs_are_explained():
    with pytest.raises(ShapeError, match=r"\(B, 1, s_1, s_2\)"):
        build()(torch.zeros(2, 16, 16))
    with pytest.raises(ConfigError, match="one to three numbers"):
        FNO(n_modes=(), in_channels=1, out_channels=1, hidden_channels=4)
