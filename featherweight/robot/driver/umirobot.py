"""The arm on a serial port, with the life cycle of LeRobot's Robot."""

import math
import time
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from featherweight.config import Config
from featherweight.errors import ConfigError, DeviceError
from featherweight.robot.calibration_file import KitCalibration, load_calibration
from featherweight.robot.camera.live import LiveCamera, Picture
from featherweight.robot.camera.source import CameraConfig
from featherweight.robot.camera.view import CameraView
from featherweight.robot.contract import Action, Features, Observation, Robot, keyed_angles, ordered_angles
from featherweight.robot.driver.link import SerialLink, acquire, release
from featherweight.robot.driver.link_state import Goal, LinkState, LinkStatistics
from featherweight.robot.kit import JOINT_KEYS


class UMIRobotConfig(Config):
    """How to reach a kit, and its limits."""

    port: str = "auto"
    """Serial port; "auto" looks for a kit, "sim" is an emulated one in this process ("sim:NAME" another one),
    "pty:PATH" a pseudo-terminal."""
    id: str = "umirobot"
    """Name of this kit; names its calibration file."""
    lookahead_deg: int | Literal["auto"] = Field(default=3)
    """Largest distance of a target from the reported angle, 2 to 6; "auto" measures what full speed needs."""
    max_relative_target: float | None = Field(default=None, gt=0)
    """Largest difference of an action from the reported angle, in degrees, per call; None for no such limit."""
    max_speed_deg_s: float | None = Field(default=None, gt=0)
    """Largest speed of the target; None leaves it to the firmware, about 88 degrees a second."""
    sync_speed_deg_s: float = Field(default=30.0, gt=0, le=90)
    """Largest speed from a frozen arm until every joint is within 5 degrees of its goal."""
    command_timeout_s: float | None = Field(default=None, gt=0)
    """Age of an action at which the arm is frozen; None goes on to the last action. `teleoperate` sets its own."""
    protocol: Literal["auto", "plain"] = "auto"
    """"auto" uses the checked protocol where the kit's firmware knows it; "plain" never asks for it."""
    gripper_unit: Literal["degrees", "percent"] = "degrees"
    """Unit of `gripper.pos`: -90..90 degrees, or 0 (closed) to 100 (open)."""
    cameras: dict[str, CameraConfig] = {}
    """Cameras beside the kit, by the name of their pictures in observations."""


class UMIRobot(Robot):
    """A UMIRobot kit on a serial port; Linux, macOS and Windows.

    One thread owns the port. `get_observation` and `send_action` exchange newest values with it and never wait for it.

    Example:
        >>> with UMIRobot(UMIRobotConfig(port="sim")) as robot:
        ...     sorted(robot.get_observation())[0]
        'elbow_flex.pos'
    """

    name = "umirobot"

    def __init__(self, config: UMIRobotConfig | None = None, link: SerialLink | None = None) -> None:
        """Prepare the robot.

        Args:
            config: settings.
            link: a running link to use instead of opening the port of `config`; stays the caller's.
        """
        self.config = config or UMIRobotConfig()
        lookahead = self.config.lookahead_deg
        if lookahead != "auto" and not 2 <= lookahead <= 6:
            raise ConfigError(
                f'UMIRobotConfig: lookahead_deg={lookahead} is out of range; expected 2 to 6 or "auto". Change it.'
            )
        self.id = self.config.id
        self.calibration = KitCalibration(id=self.id)
        self._given_link = link
        self._link: SerialLink | None = None
        self._live: dict[str, LiveCamera] = {}

    @property
    def observation_features(self) -> Features:
        """Joint key -> float, camera name -> (H, W, 3); a camera whose size was not chosen tells it once connected."""
        joints: Features = dict.fromkeys(JOINT_KEYS, float)
        cameras = [self._live.get(name) or LiveCamera(name, one) for name, one in self.config.cameras.items()]
        return joints | {camera.name: (*camera.size_px, 3) for camera in cameras}

    @property
    def camera_views(self) -> dict[str, CameraView]:
        """Cameras beside the kit whose place is known, by name."""
        return dict(self.calibration.cameras)

    @property
    def is_connected(self) -> bool:
        """Whether the port is ours; a cable that was pulled since then shows in `state`."""
        return self._link is not None

    @property
    def link(self) -> SerialLink:
        """The link to the kit.

        Raises:
            DeviceError: if the robot is not connected.
        """
        self._require_connection("link")
        assert self._link is not None
        return self._link

    @property
    def state(self) -> LinkState:
        """State of the link."""
        return self._link.core.state if self._link else LinkState.CLOSED

    @property
    def epoch(self) -> int:
        """Rises with every loss and restart of the kit; whoever steers has to catch up again after it changed."""
        return self.link.core.epoch

    @property
    def statistics(self) -> LinkStatistics:
        """Counts and rates of the link."""
        core = self.link.core
        core.statistics.lines_per_s = core.lines_per_s(time.monotonic())
        return core.statistics

    def connect(self, calibrate: bool = True) -> None:
        """Open the cameras and the port, and wait for first pictures and status line; the arm stays where it is.

        Raises:
            DeviceError: if the port or a camera cannot be opened, or no kit answers.
            ConfigError: if the calibration file is damaged, or a camera gives another size or rate than the chosen one.
        """
        if self.is_connected:
            return
        if calibrate:
            self.calibration = load_calibration(self.id) or self.calibration
        try:
            for name, camera in self.config.cameras.items():
                self._live[name] = LiveCamera(name, camera).start()
            self._open_link()
        except BaseException:
            self._close_cameras()
            raise

    def _open_link(self) -> None:
        link = self._given_link or acquire(self.config.port, self.config.protocol == "auto")
        if link.driver not in (None, self):
            if link is not self._given_link:
                release(link)
            raise DeviceError(
                f"UMIRobot: port={link.name} is driven by another UMIRobot of this program; expected one. "
                "Disconnect that one."
            )
        link.driver = self
        lookahead = self.config.lookahead_deg
        link.core.configure(None if lookahead == "auto" else lookahead, self.config.sync_speed_deg_s)
        self._link = link

    def disconnect(self) -> None:
        """Freeze the arm and give port and cameras back."""
        link, self._link = self._link, None
        if link is None:
            return
        # A leader may go on with the port; the arm must not.
        link.core.hold()
        link.driver = None
        self._close_cameras()
        if link is not self._given_link:
            release(link)

    def _close_cameras(self) -> None:
        for camera in self._live.values():
            camera.close()
        self._live = {}

    def get_observation(self) -> Observation:
        """Return the newest reported angles and pictures; a camera without a fresh picture is left out.

        Raises:
            DeviceError: if the robot is not connected, or its link is lost; the arm is frozen then.
        """
        return {**self._to_user(self.reported_deg()), **self.pictures()}

    def pictures(self) -> dict[str, Picture]:
        """Return camera -> (H, W, 3) newest picture, of those whose picture is fresh; see `camera_troubles`."""
        found = {name: camera.fresh() for name, camera in self._live.items()}
        return {name: picture for name, picture in found.items() if picture is not None}

    def camera_troubles(self) -> dict[str, str]:
        """Return camera -> why it has no fresh picture, of those that have none."""
        return {name: trouble for name, camera in self._live.items() if (trouble := camera.trouble)}

    def reported_deg(self) -> tuple[float, ...]:
        """Return (6,) degrees of the joints in the order of the wire, as the kit reported them last.

        Raises:
            DeviceError: if the robot is not connected, or its link is lost; the arm is frozen then.
        """
        link = self.link
        newest = link.newest
        if newest is None or not link.is_streaming:
            raise DeviceError(
                f"UMIRobot: port={link.name} is {self.state.value} "
                f"({link.core.reason or 'no status line yet'}); expected "
                "status lines. The arm is frozen and the driver keeps trying: check cable and power."
            )
        return self.calibration.to_joint(tuple(map(float, newest.status.q_deg)))

    def silence_s(self, now_s: float) -> float:
        """Return the time since the newest status line; `now_s` is of the monotonic clock."""
        newest = self.link.newest
        return math.inf if newest is None else now_s - newest.time_s

    def send_action(self, action: Mapping[str, float]) -> Action:
        """Set the goal in degrees; return the goal in force after range, `max_relative_target` and servo limits.

        The target on the wire then moves there within the look-ahead; see `lookahead_deg` and `max_speed_deg_s`.

        Raises:
            ConfigError: if an angle is missing, unknown or not finite; the arm is frozen then.
            DeviceError: if the robot is not connected or its link is lost.
        """
        link = self.link
        epoch = link.core.epoch
        try:
            wish_deg = ordered_angles("UMIRobot.send_action", self._to_degrees(action))
        except ConfigError:
            link.core.hold()
            raise
        goal_deg = self._limit(wish_deg, self.reported_deg())
        self.move(goal_deg, self.config.max_speed_deg_s, epoch, self.config.command_timeout_s, time.monotonic())
        return self._to_user(goal_deg)

    @property
    def is_streaming(self) -> bool:
        """Whether status lines are coming."""
        return self._link is not None and self._link.is_streaming

    def move(
        self,
        joints_deg: tuple[float, ...],
        max_speed_deg_s: float | None,
        epoch: int,
        timeout_s: float | None,
        now_s: float,
    ) -> None:
        """Set the goal without further limits than the servos'; for `safety.Controller`, which limits on its own.

        Args:
            joints_deg: (6,) finite degrees of the joints.
            max_speed_deg_s: largest speed of the target; None leaves it to the firmware.
            epoch: of the link that the caller knows; after a loss or a restart since then the goal is not obeyed.
            timeout_s: age of the goal at which the arm is frozen; None for no end.
            now_s: time of the goal on the monotonic clock.
        """
        self.link.core.set_goal(Goal(self.calibration.to_servo(joints_deg), max_speed_deg_s, now_s, timeout_s, epoch))

    def hold(self) -> None:
        """Freeze the arm where it is."""
        if self._link is not None:
            self._link.core.hold()

    def stop(self) -> None:
        """Emergency stop: freeze the arm and refuse every action until `release_stop`."""
        if self._link is not None:
            self._link.core.stop()

    def release_stop(self) -> None:
        """End an emergency stop; the arm stays frozen until the next action."""
        if self._link is not None:
            self._link.core.release()

    def _limit(self, wish_deg: tuple[float, ...], now_deg: tuple[float, ...]) -> tuple[float, ...]:
        limited = []
        most = self.config.max_relative_target
        for wish, now, (low, high) in zip(wish_deg, now_deg, self.calibration.range_deg, strict=True):
            goal = max(low, min(high, wish))
            limited.append(goal if most is None else max(now - most, min(now + most, goal)))
        return tuple(limited)

    def _to_user(self, angles_deg: tuple[float, ...]) -> Action:
        action = keyed_angles(angles_deg)
        if self.config.gripper_unit == "percent":
            action[JOINT_KEYS[-1]] = (action[JOINT_KEYS[-1]] + 90) / 1.8
        return action

    def _to_degrees(self, action: Mapping[str, float]) -> Mapping[str, float]:
        key = JOINT_KEYS[-1]
        if self.config.gripper_unit == "percent" and isinstance(action.get(key), int | float):
            return {**action, key: action[key] * 1.8 - 90}
        return action
