"""All printed parts, master and camera stand included, and the plates."""

import numpy as np
import pytest

from featherweight.errors import ConfigError
from featherweight.robot.hardware.dimensions import Dimensions
from featherweight.robot.hardware.printability import mesh_faults
from featherweight.robot.hardware.printed import GAP_MM, lay, plates, printed_parts
from featherweight.robot.hardware.solids import box, triangles


@pytest.fixture(scope="module")
def parts(assembly):
    return printed_parts(assembly)


def test_every_part_is_closed_in_one_piece_thick_enough_and_inside_the_printer(parts, assembly):
    d = assembly.dimensions
    for part in parts:
        assert mesh_faults(*triangles(part.solid), d.minimum_wall) == [], part.name
        assert part.solid.volume() > 100 and max(part.size_mm) <= 200, part.name
        assert part.solid.bounding_box()[2] == pytest.approx(0, abs=1e-9), part.name


def test_plates_hold_every_part_once_apart_and_on_the_bed(parts, assembly):
    bed = assembly.dimensions.bed
    beds = plates(parts, assembly.dimensions)
    names = sorted(name for plate in beds for name, _ in plate.items)
    assert names == sorted(part.name for part in parts for _ in range(part.count))
    for plate in beds:
        boxes = [np.array(solid.bounding_box()).reshape(2, 3)[:, :2] for _, solid in plate.items]
        for i, one in enumerate(boxes):
            assert (one[0] >= GAP_MM - 1e-6).all() and (one[1] <= bed - GAP_MM + 1e-6).all()
            for other in boxes[:i]:
                assert (one[0] >= other[1] - 1e-6).any() or (other[0] >= one[1] - 1e-6).any()


def test_a_part_larger_than_the_bed_is_refused_with_its_size():
    with pytest.raises(ConfigError, match=r"part=beam of 300 x 10 x 10 mm does not fit"):
        plates([lay("beam", box((0, 300), (0, 10), (0, 10)))], Dimensions())
