"""Potentiometers of a UMIRobot board as a teleoperator of LeRobot: ``--teleop.type=umirobot_pots``."""

from dataclasses import dataclass
from typing import Any

from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

from featherweight import robot as fwr


@TeleoperatorConfig.register_subclass("umirobot_pots")
@dataclass(kw_only=True)
class UMIRobotPotsConfig(TeleoperatorConfig):
    """Fields as in `featherweight.robot.PotLeaderConfig`."""

    port: str = "auto"


class UMIRobotPots(Teleoperator):
    """Hands every call to the leader; calibrate it with ``fw robot calibrate --id ID``."""

    config_class = UMIRobotPotsConfig
    name = "umirobot_pots"

    def __init__(self, config: UMIRobotPotsConfig) -> None:
        super().__init__(config)
        self._leader = fwr.PotLeader(fwr.PotLeaderConfig(port=config.port, id=config.id or "pots"))
        self._last: dict[str, float] | None = None

    @property
    def action_features(self) -> dict[str, Any]:
        """Joint key -> float."""
        return self._leader.action_features

    @property
    def feedback_features(self) -> dict[str, Any]:
        """Nothing."""
        return self._leader.feedback_features

    @property
    def is_connected(self) -> bool:
        """Whether the port is ours."""
        return self._leader.is_connected

    @property
    def is_calibrated(self) -> bool:
        """Whether the ranges of the potentiometers are known."""
        return self._leader.is_calibrated

    def connect(self, calibrate: bool = True) -> None:
        """Open the port."""
        self._leader.connect(calibrate)

    def calibrate(self) -> None:
        """Nothing to do here; see the class."""

    def configure(self) -> None:
        """Nothing to do."""

    def get_action(self) -> dict[str, Any]:
        """Return the angles; while a potentiometer floats, the last ones that were right."""
        self._last = self._leader.get_action() or self._last
        if self._last is None:
            raise RuntimeError("UMIRobotPots: no potentiometer gives an angle; expected six. Check their wires.")
        return self._last

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        """Potentiometers feel nothing."""

    def disconnect(self) -> None:
        """Give the port back."""
        self._leader.disconnect()
