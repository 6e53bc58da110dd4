"""Eyes of a policy of pictures: a head that says where cube and bin are, and what the arm makes of that.

A demonstration tells more than the eyes need: once the arm moves, its joints say where it is going, so a network that
is asked for actions alone follows them and hardly looks. The head sees the pictures and not the joints, and learns the
places that the simulator recorded; the policy then sees the places as one of the state would.

Shapes: B frames, E numbers of all keypoints, F features, 4 places: cube x, y, bin x, y.
"""

import math

import torch
from torch import Tensor, nn

from featherweight.robot.learning.state import PROPRIOCEPTION
from featherweight.robot.sim.session import SCENE_NAMES

PLACES = ("cube_x", "cube_y", "bin_x", "bin_y")
"""What the head says, metres in the world. Heading and height of the cube do not change what the expert does."""
PLACE_COLUMNS = [SCENE_NAMES.index(name) for name in PLACES]
SCENE_FEATURES = 2 * len(PLACES)
"""Numbers that `scene_features` adds: the places, and where they are from the tool."""
HIDDEN = 64


class SceneHead(nn.Module):
    """Two linears from keypoints to places.

    Args:
        keypoints: E.
    """

    def __init__(self, keypoints: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(keypoints, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, len(PLACES)))
        self.register_buffer("mean", torch.zeros(len(PLACES)))
        self.register_buffer("std", torch.ones(len(PLACES)))

    def fit_scales(self, places_m: Tensor) -> None:
        """Take mean and deviation of (n, 4) places."""
        self.get_buffer("mean").copy_(places_m.mean(dim=0))
        self.get_buffer("std").copy_(places_m.std(dim=0, unbiased=False) + 1e-6)

    def normal(self, places_m: Tensor) -> Tensor:
        """Return (B, 4) places in deviations from their mean."""
        return (places_m - self.get_buffer("mean")) / self.get_buffer("std")

    def forward(self, keypoints: Tensor) -> Tensor:
        """Return (B, 4) places in metres, from (B, E) keypoints."""
        result: Tensor = self.layers(keypoints).float() * self.get_buffer("std") + self.get_buffer("mean")
        return result


def scene_features(proprioception: Tensor, places_m: Tensor) -> Tensor:
    """Return (B, 8) places, and distance and angle of cube and bin from the tool, as `state_features` has them.

    Args:
        proprioception: (B, 8) features with the names of `PROPRIOCEPTION`.
        places_m: (B, 4).
    """
    pan = proprioception[:, 0] * math.pi / 2
    tool_r = proprioception[:, PROPRIOCEPTION.index("tool_r")]
    polar = []
    for x, y in (places_m[:, :2].unbind(-1), places_m[:, 2:].unbind(-1)):
        polar += [torch.hypot(x, y) - tool_r, torch.atan2(y, x) - pan]
    return torch.cat([places_m, torch.stack(polar, dim=-1)], dim=-1)
