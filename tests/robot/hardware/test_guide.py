"""The assembly guide."""

import pytest

from featherweight.robot.hardware.guide import SAFETY, STEPS, assembly_pdf


def test_every_piece_of_the_arm_stands_out_in_exactly_one_step(assembly):
    shown = [name for step in STEPS for name in step.shows]
    assert sorted(shown) == sorted(piece.name for piece in assembly.pieces)
    assert any("pinch" in text for text in SAFETY) and any("stop" in text for text in SAFETY)


@pytest.mark.slow
def test_the_guide_has_a_page_for_safety_parts_and_each_step(assembly, graphics):
    data = assembly_pdf(assembly)
    assert data.startswith(b"%PDF") and data.count(b"/Type /Page ") == 2 + len(STEPS)
