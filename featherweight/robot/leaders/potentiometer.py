"""A leader of six potentiometers on a kit's board; it may be the board of the follower itself."""

import time
from collections import deque
from typing import Literal

import numpy as np
from pydantic import Field

from featherweight.config import Config
from featherweight.errors import DeviceError
from featherweight.robot.calibration_file import KitCalibration, load_calibration
from featherweight.robot.contract import Action, Teleoperator, keyed_angles
from featherweight.robot.driver.link import SerialLink, acquire, release
from featherweight.robot.driver.link_state import LOST_AFTER_S
from featherweight.robot.kit import POT_VOLT, POTENTIOMETERS
from featherweight.robot.leaders.calibration import calibrate_channel, is_floating
from featherweight.robot.leaders.filter import PotFilter
from featherweight.robot.leaders.mapping import JointMap, PoseMap


class PotLeaderConfig(Config):
    """How to reach the potentiometers, and what they move."""

    port: str = "auto"
    """As in UMIRobotConfig; the same port as the follower's is fine."""
    id: str = "pots"
    """Name of this leader; names its calibration file."""
    mode: Literal["joint", "pose"] = "joint"
    """"joint": one potentiometer moves one joint; "pose": the first three move the tool, the next two turn it."""
    joint_map: JointMap = JointMap()
    """Of mode "joint"."""
    pose_map: PoseMap = PoseMap()
    """Of mode "pose"."""
    samples: int = Field(default=50, ge=10, le=1000)
    """Status lines in which a floating channel is looked for."""


class PotLeader(Teleoperator):
    """Six potentiometers.

    Without a calibration their whole range of 5 V stands for 180 degrees. A channel that floats gives no actions at
    all, so that the arm is held.
    """

    name = "pots"

    def __init__(self, config: PotLeaderConfig | None = None, link: SerialLink | None = None) -> None:
        """Prepare the leader.

        Args:
            config: settings.
            link: a running link to use instead of opening the port; stays the caller's.
        """
        self.config = config or PotLeaderConfig()
        self.id = self.config.id
        self.calibration = KitCalibration(id=self.id)
        self.floating: list[int] = []
        """Channels (0 to 5) that float now."""
        self._given_link = link
        self._link: SerialLink | None = None

    @property
    def is_connected(self) -> bool:
        """Whether the port is ours."""
        return self._link is not None

    @property
    def is_calibrated(self) -> bool:
        """Whether the ranges of the potentiometers are known."""
        return self.calibration.pot_min_v is not None

    def connect(self, calibrate: bool = True) -> None:
        """Open the port; see `UMIRobot.connect`."""
        if self.is_connected:
            return
        if calibrate:
            self.calibration = load_calibration(self.id) or self.calibration
        self._link = self._given_link or acquire(self.config.port)
        self._restart_filters()

    def disconnect(self) -> None:
        """Give the port back."""
        link, self._link = self._link, None
        if link is not None and link is not self._given_link:
            release(link)

    def get_action(self) -> Action | None:
        """Return the angles of the potentiometers; None while the link is lost or a channel floats."""
        angles_deg = self._angles_deg()
        if angles_deg is None:
            return None
        mapping = self.config.pose_map if self.config.mode == "pose" else self.config.joint_map
        return keyed_angles(mapping.apply(angles_deg))

    def recenter(self) -> None:
        """Make the present pose of the leader its zero, until it is calibrated again."""
        angles_deg = self._angles_deg()
        if angles_deg is not None:
            center = [c + a for c, a in zip(self.calibration.pot_center_deg, angles_deg, strict=True)]
            self.calibration = KitCalibration.parse(self.calibration.to_dict() | {"pot_center_deg": center})

    def record_channel(self, channel: int, duration_s: float) -> None:
        """Calibrate one channel from the lines of the coming seconds; see `calibrate_channel`.

        Raises:
            ConfigError: if the channel floats, hardly moves or is another one.
            DeviceError: if the link is lost.
        """
        self._require_connection("record_channel")
        assert self._link is not None
        samples, line = [], 0
        deadline_s = time.monotonic() + duration_s
        while time.monotonic() < deadline_s:
            received = self._link.wait_for_line(line)
            if received is None:
                raise DeviceError(
                    f"PotLeader: port={self._link.name} is silent; expected status lines. Check the cable."
                )
            samples.append(received.status.pots_v)
            line = received.line_number
        self.set_range(channel, samples)

    def set_range(self, channel: int, samples_v: list[tuple[float, ...]]) -> None:
        """Calibrate one channel from (T, 6) samples."""
        found = calibrate_channel(samples_v, channel)
        values = self.calibration.to_dict()
        lows = values["pot_min_v"] or [0.0] * POTENTIOMETERS
        highs = values["pot_max_v"] or [POT_VOLT] * POTENTIOMETERS
        lows[channel], highs[channel] = found.min_v, found.max_v
        values["pot_invert"][channel] = found.invert
        self.calibration = KitCalibration.parse(values | {"pot_min_v": lows, "pot_max_v": highs})
        self._restart_filters()

    def _restart_filters(self) -> None:
        calibration = self.calibration
        self._recent: deque[tuple[float, ...]] = deque(maxlen=self.config.samples)
        self._filters = [
            PotFilter(calibration.filter_cutoff_hz, calibration.filter_beta, calibration.pot_deadband_v)
            for _ in range(POTENTIOMETERS)
        ]
        self._line, self._time_s = 0, 0.0
        self._volts: tuple[float, ...] | None = None

    def _angles_deg(self) -> tuple[float, ...] | None:
        self._require_connection("get_action")
        assert self._link is not None
        newest = self._link.newest
        if newest is None or not self._link.is_streaming or time.monotonic() - newest.time_s > LOST_AFTER_S:
            return None
        if newest.line_number != self._line:
            volts = newest.status.pots_v
            self._recent.append(volts)
            elapsed_s = newest.time_s - self._time_s if self._time_s else 0.0
            self._volts = tuple(f(v, elapsed_s) for f, v in zip(self._filters, volts, strict=True))
            self._line, self._time_s = newest.line_number, newest.time_s
            if self._line % 8 == 0 or self.floating:
                recent = np.array(self._recent)
                is_enough = len(recent) >= 10
                self.floating = [i for i in range(POTENTIOMETERS) if is_enough and is_floating(recent[:, i])]
        if self.floating or self._volts is None:
            return None
        return tuple(self._to_deg(i, volt) for i, volt in enumerate(self._volts))

    def _to_deg(self, channel: int, volt: float) -> float:
        calibration = self.calibration
        low = calibration.pot_min_v[channel] if calibration.pot_min_v else 0.0
        high = calibration.pot_max_v[channel] if calibration.pot_max_v else POT_VOLT
        angle = max(0.0, min(1.0, (volt - low) / (high - low))) * 180 - 90
        return (-angle if calibration.pot_invert[channel] else angle) - calibration.pot_center_deg[channel]
