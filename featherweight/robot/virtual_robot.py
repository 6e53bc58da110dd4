"""A kit and its driver in virtual time: the real firmware model, the real link logic, no thread and no waiting.

Lets an hour of teleoperation, or a thousand deaths of the host, pass in seconds, and always in the same way.
"""

import math

from featherweight.errors import DeviceError
from featherweight.robot.calibration_file import KitCalibration
from featherweight.robot.driver.link_state import Goal, LinkCore, LinkState
from featherweight.robot.emulator.emulated_kit import EmulatedKit


class VirtualRobot:
    """What `safety.Controller` steers, in virtual time.

    Args:
        kit: the emulated kit.
        lookahead_deg: see `LinkCore`.
        step_us: how often the driver reads.
    """

    def __init__(self, kit: EmulatedKit | None = None, lookahead_deg: int | None = 3, step_us: int = 2000) -> None:
        self.kit = kit or EmulatedKit(boot_s=0.0)
        self.core = LinkCore(lookahead_deg)
        self.calibration = KitCalibration(id="virtual")
        self.now_us = 0
        self.is_host_alive = True
        """False stops the driver, as SIGKILL or SIGSTOP does; the kit goes on."""
        self.sent: list[tuple[int, int, bytes]] | None = None
        """(line number, time in us, bytes) of everything written, if set to a list."""
        self._step_us = step_us
        self._open()

    @property
    def now_s(self) -> float:
        """Virtual time."""
        return self.now_us / 1e6

    @property
    def is_streaming(self) -> bool:
        """See `safety.controller.Follower`."""
        return self.core.state is LinkState.STREAMING

    @property
    def epoch(self) -> int:
        """See `safety.controller.Follower`."""
        return self.core.epoch

    def reported_deg(self) -> tuple[float, ...]:
        """See `safety.controller.Follower`."""
        if self.core.newest is None or not self.is_streaming:
            raise DeviceError("VirtualRobot: link=lost; expected status lines. Advance the time.")
        return tuple(map(float, self.core.newest.status.q_deg))

    def silence_s(self, now_s: float) -> float:
        """See `safety.controller.Follower`."""
        return math.inf if self.core.newest is None else now_s - self.core.newest.time_s

    def move(
        self,
        joints_deg: tuple[float, ...],
        max_speed_deg_s: float | None,
        epoch: int,
        timeout_s: float | None,
        now_s: float,
    ) -> None:
        """See `safety.controller.Follower`."""
        self.core.set_goal(Goal(joints_deg, max_speed_deg_s, now_s, timeout_s, epoch))

    def hold(self) -> None:
        """See `safety.controller.Follower`."""
        self.core.hold()

    def stop(self) -> None:
        """See `safety.controller.Follower`."""
        self.core.stop()

    def release_stop(self) -> None:
        """See `safety.controller.Follower`."""
        self.core.release()

    def sleep(self, duration_s: float) -> None:
        """Let time pass, for loops that sleep."""
        self.advance(self.now_s + duration_s)

    def advance(self, to_s: float) -> None:
        """Let time pass."""
        to_us = round(to_s * 1e6)
        while self.now_us < to_us:
            self.now_us = min(self.now_us + self._step_us, to_us)
            data = self.kit.read(self.now_us)
            if not self.is_host_alive:
                continue
            if data:
                out = self.core.received(self.now_s, data)
                if out:
                    if self.sent is not None:
                        self.sent.append((self.core.statistics.lines, self.now_us, out))
                    self.kit.write(self.now_us, out)
            if self.core.check_silence(self.now_s):
                self.core.failed(self.now_s, "was silent")
                self._open()

    def _open(self) -> None:
        self.core.opening()
        self.kit.open(self.now_us)
        self.core.opened(self.now_s)
