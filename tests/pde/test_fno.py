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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_of_the_model_keeps_both_parts_of_the_complex_weights(dtype):
    model, x = build(), torch.randn(1, 1, 12, 10)
    expected = model(x)
    weight = model.fno_blocks.convs[0].weight.tensor.clone()
    model.to(dtype)
    cast = model.fno_blocks.convs[0].weight.tensor
    assert cast.dtype == (torch.complex128 if dtype == torch.float64 else torch.complex64)
    assert torch.equal(cast.to(torch.complex64), weight) and isinstance(cast, torch.nn.Parameter)
    if dtype in (torch.bfloat16, torch.float64):
        # bfloat16 has 8 bits, and the network some ten roundings in a row.
        torch.testing.assert_close(model(x.to(dtype)).float(), expected, rtol=0.1, atol=0.02)


def test_moves_to_other_devices_and_copies_keep_complex_weights():
    model = build().to("meta")
    assert model.fno_blocks.convs[0].weight.tensor.dtype == torch.complex64
    assert model.to_empty(device="cpu").fno_blocks.convs[0].weight.tensor.dtype == torch.complex64


def test_metadata_of_neuraloperator_is_skipped_at_every_depth_and_nothing_else_is():
    pair = torch.nn.Sequential(build(out_channels=1), torch.nn.ModuleDict({"last": build()}))
    state = dict(pair.state_dict())
    pair.load_state_dict({**state, "_metadata": {"a": 1}, "0._metadata": {}, "1.last._metadata": {}})
    with pytest.raises(RuntimeError, match="unknown_weight"):
        pair.load_state_dict({**state, "_metadata": {}, "unknown_weight": torch.zeros(1)})
    build().load_state_dict({**build().state_dict(), "_metadata": {}})


@pytest.mark.parametrize("sizes", [(7, 9), (7, 8), (8, 9)])
def test_odd_grids_shift_frequencies_exactly_or_as_neuraloperator_does(sizes):
    layer = build(n_layers=1).fno_blocks.convs[0]
    x = torch.randn(1, 4, *sizes)
    exact = layer(x) - layer.bias
    layer.shifts_twice = True
    theirs = layer(x) - layer.bias
    if sizes[0] % 2 == 0:
        assert torch.equal(exact, theirs)
        return
    # Shifted forward twice, every frequency of the first axis comes back one lower.
    spectrum, weight = torch.fft.rfftn(x, dim=(2, 3)), layer.weight.tensor
    for lower, expected in ((0, exact), (1, theirs)):
        out = torch.zeros_like(spectrum)
        for index, wave in enumerate(range(-3, 3)):
            out[:, :, wave - lower, :4] = torch.einsum("bik,iok->bok", spectrum[:, :, wave, :4], weight[:, :, index])
        torch.testing.assert_close(torch.fft.irfftn(out, s=sizes, dim=(2, 3)), expected, rtol=1e-4, atol=1e-5)


def test_odd_grids_are_chosen_for_the_whole_network():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 9, 9)
    assert torch.equal(build()(x), build(odd_grids="exact")(x))
    assert not torch.equal(build()(x), build(odd_grids="neuraloperator")(x))
    with pytest.raises(ConfigError, match="odd_grids='theirs'"):
        build(odd_grids="theirs")
