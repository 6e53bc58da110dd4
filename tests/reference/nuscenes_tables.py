"""Tables as large as those of nuScenes' full set, with content that means little: what an index of them costs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

SCENES, SAMPLES, ANNOTATIONS, INSTANCES, LOGS = 850, 34_149, 1_166_187, 64_386, 68
SAMPLE_DATA = 2_631_083
CHANNELS = {
    "CAM_FRONT": 12,
    "CAM_FRONT_RIGHT": 12,
    "CAM_BACK_RIGHT": 12,
    "CAM_BACK": 12,
    "CAM_BACK_LEFT": 12,
    "CAM_FRONT_LEFT": 12,
    "LIDAR_TOP": 20,
}
"""Readings a second; key frames come twice a second."""


def token(kind: str, number: int) -> str:
    """Return 32 characters, as every record of nuScenes has."""
    return f"{kind:0>8.8}{number:024x}"


def write_tables(folder: Path) -> Path:
    """Write all tables that the index reads, about 2.5 GB, record by record."""
    folder.mkdir(parents=True)
    channels = list(CHANNELS)
    _write(folder / "log.json", LOGS, lambda i: {"token": token("log", i), "location": "boston-seaport"})
    _write(folder / "category.json", 1, lambda i: {"token": token("cat", 0), "name": "vehicle.car"})
    _write(
        folder / "sensor.json",
        len(channels),
        lambda i: {"token": token("sensor", i), "channel": channels[i], "modality": "camera" if i < 6 else "lidar"},
    )
    _write(
        folder / "scene.json",
        SCENES,
        lambda i: {"token": token("scene", i), "name": f"scene-{i:04d}", "log_token": token("log", i % LOGS)},
    )
    _write(
        folder / "sample.json",
        SAMPLES,
        lambda i: {
            "token": token("sample", i),
            "timestamp": 1_533_000_000_000_000 + 500_000 * i,
            "scene_token": token("scene", i * SCENES // SAMPLES),
            "prev": token("sample", i - 1),
            "next": token("sample", i + 1),
        },
    )
    _write(
        folder / "calibrated_sensor.json",
        SCENES * len(channels),
        lambda i: {
            "token": token("calib", i),
            "sensor_token": token("sensor", i % len(channels)),
            "translation": [1.7, 0.0, 1.51],
            "rotation": [0.4998, -0.5030, 0.4997, -0.4973],
            "camera_intrinsic": [[1266.4, 0, 816.2], [0, 1266.4, 491.5], [0, 0, 1]] if i % len(channels) < 6 else [],
        },
    )
    _write(
        folder / "instance.json",
        INSTANCES,
        lambda i: {"token": token("inst", i), "category_token": token("cat", 0), "nbr_annotations": 18},
    )
    _write(folder / "sample_annotation.json", ANNOTATIONS, _annotation)
    _stream(folder / "sample_data.json", _sample_data())
    _stream(folder / "ego_pose.json", (_POSE % i for i in range(SAMPLE_DATA)))
    return folder


def _annotation(number: int) -> dict[str, object]:
    return {
        "token": token("ann", number),
        "sample_token": token("sample", number * SAMPLES // ANNOTATIONS),
        "instance_token": token("inst", number % INSTANCES),
        "visibility_token": "4",
        "attribute_tokens": [token("attr", 0)],
        "translation": [373.256, 1130.419, 0.8],
        "size": [1.95, 4.62, 1.73],
        "rotation": [0.9831098797903927, 0.0, 0.0, -0.18301629506281616],
        "prev": token("ann", number - 1),
        "next": token("ann", number + 1),
        "num_lidar_pts": 5,
        "num_radar_pts": 0,
    }


_POSE = (
    '{"token": "0000pose%024x", "timestamp": 1533000000000000, "rotation": [0.572, -0.0016, 0.0118, -0.819], '
    '"translation": [411.303986, 1180.890379, 0.0]}'
)
_DATA = (
    '{"token": "0000data%024x", "sample_token": "%s", "ego_pose_token": "0000pose%024x", '
    '"calibrated_sensor_token": "%s", "timestamp": %d, "fileformat": "jpg", "is_key_frame": %s, "height": 900, '
    '"width": 1600, "filename": "%s/%s/n015-2018-07-24-11-22-45+0800__%s__%d.jpg", "prev": "0000data%024x", '
    '"next": "0000data%024x"}'
)


def _sample_data() -> Iterator[str]:
    per_sample = SAMPLE_DATA / SAMPLES
    channels = list(CHANNELS)
    number = 0
    for sample in range(SAMPLES):
        scene = sample * SCENES // SAMPLES
        for place in range(int((sample + 1) * per_sample) - int(sample * per_sample)):
            channel, is_key = place % len(channels), place < len(channels)
            name, time = channels[channel], 1_533_000_000_000_000 + 500_000 * sample + 7_000 * place
            calibration = token("calib", scene * len(channels) + channel)
            folder = "samples" if is_key else "sweeps"
            flag = "true" if is_key else "false"
            yield _DATA % (
                number,
                token("sample", sample),
                number,
                calibration,
                time,
                flag,
                folder,
                name,
                name,
                time,
                number - 1 if number else 0,
                number + 1,
            )
            number += 1


def _write(path: Path, count: int, record: Callable[[int], dict[str, object]]) -> None:
    _stream(path, (json.dumps(record(number)) for number in range(count)))


def _stream(path: Path, records: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for number, record in enumerate(records):
            stream.write(("[\n" if number == 0 else ",\n") + record)
        stream.write("\n]\n")
