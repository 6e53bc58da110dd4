"""The physics behind an emulated kit: servo pulses in, bodies out.

The reported angle stays the commanded one, as on the real kit; what the arm really does is in `joints_rad`.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from featherweight.errors import ConfigError
from featherweight.robot.kinematics.dh import Array
from featherweight.robot.kit import SERVOS
from featherweight.robot.sim.graphics import import_mujoco
from featherweight.robot.sim.mjcf import ARM_JOINT_NAMES, CUBE_M, STEP_S, build_model


class World:
    """A MuJoCo scene with the arm; `pulse` is the hook of the emulated firmware.

    Args:
        scene: see `mjcf.build_mjcf`.
        seed: of the layout of a challenge.
        zero_offset_deg: (6,) errors of assembly: how much a servo shows when its joint is at zero.
        options: of the scene.
    """

    def __init__(
        self, scene: str = "empty", seed: int = 0, zero_offset_deg: Sequence[float] = (0.0,) * SERVOS, **options: Any
    ) -> None:
        self._mujoco = import_mujoco()
        self.model = build_model(scene, **options)
        self.data = self._mujoco.MjData(self.model)
        self.lock = threading.Lock()
        self.cubes = [i for i in range(self.model.nbody) if self.model.body(i).name.startswith("cube")]
        self._arm_places = np.array([self.model.joint(name).qposadr[0] for name in ARM_JOINT_NAMES])
        names = [self.model.actuator(i).name for i in range(self.model.nu)]
        # By name: the actuator of an own gripper may stand before those of the arm.
        self._servos = np.array([names.index(name) for name in (*ARM_JOINT_NAMES, "gripper") if name in names])
        self._zero_offset_deg = np.array(zero_offset_deg, dtype=np.float64)
        self._offset_us = 0
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Put everything back: the arm to zero, cubes and bin where the seed says."""
        with self.lock:
            self._mujoco.mj_resetData(self.model, self.data)
            if self.cubes and seed is not None:
                self._lay_out(np.random.default_rng(seed))
            self._mujoco.mj_forward(self.model, self.data)

    def lay_out(self, seed: int) -> None:
        """Put cubes and bin where the seed says; arm and time go on."""
        with self.lock:
            for body in self.cubes:
                start = self.model.jnt_dofadr[self.model.body_jntadr[body]]
                self.data.qvel[start : start + 6] = 0
            if self.cubes:
                self._lay_out(np.random.default_rng(seed))
            self._mujoco.mj_forward(self.model, self.data)

    def pulse(self, now_us: int, angles_deg: tuple[float, ...]) -> None:
        """Run the physics up to an instant, then give the servos new angles; the firmware calls this in every loop."""
        with self.lock:
            steps = int((now_us / 1e6 - self._offset_us / 1e6 - self.data.time) / STEP_S)
            if steps > 0:
                # MuJoCo may be far behind after a pause of the process; a minute is enough to come to rest.
                if steps > 60 / STEP_S:
                    self._offset_us = now_us - int(self.data.time * 1e6)
                else:
                    self._mujoco.mj_step(self.model, self.data, steps)
            self._turn(angles_deg)

    def step(self, angles_deg: Array, duration_s: float) -> None:
        """Give the servos angles and run for a time, without a kit in between (environments, experts)."""
        with self.lock:
            self._turn(angles_deg)
            self._mujoco.mj_step(self.model, self.data, max(1, round(duration_s / STEP_S)))

    def _turn(self, angles_deg: Sequence[float] | Array) -> None:
        count = len(self._servos)
        self.data.ctrl[self._servos] = np.radians(np.asarray(angles_deg)[:count] - self._zero_offset_deg[:count])

    @property
    def joints_rad(self) -> Array:
        """(5,) angles that the arm really has."""
        result: Array = self.data.qpos[self._arm_places].copy()
        return result

    @property
    def tool_m(self) -> Array:
        """(3,) tool point that the arm really has."""
        result: Array = self.data.site("tool0").xpos.copy()
        return result

    def cube_m(self, index: int = 0) -> Array:
        """Return (3,) the centre of a cube."""
        if not 0 <= index < len(self.cubes):
            raise ConfigError(
                f"World: cube={index} is not there; expected 0 to {len(self.cubes) - 1}. Use scene=challenge "
                f"with more cubes."
            )
        result: Array = self.data.xpos[self.cubes[index]].copy()
        return result

    def cube_yaw_rad(self, index: int = 0) -> float:
        """Return the heading of a cube, within a quarter turn."""
        rotation = self.data.xmat[self.cubes[index]].reshape(3, 3)
        return float(np.arctan2(rotation[1, 0], rotation[0, 0]) % (np.pi / 2))

    @property
    def bin_m(self) -> Array:
        """(3,) centre of the bin's floor."""
        result: Array = self.data.body("bin").xpos.copy()
        return result

    def scene(self, index: int = 0) -> Array:
        """Return (7,) where a cube and the bin are; see `sim.session.SCENE_NAMES`."""
        with self.lock:
            yaw = self.cube_yaw_rad(index)
            return np.array([*self.cube_m(index), np.cos(4 * yaw), np.sin(4 * yaw), *self.bin_m[:2]])

    def is_placed(self, index: int = 0) -> bool:
        """Whether a cube lies in the bin."""
        offset = self.cube_m(index) - self.bin_m
        return bool(np.max(np.abs(offset[:2])) < 0.04 and offset[2] < 0.04)

    def _lay_out(self, generator: np.random.Generator) -> None:
        """Draw places: cubes at 0.12-0.22 m within 55 degrees, the bin at 0.15-0.19 m within 75, at least 85 mm
        apart.
        """
        radius, angle = generator.uniform(0.15, 0.19), generator.uniform(np.radians(45), np.radians(75))
        angle *= generator.choice([-1, 1])
        bin_place = radius * np.array([np.cos(angle), np.sin(angle)])
        places: list[Array] = []
        while len(places) < len(self.cubes):
            radius, angle = generator.uniform(0.12, 0.22), generator.uniform(-np.radians(55), np.radians(55))
            place = radius * np.array([np.cos(angle), np.sin(angle)])
            is_free = all(np.linalg.norm(place - other) > 0.05 for other in places)
            if is_free and np.linalg.norm(place - bin_place) > 0.085:
                places.append(place)
        self.data.mocap_pos[0] = [*bin_place, 0]
        for place, body in zip(places, self.cubes, strict=True):
            yaw = generator.uniform(0, np.pi / 2)
            start = self.model.jnt_qposadr[self.model.body_jntadr[body]]
            self.data.qpos[start : start + 7] = [*place, CUBE_M / 2, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
