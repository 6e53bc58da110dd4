"""Keypoints are places."""

import torch
from torch import nn

from featherweight.robot.learning.keypoints import KeypointStem


class Fixed(nn.Module):
    """Layers that give the same maps for every picture."""

    def __init__(self, maps):
        super().__init__()
        self.maps = nn.Parameter(maps)

    def forward(self, pictures):
        return self.maps


def test_a_map_becomes_the_place_where_it_is_large():
    maps = torch.full((1, 2, 24, 32), -1e4)
    maps[0, 0, 6, 31], maps[0, 1, 23, 0] = 0.0, 0.0
    stem = KeypointStem(2)
    stem.layers = Fixed(maps)
    places = stem(torch.zeros(1, 3, 96, 128, dtype=torch.uint8))
    torch.testing.assert_close(places.detach(), torch.tensor([[1.0, -1.0, 2 * 6 / 23 - 1, 1.0]]))


def test_a_stem_learns_where_a_patch_is_to_a_part_of_a_pixel():
    torch.manual_seed(0)
    stem, head = KeypointStem(4, width=8), nn.Linear(8, 2)
    optimizer = torch.optim.Adam([*stem.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(45):
        place = torch.randint(2, 26, (16, 2))
        pictures = torch.full((16, 3, 32, 32), 200, dtype=torch.uint8)
        for picture, (y, x) in zip(pictures, place, strict=True):
            picture[0, y : y + 4, x : x + 4] = 20
        error = (head(stem(pictures)) - place / 16 + 1).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert 16 * error.item() < 1.0, "pixels"
