"""What eyes say of places, and what the arm makes of it."""

import numpy as np
import torch

from featherweight.robot.learning.eyes import SceneHead, scene_features
from featherweight.robot.learning.state import FEATURE_NAMES, PROPRIOCEPTION, select_features


def test_places_from_the_tool_are_those_of_a_policy_of_the_state():
    generator = np.random.default_rng(0)
    q, scene = generator.uniform(-60, 60, (5, 6)), generator.uniform(-0.2, 0.2, (5, 7))
    own = torch.from_numpy(select_features(PROPRIOCEPTION, q, None))
    found = scene_features(own, torch.from_numpy(scene[:, [0, 1, 5, 6]]))
    names = ("cube_x", "cube_y", "bin_x", "bin_y", *FEATURE_NAMES[-5:-1])
    assert names[4:] == ("cube_r_from_tool", "cube_angle_from_arm", "bin_r_from_tool", "bin_angle_from_arm")
    np.testing.assert_allclose(found, select_features(names, q, scene), atol=1e-12)


def test_a_head_begins_at_the_mean_place():
    torch.manual_seed(0)
    head, places = SceneHead(6), torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.3, 0.0, 0.1, 0.4]])
    head.fit_scales(places)
    torch.testing.assert_close(head.normal(places).mean(dim=0), torch.zeros(4))
    assert (head(torch.zeros(1, 6)) - places.mean(dim=0)).abs().max() < 0.1
