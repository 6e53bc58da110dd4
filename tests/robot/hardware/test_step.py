"""STEP files of parts: their faces, and what a CAD kernel makes of them."""

import numpy as np
import pytest

from featherweight.robot.hardware.printed import printed_parts
from featherweight.robot.hardware.solids import box, triangles
from featherweight.robot.hardware.step import flat_faces, step_bytes


def area_of(vertices, normal, loops):
    """Area of a face: its outline less its holes, by the shoelace in its plane."""
    signed = [np.cross(vertices[loop], np.roll(vertices[loop], -1, axis=0)).sum(axis=0) @ normal / 2 for loop in loops]
    assert signed[0] > 0 and all(one < 0 for one in signed[1:])
    return sum(signed)


def volume_of(vertices, faces):
    """Volume by the divergence theorem over flat faces."""
    return sum(area_of(vertices, n, loops) * (vertices[loops[0][0]] @ n) for n, loops in faces) / 3


def test_a_box_has_six_faces_of_four_corners():
    block = box((0, 10), (0, 20), (0, 30))
    vertices, faces = triangles(block)
    found = flat_faces(vertices, faces)
    assert len(found) == 6 and all(len(loops) == 1 and len(loops[0]) == 4 for _, loops in found)
    assert volume_of(vertices, found) == pytest.approx(6000)


def test_the_faces_of_every_part_close_to_its_volume(assembly):
    for part in printed_parts(assembly):
        vertices, faces = triangles(part.solid)
        found = flat_faces(vertices, faces)
        assert len(found) < 0.7 * len(faces)
        assert volume_of(vertices, found) == pytest.approx(part.solid.volume(), rel=1e-5)
        assert step_bytes(part.name, part.solid) == step_bytes(part.name, part.solid)


@pytest.mark.slow
def test_a_cad_kernel_reads_a_closed_solid_of_the_same_volume(assembly, tmp_path):
    pytest.importorskip("OCP", reason="pip install cadquery-ocp")
    from OCP.BRepCheck import BRepCheck_Analyzer
    from OCP.BRepGProp import BRepGProp
    from OCP.GProp import GProp_GProps
    from OCP.IFSelect import IFSelect_RetDone
    from OCP.STEPControl import STEPControl_Reader

    for part in printed_parts(assembly):
        path = tmp_path / f"{part.name}.step"
        path.write_bytes(step_bytes(part.name, part.solid))
        reader = STEPControl_Reader()
        assert reader.ReadFile(str(path)) == IFSelect_RetDone
        reader.TransferRoots()
        shape, properties = reader.OneShape(), GProp_GProps()
        BRepGProp.VolumeProperties_s(shape, properties)
        assert BRepCheck_Analyzer(shape).IsValid()
        assert properties.Mass() == pytest.approx(part.solid.volume(), rel=1e-4), part.name
