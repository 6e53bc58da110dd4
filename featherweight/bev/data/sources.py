"""Which reader a folder needs, told from what lies in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from featherweight.bev.data.frames import Source
from featherweight.errors import ConfigError

Kind = Literal["nuscenes", "frames", "argoverse1", "argoverse2"]
_MARKS: dict[Kind, str] = {
    "nuscenes": "*/sample_data.json",
    "frames": "calibration.json",
    "argoverse1": "*/*/vehicle_calibration_info.json",
    "argoverse2": "*/*/calibration/intrinsics.feather",
}
"""Files by which a kind of data set is known, the first that is found."""


def kind_of(root: str | Path) -> Kind:
    """Return which kind of data set a folder holds; nothing is read.

    Raises:
        ConfigError: if the folder is none of these.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise ConfigError(
            f"bev: data='{root}' is no folder; expected a data set. Draw one with `fw bev synth DIR`, or give the "
            "folder of a download."
        )
    for kind, mark in _MARKS.items():
        if any(folder.glob(mark)):
            return kind
    raise ConfigError(
        f"bev: data='{root}' is none of the known data sets; expected tables of nuScenes (v1.0-*/sample_data.json), "
        "logs of Argoverse 1 or 2 (<part>/<log>/...), or own frames (calibration.json, frames/). Give the folder "
        "above them."
    )


def open_source(root: str | Path, version: str | None = None, cameras: Sequence[str] | None = None) -> Source:
    """Return the data set of a folder.

    Args:
        root: folder of nuScenes (or in its format), Argoverse 1 tracking, Argoverse 2 sensor, or of own frames.
        version: of nuScenes: the folder of tables.
        cameras: channels to keep; None takes the front camera.
    Raises:
        ConfigError: if the folder is none of these.
    """
    folder, kind = Path(root), kind_of(root)
    if kind == "nuscenes":
        from featherweight.bev.data.nuscenes import NuScenesIndex

        return NuScenesIndex(folder, version, cameras=cameras or ("CAM_FRONT",))
    if kind == "frames":
        from featherweight.bev.data.folder import FolderSource

        return FolderSource(folder)
    if kind == "argoverse1":
        from featherweight.bev.data.argoverse1 import Argoverse1

        return Argoverse1(folder, cameras=cameras or ("ring_front_center",))
    from featherweight.bev.data.argoverse2 import Argoverse2

    return Argoverse2(folder, cameras=cameras or ("ring_front_center",))
