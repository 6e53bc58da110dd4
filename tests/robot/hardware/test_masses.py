"""Masses and loads."""

import sys

import numpy as np
import pytest

from featherweight.robot.hardware.masses import body_masses, combine, static_loads, volume_properties, workspace
from featherweight.robot.hardware.solids import box, cylinder


def test_a_block_has_the_volume_the_centre_and_the_inertia_of_the_textbook():
    block = box((10, 40), (0, 20), (-5, 5))
    volume, centroid, _ = volume_properties(block)
    found = combine([(block, 60.0)])
    assert volume == pytest.approx(6000) and np.allclose(centroid, [25, 10, 0])
    expected = 0.06 / 12 * np.array([0.02**2 + 0.01**2, 0.03**2 + 0.01**2, 0.03**2 + 0.02**2])
    assert np.allclose(found.inertia_kg_m2, np.diag(expected), atol=1e-12)


def test_two_bodies_combine_by_the_parallel_axes():
    rod = cylinder("x", 1, -100, 100)
    whole = combine([(rod, 10.0)])
    halves = combine([(cylinder("x", 1, -100, 0), 5.0), (cylinder("x", 1, 0, 100), 5.0)])
    assert np.allclose(whole.inertia_kg_m2, halves.inertia_kg_m2) and np.allclose(whole.center_m, halves.center_m)


def test_every_servo_bears_twice_the_worst_static_load_with_a_cube(assembly):
    loads = static_loads(assembly)
    told = ", ".join(f"joint {load.joint}: {load.needed_nm:.3f} of {load.stall_nm} N m" for load in loads)
    sys.stdout.write(told + "\n")
    assert min(load.margin for load in loads) > 2
    # The shoulder alone, by hand: what hangs beyond it, stretched out flat.
    masses, poses = body_masses(assembly), assembly.poses([0, 90, 90, 0, 0, 90])
    moments = [
        m.mass_kg * (p @ np.array([*(m.center_m * 1e3), 1]))[0] / 1e3
        for m, p in list(zip(masses, poses, strict=True))[2:]
    ]
    stretched = 9.81 * (sum(moments) + 0.02 * (0.0813 + 0.16519 + 0.085))
    assert loads[1].needed_nm == pytest.approx(stretched, rel=1e-6)


def test_the_workspace_reaches_as_far_as_the_stretched_arm():
    reach = workspace(4000)
    assert 0.31 < reach["radius_m"][1] < 0.3315 and 0.39 < reach["height_m"][1] < 0.4168
