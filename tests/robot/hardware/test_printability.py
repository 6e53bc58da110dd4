"""What a mesh can be asked."""

import numpy as np
import pytest

from featherweight.robot.hardware.printability import edge_faults, mesh_faults, overhang_mm2, shells, thin_places, weld
from featherweight.robot.hardware.solids import box, cylinder, triangles


def test_a_block_has_no_fault_and_overhangs_nothing():
    mesh = triangles(box((0, 20), (0, 20), (0, 20)))
    assert mesh_faults(*mesh, 0.8) == [] and overhang_mm2(*mesh) == 0


def test_unwelded_triangles_as_an_stl_has_them_are_one_surface():
    vertices, faces = triangles(box((0, 20), (0, 20), (0, 20)))
    soup = vertices[faces].reshape(-1, 3)
    assert mesh_faults(soup, np.arange(len(soup)).reshape(-1, 3), 0.8) == []
    assert len(weld(soup, np.arange(len(soup)).reshape(-1, 3))[0]) == len(vertices)


def test_a_missing_triangle_is_a_hole_and_a_turned_one_a_tangle():
    vertices, faces = triangles(box((0, 20), (0, 20), (0, 20)))
    assert [fault.name for fault in edge_faults(vertices, faces[1:])] == ["open"]
    turned = faces.copy()
    turned[0] = turned[0, ::-1]
    assert [fault.name for fault in edge_faults(vertices, turned)] == ["tangled"]


@pytest.mark.parametrize("wall", [0.3, 0.7, 0.9, 2.0])
def test_the_thinnest_wall_is_measured_to_a_hundredth(wall):
    cup = box((0, 20), (0, 20), (0, 20)) - box((wall, 18), (2, 18), (2, 30))
    places, thinnest = thin_places(*triangles(cup), 0.8)
    # Up to four times of what is asked for is looked at.
    assert thinnest == pytest.approx(wall, abs=0.01) and (len(places) > 0) == (wall < 0.8)


def test_pieces_are_counted_and_what_hangs_over_is_measured():
    two = box((0, 5), (0, 5), (0, 5)) + box((10, 15), (0, 5), (0, 5))
    vertices, faces = triangles(two)
    assert shells(faces, len(vertices)).max() == 1
    table = box((0, 30), (0, 30), (20, 23)) + cylinder("z", 5, 0, 21, (15, 15))
    assert overhang_mm2(*triangles(table)) == pytest.approx(900 - np.pi * 25, rel=0.01)
