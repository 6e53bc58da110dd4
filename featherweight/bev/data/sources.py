"""Which reader a folder needs, told from what lies in it."""

from collections.abc import Sequence
from pathlib import Path

from featherweight.bev.data.frames import Source
from featherweight.errors import ConfigError


def open_source(root: str | Path, version: str | None = None, cameras: Sequence[str] | None = None) -> Source:
    """Return the data set of a folder.

    Args:
        root: folder of nuScenes (or in its format), Argoverse 1 tracking, Argoverse 2 sensor, or of own frames.
        version: of nuScenes: the folder of tables.
        cameras: channels to keep; None takes the front camera.
    Raises:
        ConfigError: if the folder is none of these.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise ConfigError(
            f"bev: data='{root}' is no folder; expected a data set. Draw one with `fw bev synth DIR`, or give the "
            "folder of a download."
        )
    if any(folder.glob("*/sample_data.json")):
        from featherweight.bev.data.nuscenes import NuScenesIndex

        return NuScenesIndex(folder, version, cameras=cameras or ("CAM_FRONT",))
    if (folder / "calibration.json").is_file():
        from featherweight.bev.data.folder import FolderSource

        return FolderSource(folder)
    if any(folder.glob("*/*/vehicle_calibration_info.json")):
        from featherweight.bev.data.argoverse1 import Argoverse1

        return Argoverse1(folder, cameras=cameras or ("ring_front_center",))
    if any(folder.glob("*/*/calibration/intrinsics.feather")):
        from featherweight.bev.data.argoverse2 import Argoverse2

        return Argoverse2(folder, cameras=cameras or ("ring_front_center",))
    raise ConfigError(
        f"bev: data='{root}' is none of the known data sets; expected tables of nuScenes (v1.0-*/sample_data.json), "
        "logs of Argoverse 1 or 2 (<part>/<log>/...), or own frames (calibration.json, frames/). Give the folder "
        "above them."
    )
