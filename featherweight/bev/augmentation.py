"""Changes of a sample that keep its geometry true: mirrored, tilted, zoomed, recoloured; and poses a bit wrong."""

import math
from dataclasses import replace

import numpy as np

from featherweight.bev.geometry import (
    crop_intrinsics,
    flip_intrinsics,
    in_view,
    planar_pose,
    resize_intrinsics,
    tilt_homography,
)
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.samples import Sample

POSE_NOISE_M, POSE_NOISE_DEG = 0.1, 0.3
"""Standard deviations of a localiser's error."""


def mirrored(sample: Sample, grid: BEVGridConfig) -> Sample:
    """Return the sample of the mirrored world: pixels, principal point, pose and labels.

    With cells anchored at corners, column j goes to column W - j, and column 0 has no partner: it counts as unseen.
    """
    flip = np.diag([-1.0, 1, 1, 1])
    labels, seen = sample.labels[:, :, ::-1], sample.seen[:, ::-1]
    if grid.anchor == "corner":
        labels, seen = np.roll(labels, 1, axis=2), np.roll(seen, 1, axis=1)
        seen[:, 0] = False
    mirror_ego = np.diag([1.0, -1, 1, 1])  # left and right of car and world, x of the camera
    return replace(
        sample,
        pixels=sample.pixels[:, :, ::-1],
        intrinsics=flip_intrinsics(sample.intrinsics, sample.pixels.shape[2]),
        camera_to_ego=mirror_ego @ sample.camera_to_ego @ flip,
        camera_to_world=mirror_ego @ sample.camera_to_world @ flip,
        labels=labels,
        seen=seen,
        in_view=sample.in_view[:, ::-1],
        relevance=sample.relevance[:, ::-1],
        tilt=(sample.tilt[0], -sample.tilt[1]),
    )


def tilted(sample: Sample, pitch: float, roll: float) -> Sample:
    """Return the sample of a camera that looks `pitch` radians further down than its calibration says.

    What comes into the picture at its edges is the picture mirrored there: a black edge would tell the pitch.
    """
    from PIL import Image

    # Pillow asks for the way back: where the pixel of the new picture was in the old one.
    back = np.linalg.inv(tilt_homography(sample.intrinsics, pitch, roll))
    height, width = sample.pixels.shape[1:]
    margin = min(_beyond(back, width, height), height - 1, width - 1)
    back = np.array([[1.0, 0, margin], [0, 1, margin], [0, 0, 1]]) @ back
    numbers = (back / back[2, 2]).ravel()[:8].tolist()
    wider = np.pad(sample.pixels, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    image = Image.fromarray(wider.transpose(1, 2, 0))
    turned = image.transform((width, height), Image.Transform.PERSPECTIVE, numbers, resample=2)
    return replace(
        sample,
        pixels=np.asarray(turned).transpose(2, 0, 1),
        tilt=(sample.tilt[0] + pitch, sample.tilt[1] + roll),
    )


def _beyond(back: np.ndarray, width: int, height: int) -> int:
    """Return how many pixels beyond the edges of a picture a homography asks for, one more for its interpolation."""
    corners = np.array([[0.0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    x, y, scale = back @ corners
    x, y = x / scale, y / scale
    return 2 + math.ceil(max(0, -x.min(), x.max() - width, -y.min(), y.max() - height))


def recolored(sample: Sample, brightness: float, contrast: float) -> Sample:
    """Return the sample with another brightness and contrast, both 1 for none."""
    values = sample.pixels.astype(np.float32)
    values = (values - values.mean()) * contrast + values.mean() * brightness
    return replace(sample, pixels=np.clip(values, 0, 255).astype(np.uint8))


def zoomed(sample: Sample, factor: float, grid: BEVGridConfig, feature_grid: BEVGridConfig) -> Sample:
    """Return the sample of a camera with another focal length: resized about the horizon, then cut or padded.

    Args:
        sample: to change.
        factor: of the focal length.
        grid: of the labels; cells that leave the picture count as unseen.
        feature_grid: of the ground features.
    """
    from PIL import Image

    height, width = sample.pixels.shape[1:]
    left, top = (factor - 1) * width / 2, (factor - 1) * sample.intrinsics[1, 2]
    intrinsics = crop_intrinsics(resize_intrinsics(sample.intrinsics, factor, factor), left, top)
    back = (1 / factor, 0, left / factor, 0, 1 / factor, top / factor)

    def moved(values: np.ndarray, resample: int) -> np.ndarray:
        image = Image.fromarray(values)
        return np.asarray(image.transform((width, height), Image.Transform.AFFINE, back, resample=resample))

    return replace(
        sample,
        pixels=moved(np.ascontiguousarray(sample.pixels.transpose(1, 2, 0)), 2).transpose(2, 0, 1),  # bilinear
        relevance=moved(np.ascontiguousarray(sample.relevance).astype(np.uint8), 0).astype(bool),
        intrinsics=intrinsics,
        seen=sample.seen & in_view(grid, intrinsics, width),
        in_view=sample.in_view & in_view(feature_grid, intrinsics, width),
    )


def displaced(sample: Sample, random: np.random.Generator) -> Sample:
    """Return the sample with an error of its pose, as a localiser makes it."""
    x, y, yaw = random.standard_normal(3) * (POSE_NOISE_M, POSE_NOISE_M, math.radians(POSE_NOISE_DEG))
    turned = planar_pose(0, 0, yaw)[:3, :3] @ sample.camera_to_world[:3, :3]
    pose = sample.camera_to_world.copy()
    pose[:3, :3] = turned
    pose[:2, 3] += x, y
    return replace(sample, camera_to_world=pose)
