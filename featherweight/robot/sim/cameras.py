"""Pictures of a world, in the caller's thread or in a thread of their own."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import ConfigError, did_you_mean
from featherweight.robot.camera.view import CameraView
from featherweight.robot.sim.graphics import import_mujoco, require_graphics
from featherweight.robot.sim.world import World

Picture = NDArray[np.uint8]


class Cameras:
    """Draws the cameras of a world; belongs to the thread that made it, as every OpenGL context.

    Args:
        world: what is drawn; its state is copied under its lock, so that the physics waits for no picture.
        names: cameras of the scene: "front", "top", "wrist".
        width_px: of each picture.
        height_px: of each picture.
    Raises:
        DeviceError: if no graphics work here; the message holds the install command.
        ConfigError: if the scene has no such camera.
    """

    def __init__(self, world: World, names: Sequence[str], width_px: int = 320, height_px: int = 240) -> None:
        require_graphics()
        self._mujoco = import_mujoco()
        known = [world.model.camera(i).name for i in range(world.model.ncam)]
        for name in names:
            if name not in known:
                raise ConfigError(f"Cameras: name={name!r} is unknown; expected a camera. {did_you_mean(name, known)}")
        self._world, self._names = world, tuple(names)
        self._copy = self._mujoco.MjData(world.model)
        self._renderer: Any = self._mujoco.Renderer(world.model, height_px, width_px)

    def render(self) -> dict[str, Picture]:
        """Return camera name -> (H, W, 3) picture of this instant."""
        world = self._world
        with world.lock:
            self._copy.qpos[:] = world.data.qpos
            self._copy.mocap_pos[:] = world.data.mocap_pos
        self._mujoco.mj_forward(world.model, self._copy)
        pictures = {}
        for name in self._names:
            self._renderer.update_scene(self._copy, name)
            pictures[name] = self._renderer.render().copy()
        return pictures

    def close(self) -> None:
        """Give the graphics back; without it an exception is printed when Python ends."""
        self._renderer.close()


def fixed_views(world: World, names: Sequence[str]) -> dict[str, CameraView]:
    """Return where cameras stand and how wide they look; those that an arm carries are left out."""
    views = {}
    for name in names:
        camera = world.model.camera(name)
        if camera.bodyid[0] == 0:
            # MuJoCo's camera looks along -z with y up, ours along z with y down.
            turn = np.diag([1.0, -1.0, -1.0]) @ world.model.cam_mat0[camera.id].reshape(3, 3).T
            views[name] = CameraView.of(np.column_stack([turn, -turn @ camera.pos]).tolist(), float(camera.fovy[0]))
    return views


class CameraThread:
    """Draws pictures at a rate and keeps the newest; takes the arguments of `Cameras` and a rate."""

    def __init__(self, world: World, names: Sequence[str], width_px: int, height_px: int, fps: float) -> None:
        self.newest: dict[str, Picture] = {}
        self.frames = 0
        self._arguments = (world, names, width_px, height_px)
        self._period_s = 1 / fps
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="cameras", daemon=True)
        self._thread.start()
        deadline_s = time.monotonic() + 60
        while not self.newest and self._failure is None and time.monotonic() < deadline_s:
            time.sleep(0.01)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            cameras = Cameras(*self._arguments)
        except Exception as error:  # raised again in the constructor's thread
            self._failure = error
            return
        try:
            due_s = time.monotonic()
            while not self._stop.is_set():
                self.newest = cameras.render()
                self.frames += 1
                due_s = max(due_s + self._period_s, time.monotonic())
                self._stop.wait(due_s - time.monotonic())
        finally:
            cameras.close()
