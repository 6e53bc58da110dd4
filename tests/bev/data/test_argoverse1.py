"""A log made here in Argoverse 1's layout: what is placed in the world must come out where it was placed."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from featherweight.bev.data.argoverse1 import Argoverse1, read_ply
from featherweight.bev.data.sources import open_source
from featherweight.bev.geometry import planar_pose
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.labels import make_labels
from featherweight.bev.options import BEVConfig
from featherweight.bev.task import BEVTask
from featherweight.errors import CheckpointError, ConfigError

LOG = "3d20ae25-5b29-320d-8bae-f03e9dc177b9"
EGO = (500.0, 800.0, 0.3)
TIME = 315_000_000_000_000_000
CAMERA = {"coefficients": [0.5, -0.5, 0.5, -0.5]}


def write_ply(path, points):
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n"
    head += "property double x\nproperty double y\nproperty double z\nproperty uchar intensity\nend_header\n"
    rows = np.zeros(len(points), np.dtype([("x", "<f8"), ("y", "<f8"), ("z", "<f8"), ("i", "u1")]))
    rows["x"], rows["y"], rows["z"] = points.T
    path.write_bytes(head.encode() + rows.tobytes())


def yaw(angle):
    return [float(np.cos(angle / 2)), 0.0, 0.0, float(np.sin(angle / 2))]


@pytest.fixture
def root(tmp_path):
    log = tmp_path / "train1" / LOG
    for name in ("poses", "per_sweep_annotations_amodal", "lidar", "ring_front_center"):
        (log / name).mkdir(parents=True)
    value = {
        "focal_length_x_px_": 1400.0,
        "focal_length_y_px_": 1400.0,
        "focal_center_x_px_": 960.0,
        "focal_center_y_px_": 600.0,
        "vehicle_SE3_camera_": {"rotation": CAMERA, "translation": [1.5, 0.0, 1.4]},
    }
    content = {"camera_data_": [{"key": "image_raw_ring_front_center", "value": value}]}
    (log / "vehicle_calibration_info.json").write_text(json.dumps(content))
    (log / "city_info.json").write_text(json.dumps({"city_name": "MIA"}))
    for step, time in enumerate((TIME, TIME + 100_000_000)):
        pose = {"rotation": yaw(EGO[2]), "translation": [EGO[0] + step, EGO[1], 21.0]}
        for stamp in (time, time + 5_000_000):
            (log / "poses" / f"city_SE3_egovehicle_{stamp}.json").write_text(json.dumps(pose))
        write_ply(log / "lidar" / f"PC_{time}.ply", np.array([[30.0, y, -0.3] for y in np.linspace(-40, 40, 4000)]))
        Image.new("RGB", (1920, 1200)).save(log / "ring_front_center" / f"ring_front_center_{time + 5_000_000}.jpg")
    box = {
        "center": {"x": 16.5, "y": 2.0, "z": 0.8},
        "rotation": dict(zip("wxyz", yaw(0.0), strict=True)),
        "length": 5.0,
        "width": 2.0,
        "height": 1.6,
    }
    stroller = {**box, "center": {"x": 10, "y": -3, "z": 1}, "label_class": "STROLLER"}
    boxes = [{**box, "label_class": "VEHICLE"}, stroller]
    path = log / "per_sweep_annotations_amodal" / f"tracked_object_labels_{TIME}.json"
    path.write_text(json.dumps(boxes))
    maps = tmp_path / "map_files"
    maps.mkdir()
    np.save(maps / "MIA_10316_driveable_area_mat_2019_05_28.npy", np.ones((1200, 700), np.uint8))
    np.save(maps / "MIA_10316_npyimage_to_city_se2_2019_05_28.npy", np.eye(3))
    return tmp_path


def test_objects_road_and_laser_come_out_where_they_were_placed(root):
    source = open_source(root)
    assert isinstance(source, Argoverse1) and len(source.frames) == 2
    frame, grid = source.frames[0], BEVGridConfig(anchor="center")
    assert frame.image.name.endswith(f"{TIME + 5_000_000}.jpg") and frame.sequence == LOG
    np.testing.assert_allclose(frame.ego_to_world, planar_pose(*EGO), atol=1e-9)
    bits = make_labels(source, frame, grid)
    masks, seen = source.classes.split_bits(bits)
    vehicle = masks[source.classes.names.index("vehicle")]
    row, column = np.argwhere(vehicle).T
    # 15 m ahead of the camera, 2 m to its left.
    assert grid.depths()[row].mean() == pytest.approx(15.0, abs=0.1)
    assert grid.laterals()[column].mean() == pytest.approx(-2.0, abs=0.1)
    assert vehicle.sum() == pytest.approx(10 / 0.0625, abs=8)
    ahead = np.abs(grid.laterals()) < 1
    assert seen[:, ahead][grid.depths() < 28].mean() > 0.95 and not seen[:, ahead][grid.depths() > 29].any()
    assert masks[0].any(), "the drivable area covers part of the grid"
    hidden = ~seen[:, (grid.laterals() > 2.5) & (grid.laterals() < 3.5)][(grid.depths() > 7.5) & (grid.depths() < 9)]
    assert hidden.all(), "a stroller hides its cells"


def test_a_sweep_without_annotations_has_no_boxes(root):
    source = Argoverse1(root)
    assert len(source.boxes(source.frames[0])) == 2 and len(source.boxes(source.frames[1])) == 0


def test_logs_belong_to_the_published_split(root):
    source = Argoverse1(root)
    assert LOG in source.sequences("argoverse1", "train") and LOG not in source.sequences("argoverse1", "val")


def test_what_is_damaged_is_named(root):
    with pytest.raises(ConfigError, match="ring_rear_left"):
        Argoverse1(root, cameras=["ring_rear_left"])
    path = root / "train1" / LOG / "lidar" / f"PC_{TIME}.ply"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_ply(path)
    with pytest.raises(CheckpointError, match="binary PLY"):
        read_ply(root / "train1" / LOG / "city_info.json")


def test_a_task_trains_on_its_classes_and_front_camera_without_being_told(root):
    judged = sorted(Argoverse1(root).sequences("argoverse1", "val"))[0]
    shutil.copytree(root / "train1" / LOG, root / "val" / judged)
    task = BEVTask(BEVConfig(data=str(root), flip=0), seed=0)
    assert task.model_config.classes == "argo8" and task.protocol().endswith(
        "/1cam/fov+lidar/thr0.5/pooled/split=argoverse1"
    )
    loss, frames = task.loss(task.build_model(), next(task.batches("train", micro_batch_size=2, seed=0)))
    assert frames == 2 and loss.isfinite()
