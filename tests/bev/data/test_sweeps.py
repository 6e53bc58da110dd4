import numpy as np
import pytest

from featherweight.bev.data.classes import ARGOVERSE2
from featherweight.bev.data.sweeps import LARGEST_GAP_NS, SweepSource, boxes_in_world
from featherweight.bev.geometry import planar_pose
from featherweight.bev.streaming import level_camera
from featherweight.errors import ConfigError

STEP = 100_000_000


class Log(SweepSource):
    """A log that lies in no file: pictures a little after every sweep but the second, which is far from any."""

    classes, splits = ARGOVERSE2, ("official",)

    def sequences(self, split, part):
        return ()

    def pictures(self, log, camera):
        late = {1: LARGEST_GAP_NS + 1}
        return {n * STEP + late.get(n, 1000): log / f"{n}.jpg" for n in range(3)} if camera == "front" else {}

    def sweep_times(self, log):
        return [2 * STEP, 0, STEP]

    def calibration(self, log, camera):
        return np.eye(3), level_camera(1.5), (640, 480)

    def ego_pose(self, log, time):
        return None if time == 2 * STEP else planar_pose(time / STEP, 0.0, 0.0)

    def annotations(self, log, time):
        return [((10.0, 2.0, 1.0), (2.0, 4.0, 1.5), (1.0, 0.0, 0.0, 0.0), 3)]

    def points(self, log, time):
        return np.array([[10.0, 0.0, 0.0]])


def test_each_sweep_takes_the_nearest_picture_and_one_without_a_near_one_is_left_out(tmp_path):
    frames = Log([tmp_path], ["front"]).frames
    assert [frame.image.name for frame in frames] == ["0.jpg", "2.jpg"]
    assert [frame.index for frame in frames] == [0, 1] and frames[1].timestamp == pytest.approx(0.200001)


def test_boxes_and_points_are_moved_by_the_pose_of_the_sweep_or_of_the_picture(tmp_path):
    source = Log([tmp_path], ["front"])
    first, last = source.frames
    np.testing.assert_allclose(source.boxes(first).centers, [[10, 2, 1]])
    # The pose of the last sweep is not known, so that of its picture stands in.
    np.testing.assert_allclose(source.boxes(last).centers, [[12.00001, 2, 1]])
    np.testing.assert_allclose(source.lidar_points(last), [[0, 1.5, 10]], atol=1e-6)


def test_cameras_without_pictures_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="Log: no sweep has a picture of rear"):
        Log([tmp_path], ["rear"])


def test_boxes_stand_upright_in_the_world():
    boxes = boxes_in_world([((5.0, 0.0, 0.0), (2.0, 4.0, 1.5), (1.0, 0, 0, 0), 1)], planar_pose(1.0, 2.0, np.pi / 2))
    np.testing.assert_allclose(boxes.centers, [[1, 7, 0]], atol=1e-12)
    np.testing.assert_allclose(boxes.rotations, [[np.sqrt(0.5), 0, 0, np.sqrt(0.5)]])
    assert len(boxes_in_world([], np.eye(4))) == 0
