"""Layouts of cubes and bin."""

import numpy as np

from featherweight.robot.sim.world import World


def test_layouts_follow_the_seed_and_keep_their_distances():
    world = World("challenge", cubes=6)
    world.reset(3)
    first = [world.cube_m(i) for i in range(6)]
    world.reset(4)
    other = [world.cube_m(i) for i in range(6)]
    world.reset(3)

    np.testing.assert_array_equal(first, [world.cube_m(i) for i in range(6)])
    assert not np.allclose(first, other)
    for i, cube in enumerate(first):
        assert 0.12 <= np.hypot(*cube[:2]) <= 0.22 and np.linalg.norm(cube[:2] - world.bin_m[:2]) > 0.085
        assert all(np.linalg.norm(cube - other) > 0.05 for other in first[:i])


def test_cubes_are_laid_out_anew_while_arm_and_time_go_on():
    world, other = World("challenge", seed=1, cubes=2), World("challenge", seed=2, cubes=2)
    world.step(np.array([20.0, 10, 0, 0, 0, 0]), 1.0)
    joints, time_s = world.joints_rad, float(world.data.time)
    world.lay_out(2)
    assert np.array_equal(world.joints_rad, joints) and float(world.data.time) == time_s
    assert all(np.allclose(world.cube_m(i), other.cube_m(i)) for i in range(2))
    assert np.allclose(world.bin_m, other.bin_m)
    World("empty").lay_out(0)
