"""Which off-screen graphics work here, found out in a child process, because a wrong choice cannot be taken back.

MuJoCo reads MUJOCO_GL when it is imported. On Linux the choice is EGL, then OSMesa; macOS and Windows have their own.
"""

import functools
import importlib
import os
import subprocess
import sys
from typing import Any

from featherweight.errors import DeviceError, MissingExtraError

INSTALL_GRAPHICS = "apt-get install -y libosmesa6 (or: libegl1 libgl1-mesa-dri)"
_PROGRAM = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light/><geom size='1'/></worldbody></mujoco>")
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(mujoco.MjData(model))
renderer.render()
renderer.close()
"""


@functools.cache
def working_graphics() -> str | None:
    """Return the value of MUJOCO_GL that draws pictures here: the user's own if it works, else the first that does.

    Returns:
        "egl", "osmesa", another value that the user chose, "" for the system's default, or None if nothing works.
    Cost: one child process of about a second for each attempt, once.
    """
    own = os.environ.get("MUJOCO_GL")
    candidates = [own] if own else ["egl", "osmesa"] if sys.platform.startswith("linux") else [""]
    for candidate in candidates:
        environment = {**os.environ, "MUJOCO_GL": candidate}
        try:
            done = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return candidate
    return None


def import_mujoco() -> Any:
    """Import mujoco with graphics that work here, or without any; say how to install it if it is missing.

    Where somebody else has imported it before, without a choice and without a display, its choice is made once more.
    """
    was_there = "mujoco" in sys.modules
    is_open = not os.environ.get("MUJOCO_GL") and sys.platform.startswith("linux")
    if is_open and not (was_there and os.environ.get("DISPLAY")):
        os.environ["MUJOCO_GL"] = working_graphics() or "disable"
        if was_there and working_graphics() is not None:
            importlib.reload(importlib.import_module("mujoco.rendering.classic.gl_context"))
    try:
        import mujoco
    except ImportError as error:
        raise MissingExtraError(
            "robot: package=mujoco is not installed; expected it for the simulator. Run pip install "
            "featherweight[robot]."
        ) from error
    return mujoco


def require_graphics() -> None:
    """Make sure that pictures can be drawn.

    Raises:
        DeviceError: if they cannot; the message holds the install command.
    """
    if working_graphics() is None:
        raise DeviceError(
            f"robot: MUJOCO_GL={os.environ.get('MUJOCO_GL', 'egl, osmesa')} draws no pictures here; expected "
            f"EGL or OSMesa. "
            f"Run {INSTALL_GRAPHICS}, or go on without cameras: all angles are there."
        )
