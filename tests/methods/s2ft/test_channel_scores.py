"""Scores of channels."""

import torch
from torch import nn

import featherweight as fw
from featherweight.methods.s2ft.calibration import calibrate
from featherweight.methods.s2ft.channel_scores import channel_scores
from featherweight.methods.s2ft.model import prepared_targets


def test_scores_are_their_formulas():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=generator)
    x = torch.randn(2, 7, 6, generator=generator)
    mask = torch.ones(2, 7)
    mask[0, 4:] = 0
    x[0, 4:] = 1e6  # padding that must not count

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.down_proj = nn.Linear(6, 5, bias=False)
            self.down_proj.weight.data = weight.t().contiguous()

        def forward(self, input_ids, attention_mask=None, **_):
            return self.down_proj(x)

    model = One()
    config = fw.S2FTConfig(num_channels=2, target_modules=["down_proj"])
    targets = prepared_targets(model, config)
    statistics = calibrate(model, [{"input_ids": torch.zeros(2, 7), "attention_mask": mask}], targets)["down_proj"]
    real = x[mask.bool()]

    torch.testing.assert_close(channel_scores("weight", weight, 2), weight.view(3, 10).norm(dim=1))
    torch.testing.assert_close(channel_scores("activation", weight, 1, statistics), real.abs().mean(0))
    product = (weight.square().sum(1) * real.square().mean(0)).sqrt()
    torch.testing.assert_close(channel_scores("product", weight, 1, statistics), product)
    torch.testing.assert_close(channel_scores("spectral", weight, 1, spectral_rank=5), weight.norm(dim=1))
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    best = (u[:, :2] * s[:2]) @ v[:2]
    torch.testing.assert_close(
        channel_scores("spectral", weight, 1, spectral_rank=2), best.norm(dim=1), rtol=1e-3, atol=1e-3
    )
    assert channel_scores("perturbation", weight, 1, statistics).max() < 0.2 * product.max()
