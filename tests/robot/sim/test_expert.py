"""The scripted expert."""

import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.robot.sim.expert import pick_and_place
from featherweight.robot.sim.world import World


def run_expert(world, seed):
    """Follow the expert with whole degrees at the firmware's speed; return whether the cube is in the bin."""
    world.reset(seed)
    servo = np.zeros(6)
    for target in pick_and_place(world.cube_m(), world.bin_m):
        for _ in range(3):
            servo += np.clip(np.round(target) - servo, -1, 1)
            world.step(servo, 1 / 90)
    world.step(servo, 1.0)
    return world.is_placed()


@pytest.mark.parametrize("count", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_the_expert_places_every_cube(count):
    world = World("challenge", cubes=1)

    assert [run_expert(world, seed) for seed in range(count)] == [True] * count


def test_an_expert_says_which_point_is_out_of_reach():
    with pytest.raises(ConfigError, match="is out of reach"):
        list(pick_and_place(np.array([0.5, 0, 0.011]), np.array([0.17, 0.1, 0])))
