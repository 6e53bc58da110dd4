"""Real parts in place of primitive shapes."""

import pytest

pytest.importorskip("mujoco")


def test_given_texts_and_meshes_stand_in_the_scene():
    from featherweight.robot.sim.mjcf import build_mjcf
    from featherweight.robot.sim.parts import ArmParts

    parts = ArmParts({}, "", tuple(f'<geom size="0.0{i + 1}" mass="0.1"/>' for i in range(6)), "<site/>", "")
    text = build_mjcf("empty", parts=parts)
    assert 'size="0.06"' in text and "pad_left" not in text and "pad_left" in build_mjcf("empty")
