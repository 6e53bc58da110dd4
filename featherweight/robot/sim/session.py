"""A whole session in virtual time: leader, control loop, driver, firmware, physics; as in real time, but faster.

Experts, replays and policies run in it through the same safety pipeline as on a real kit, and always in the same way.
"""

from collections.abc import Callable, Sequence

from featherweight.robot.contract import Teleoperator
from featherweight.robot.emulator.emulated_kit import EmulatedKit
from featherweight.robot.kinematics.dh import Array
from featherweight.robot.kit import SERVOS
from featherweight.robot.safety.config import SafetyConfig
from featherweight.robot.safety.controller import Controller
from featherweight.robot.sim.world import World
from featherweight.robot.teleoperation import TeleoperationResult, run_loop
from featherweight.robot.virtual_robot import VirtualRobot

SCENE_NAMES = ("cube_x", "cube_y", "cube_z", "cube_cos4", "cube_sin4", "bin_x", "bin_y")
"""What `VirtualSession.scene` tells: metres in the world; a cube looks the same after each quarter turn."""


class VirtualSession:
    """An arm in a scene.

    Args:
        seed: of the layout.
        cubes: on the table.
        scene: see `sim.mjcf.build_mjcf`.
        zero_offset_deg: (6,) errors of assembly of this kit, see `World`.
    """

    def __init__(
        self,
        seed: int = 0,
        cubes: int = 1,
        scene: str = "challenge",
        zero_offset_deg: Sequence[float] = (0.0,) * SERVOS,
    ) -> None:
        options = {"cubes": cubes} if scene == "challenge" else {}
        self.zero_offset_deg = tuple(map(float, zero_offset_deg))
        self.world = World(scene, zero_offset_deg=zero_offset_deg, **options)
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Lay the scene out anew and start the kit again, at zero."""
        self.world.reset(seed)
        self.robot = VirtualRobot(EmulatedKit(boot_s=0.0, on_pulse=self.world.pulse))
        # The first status line comes before anybody steers.
        self.robot.sleep(0.1)

    def clock(self) -> float:
        """Return the virtual time."""
        return self.robot.now_s

    def scene(self, cube: int = 0) -> Array:
        """Return (7,) where a cube and the bin are; see `SCENE_NAMES`."""
        return self.world.scene(cube)

    def run(
        self,
        leader: Teleoperator,
        duration_s: float,
        on_step: Callable[[Controller], bool | None] | None = None,
        fps: float = 60.0,
        safety: SafetyConfig | None = None,
    ) -> TeleoperationResult:
        """Teleoperate for some virtual seconds, or until `on_step` returns False; see `teleoperate`."""
        with leader:
            return run_loop(
                leader, self.robot, fps, safety, duration_s, on_step, clock=self.clock, sleep=self.robot.sleep
            )
