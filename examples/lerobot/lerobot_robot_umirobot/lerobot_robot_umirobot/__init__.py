"""The UMIRobot arm as a robot of LeRobot: ``lerobot-teleoperate --robot.type=umirobot --robot.port=auto``."""

from dataclasses import dataclass
from typing import Any

from lerobot.robots import Robot, RobotConfig

from featherweight import robot as fwr


@RobotConfig.register_subclass("umirobot")
@dataclass(kw_only=True)
class UMIRobotConfig(RobotConfig):
    """Fields as in `featherweight.robot.UMIRobotConfig`."""

    port: str = "auto"
    lookahead_deg: int = 3
    max_relative_target: float | None = None
    command_timeout_s: float | None = 0.5
    """LeRobot's loop has no dead man: an action that nobody renews freezes the arm after this time."""


class UMIRobot(Robot):
    """Hands every call to the driver, whose look-ahead, soft start and freezing stay in force."""

    config_class = UMIRobotConfig
    name = "umirobot"

    def __init__(self, config: UMIRobotConfig) -> None:
        super().__init__(config)
        own = {key: getattr(config, key) for key in ("port", "lookahead_deg", "max_relative_target")}
        own |= {"id": config.id or "umirobot", "command_timeout_s": config.command_timeout_s}
        self._arm = fwr.UMIRobot(fwr.UMIRobotConfig.parse(own, where="lerobot_robot_umirobot"))

    @property
    def observation_features(self) -> dict[str, Any]:
        """Joint key -> float."""
        return self._arm.observation_features

    @property
    def action_features(self) -> dict[str, Any]:
        """Joint key -> float."""
        return self._arm.action_features

    @property
    def is_connected(self) -> bool:
        """Whether the port is ours."""
        return self._arm.is_connected

    @property
    def is_calibrated(self) -> bool:
        """Servos need no calibration; their offsets come from featherweight's file of this id."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Open the port; the arm stays where it is."""
        self._arm.connect(calibrate)

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def get_observation(self) -> dict[str, Any]:
        """Return the reported angles in degrees."""
        return self._arm.get_observation()

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Set the goal; return the one in force after the limits."""
        return self._arm.send_action(action)

    def disconnect(self) -> None:
        """Freeze the arm and give the port back."""
        self._arm.disconnect()
