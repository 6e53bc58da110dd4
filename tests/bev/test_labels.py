import numpy as np
import pytest

from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.labels import make_labels, occluded

CENTER = BEVGridConfig(anchor="center")


@pytest.mark.parametrize("mode", ["exact", "pon"])
def test_most_of_the_road_ahead_is_road_and_cars_stand_on_it(index, mode):
    bits = make_labels(index, index.frames[0], BEVGridConfig(anchor="center" if mode == "exact" else "corner"), mode)
    masks, seen = index.classes.split_bits(bits)
    road = masks[index.classes.names.index("drivable_area")]
    assert road[:40, 95:105].mean() > 0.95, "the car drives on the road"
    assert 0.1 < seen.mean() < 0.62, "the field of view covers 61 % of the grid, and walls hide some of it"


def test_the_two_modes_agree_on_large_areas_and_published_ones_are_never_smaller(index):
    for frame in index.frames[::9]:
        exact, _ = index.classes.split_bits(make_labels(index, frame, CENTER, "exact"))
        published, _ = index.classes.split_bits(make_labels(index, frame, BEVGridConfig(), "pon"))
        assert (exact[0] & published[0]).sum() / (exact[0] | published[0]).sum() > 0.75
        for kind in range(4, 14):
            assert published[kind].sum() >= exact[kind].sum()


def test_the_ground_of_labels_is_the_ground_of_pictures(index):
    """A class image of the drawn world, looked up where the calibration says that cells are, gives the labels."""
    from featherweight.bev.geometry import project, transform
    from featherweight.bev.synthetic.render import Atlas, shoot
    from featherweight.bev.synthetic.rig import WorldConfig, intrinsics_of
    from featherweight.bev.synthetic.world import KEY_FRAME_S, build_drive

    options = WorldConfig(scenes=10, frames=4, image_width=800, image_height=448)
    intrinsics = intrinsics_of(options)
    hits = np.zeros((3, 2), np.int64)  # of road, walkway, crossing: intersection and union
    for number in (0, 5):
        drive = build_drive(options, number)
        atlas = Atlas(drive.streets)
        for step in (0, 3):
            frame = index.frames[number * 4 + step]
            shot = shoot(
                atlas, drive.things, drive.places(step * KEY_FRAME_S), frame.camera_to_world, intrinsics, (800, 448)
            )
            masks, seen = index.classes.split_bits(make_labels(index, frame, CENTER))
            points = CENTER.points()
            ground = np.stack([points[..., 0], np.zeros(CENTER.shape), points[..., 1]], axis=-1)
            world = transform(frame.camera_to_world, ground)
            world[..., 2] = 0
            camera = transform(np.linalg.inv(frame.camera_to_world), world)
            u, v = np.floor(project(camera, intrinsics)).astype(int).transpose(2, 0, 1)
            inside = (u >= 0) & (u < 800) & (v >= 0) & (v < 448) & seen
            kind = shot.kinds[np.where(inside, v, 0), np.where(inside, u, 0)]
            is_ground = (
                inside
                & (kind != 255)
                & (np.abs(shot.depth[np.where(inside, v, 0), np.where(inside, u, 0)] - camera[..., 2]) < 1)
            )
            for row, (found, name) in enumerate(
                [((kind == 1) | (kind == 2), "drivable_area"), (kind == 3, "walkway"), (kind == 2, "ped_crossing")]
            ):
                truth = masks[index.classes.names.index(name)]
                hits[row] += [(found & truth & is_ground).sum(), ((found | truth) & is_ground).sum()]
    road, walkway, crossing = hits[:, 0] / hits[:, 1]
    assert road >= 0.97 and walkway >= 0.88 and crossing >= 0.83


def test_cells_behind_the_farthest_point_of_their_direction_are_hidden():
    grid = BEVGridConfig(anchor="center")
    points = np.column_stack([np.linspace(-30, 30, 20000), np.zeros(20000), np.full(20000, 20.0)])
    hidden = occluded(points, grid, spread=2)
    ahead = hidden[:, 98:102]
    assert not ahead[grid.depths() < 19.5].any() and ahead[grid.depths() > 20.5].all()


def test_objects_without_a_class_hide_their_cells(index):
    found = 0
    for frame in index.frames:
        boxes = index.boxes(frame)
        found += int((boxes.classes == index.classes.ignore_bit).sum())
    assert found > 0, "strollers, animals and debris are in the drawn world"
