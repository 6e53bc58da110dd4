import math

import torch

from featherweight.bev.model.pitch import LARGEST_RAD, PitchHead


def test_estimates_begin_at_zero_and_stay_within_their_bound():
    head = PitchHead(8, 12)
    assert torch.equal(head(torch.randn(2, 8, 12, 20)), torch.zeros(2, 2))
    torch.nn.init.normal_(head.output.weight, std=100)
    assert head(torch.randn(2, 8, 12, 20)).abs().max() <= LARGEST_RAD == math.radians(1.5)


def test_it_learns_in_which_row_the_horizon_is():
    torch.manual_seed(0)
    head = PitchHead(8, 24)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    row = torch.arange(24.0)[None, None, :, None]
    for _ in range(150):
        angle = (torch.rand(16, 1, 1, 1) - 0.5) * 2
        features = torch.sigmoid(row - 12 - 4 * angle).expand(16, 8, 24, 6)
        loss = torch.rad2deg(head(features)[:, 0] - math.radians(1) * angle.flatten()).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.15, "a guess of zero is wrong by 0.5 degrees"
