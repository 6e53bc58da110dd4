"""A simulated arm that is driven through the real driver: same look-ahead, same states, same whole degrees."""

from typing import Any, Literal

from pydantic import Field

from featherweight.config import Config
from featherweight.robot.camera.view import CameraView
from featherweight.robot.contract import Features
from featherweight.robot.driver.link import SerialLink
from featherweight.robot.driver.link_state import LinkCore
from featherweight.robot.driver.umirobot import UMIRobot, UMIRobotConfig
from featherweight.robot.emulator.emulated_kit import EmulatedKit
from featherweight.robot.emulator.in_process import InProcessPort
from featherweight.robot.sim.cameras import CameraThread, Picture, fixed_views
from featherweight.robot.sim.parts import ArmParts
from featherweight.robot.sim.world import World


class SimRobotConfig(Config):
    """A scene, its cameras, and the limits of the driver."""

    scene: Literal["empty", "challenge", "student"] = "challenge"
    """Arm and table; with cubes and a bin; or with an own gripper."""
    cubes: int = Field(default=3, ge=1, le=6)
    """Of the challenge."""
    gripper_file: str | None = None
    """MJCF of the gripper of scene "student"."""
    seed: int = Field(default=0, ge=0)
    """Of the layout."""
    cameras: tuple[str, ...] = ()
    """Names of cameras in observations: "front", "top", "wrist"."""
    width_px: int = Field(default=320, ge=16, le=1280)
    """Of the pictures."""
    height_px: int = Field(default=240, ge=16, le=960)
    """Of the pictures."""
    camera_fps: float = Field(default=30.0, gt=0, le=120)
    """Pictures a second."""
    robot: UMIRobotConfig = UMIRobotConfig(port="sim", id="sim")
    """Of the driver; its port is not used."""


class SimRobot(UMIRobot):
    """An arm in MuJoCo behind an emulated kit, in real time.

    Example:
        >>> with SimRobot(SimRobotConfig(scene="empty")) as robot:
        ...     robot.get_observation()["gripper.pos"]
        0.0
    """

    name = "sim_umirobot"

    def __init__(self, config: SimRobotConfig | None = None, parts: ArmParts | None = None) -> None:
        """Prepare the robot.

        Args:
            config: settings.
            parts: real parts in place of the primitive shapes; see `hardware.simulated.arm_with`.
        """
        self._parts = parts
        self.sim_config = config or SimRobotConfig()
        self._cameras: CameraThread | None = None
        self._world: World | None = None
        super().__init__(self.sim_config.robot)

    @property
    def world(self) -> World:
        """The physics; made when first asked for."""
        if self._world is None:
            config = self.sim_config
            options: dict[str, Any] = {"cubes": config.cubes, "gripper_file": config.gripper_file, "parts": self._parts}
            self._world = World(config.scene, config.seed, **options)
        return self._world

    @property
    def observation_features(self) -> Features:
        """Joint key -> float, camera name -> (H, W, 3)."""
        shape = (self.sim_config.height_px, self.sim_config.width_px, 3)
        return super().observation_features | dict.fromkeys(self.sim_config.cameras, shape)

    @property
    def camera_views(self) -> dict[str, CameraView]:
        """Its cameras that stand still, by name."""
        return super().camera_views | fixed_views(self.world, self.sim_config.cameras)

    def connect(self, calibrate: bool = True) -> None:
        """Start the simulation.

        Raises:
            ConfigError: if the scene or a camera is wrong.
            DeviceError: if there are cameras and no graphics work here.
            MissingExtraError: if mujoco is not installed.
        """
        if self.is_connected:
            return
        config = self.sim_config
        world = self.world
        if config.cameras:
            self._cameras = CameraThread(world, config.cameras, config.width_px, config.height_px, config.camera_fps)
        kit = EmulatedKit(boot_s=0.05, on_pulse=world.pulse)
        self._sim_link = SerialLink(lambda: InProcessPort(kit), LinkCore(), "sim")
        self._sim_link.start()
        self._given_link = self._sim_link
        try:
            super().connect(calibrate)
        except BaseException:
            self._end_simulation()
            raise

    def disconnect(self) -> None:
        """End the simulation."""
        if not self.is_connected:
            return
        super().disconnect()
        self._end_simulation()

    def _end_simulation(self) -> None:
        self._sim_link.close()
        if self._cameras is not None:
            self._cameras.close()
            self._cameras = None

    def pictures(self) -> dict[str, Picture]:
        """Return the newest pictures of the simulator's cameras and of real ones."""
        return super().pictures() | (self._cameras.newest if self._cameras is not None else {})
