"""The kit's parts in the simulator."""

from pathlib import Path

import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.robot.hardware import templates
from featherweight.robot.hardware.masses import body_masses
from featherweight.robot.hardware.simulated import arm_with, simulated_parts

pytest.importorskip("mujoco")


def expert_places(parts, seeds):
    """Return for each seed whether the scripted expert brings the cube into the bin, at the firmware's speed."""
    from featherweight.robot.sim.expert import RATE_HZ, pick_and_place
    from featherweight.robot.sim.world import World

    world, placed = World("challenge", cubes=1, parts=parts), []
    for seed in seeds:
        world.reset(seed)
        q = np.zeros(6)
        for target in pick_and_place(world.cube_m(), world.bin_m):
            q += np.clip(np.round(target) - q, -88 / RATE_HZ, 88 / RATE_HZ)
            world.step(np.round(q), 1 / RATE_HZ)
        placed.append(world.is_placed())
    return placed


def test_the_expert_picks_and_places_with_the_printed_arm(assembly):
    assert all(expert_places(simulated_parts(assembly), range(3)))


@pytest.mark.slow
def test_of_fifty_cubes_the_printed_arm_places_as_many_as_the_primitive_one(assembly):
    assert sum(expert_places(simulated_parts(assembly), range(50))) >= 49


def test_a_gripper_of_ones_own_picks_and_places_too():
    assert all(expert_places(arm_with(Path(templates.__file__).parent / "my_gripper.py"), range(2)))


def test_masses_and_centres_in_the_simulator_are_those_of_the_meshes(assembly):
    from featherweight.robot.sim.world import World

    model = World("empty", parts=simulated_parts(assembly)).model
    for i, mass in enumerate(body_masses(assembly)[:6]):
        body = model.body("base" if i == 0 else f"link{i}")
        if i:
            assert body.mass[0] == pytest.approx(mass.mass_kg) and np.allclose(body.ipos, mass.center_m)


def test_a_gripper_that_is_no_solid_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def build(dimensions):\n    return 3\n")
    with pytest.raises(ConfigError, match=r"cannot be simulated.*builds a int"):
        arm_with(path)
