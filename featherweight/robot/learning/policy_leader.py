"""A policy as the operator: it leads through the same safety pipeline as a hand."""

import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from featherweight.errors import ConfigError, DeviceError, FeatherweightError
from featherweight.robot.contract import Action, Teleoperator, keyed_angles, ordered_angles
from featherweight.robot.driver.umirobot import UMIRobot
from featherweight.robot.kinematics.dh import Array
from featherweight.robot.learning.ensemble import ChunkEnsemble
from featherweight.robot.learning.policy import Policy, Seen


def eyes_of_robot(policy: Policy, robot: UMIRobot, scene: Callable[[], Array] | None = None) -> Callable[[], Seen]:
    """Return what a policy sees of a connected robot: fresh pictures of its cameras, or the scene of a simulator.

    The function that is returned raises DeviceError while one of the policy's cameras has no fresh picture.

    Args:
        policy: trained.
        robot: connected.
        scene: returns the (7,) scene; None where nobody knows it.
    Raises:
        ConfigError: if the robot lacks a camera of the policy, or the policy has to be told the scene.
    """
    wanted = policy.config.cameras
    there = [name for name, shape in robot.observation_features.items() if isinstance(shape, tuple)]
    for name in wanted:
        if name not in there:
            raise ConfigError(
                f"policy: camera={name} is not there; expected {wanted} of the robot, which has {there or 'none'}. "
                f"Give it, such as --camera {name}=/dev/video0."
            )
    if not wanted and scene is None:
        raise ConfigError(
            "policy: scene=None is not enough for a policy of the state, which has to be told where cube and bin are; "
            "expected a policy of pictures. Train one with examples/recipes/robot_act.yaml, or drive --follower sim."
        )

    def see() -> Seen:
        pictures = robot.pictures()
        for name in wanted:
            if name not in pictures:
                why = robot.camera_troubles().get(name, f"camera {name} gives no picture")
                raise DeviceError(f"policy: {why}; expected a fresh picture. The arm is held until one comes.")
        return Seen(None if scene is None else scene(), pictures)

    return see


class PolicyLeader(Teleoperator):
    """Asks a policy at its own rate and blends its chunks.

    In real time the policy runs in a thread; when it is too slow and every chunk is over, there is no action, so the
    arm is held. Otherwise (`in_thread=False`) it is asked in place, which gives the same run each time.

    Args:
        policy: trained.
        see: returns what the operator sees of the scene.
        clock: time in seconds.
        in_thread: whether the policy runs beside the control loop.
        delay: returns how old the state is that the policy sees, in seconds; the actions of that time are skipped.
        id: name.
    """

    name = "policy"

    def __init__(
        self,
        policy: Policy,
        see: Callable[[], Seen],
        clock: Callable[[], float] = time.monotonic,
        in_thread: bool = True,
        delay: Callable[[], float] = lambda: 0.0,
        id: str = "policy",
    ) -> None:
        self.id = id
        self._policy, self._see, self._clock, self._in_thread = policy, see, clock, in_thread
        self._delay = delay
        self._ensemble = ChunkEnsemble(policy.config.fps, policy.decay or 0.0, latest_alone=policy.decay is None)
        self._lock = threading.Lock()
        self._state_deg: tuple[float, ...] | None = None
        self._asked_s = self._chosen_s = -np.inf
        self._failure: FeatherweightError | None = None
        self._action: tuple[float, ...] | None = None
        self._wanted = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_connected = False

    @property
    def is_connected(self) -> bool:
        """Whether the policy leads."""
        return self._is_connected

    @property
    def feedback_features(self) -> dict[str, object]:
        """The follower's angles, which the policy sees."""
        return self.action_features

    def connect(self, calibrate: bool = True) -> None:
        """Begin to lead."""
        if self._is_connected:
            return
        self._is_connected = True
        if self._in_thread:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
            self._thread.start()

    def disconnect(self) -> None:
        """Stop leading."""
        self._is_connected = False
        self._stop.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(timeout=2)
            self._thread = None

    def send_feedback(self, feedback: Mapping[str, float]) -> None:
        """Say where the follower is."""
        self._state_deg = ordered_angles("PolicyLeader.send_feedback", feedback)

    def get_action(self) -> Action | None:
        """Return the action of now; None before the first prediction, and while every chunk is over.

        Raises:
            ConfigError: if the policy lacks something that it has to see.
            DeviceError: if a camera gives no fresh picture.
        """
        self._require_connection("get_action")
        if self._state_deg is None:
            return None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            # What was planned before it saw nothing is over: the arm stays held until it sees again.
            with self._lock:
                self._ensemble.clear()
            self._action = None
            raise failure
        now_s, fps = self._clock(), self._policy.config.fps
        if now_s - self._asked_s >= self._policy.ask_every / fps - 1e-6:
            self._asked_s = now_s
            if self._in_thread:
                self._wanted.set()
            else:
                self._ask(now_s, self._state_deg)
        if now_s - self._chosen_s >= 1 / fps - 1e-6:
            # After a pause, what was planned before it is over.
            self._chosen_s = now_s
            with self._lock:
                self._action = self._ensemble.at(now_s)
        return None if self._action is None else keyed_angles(self._action)

    def _ask(self, time_s: float, state_deg: tuple[float, ...]) -> None:
        chunk = self._policy.act(state_deg, self._see())
        with self._lock:
            self._ensemble.put(time_s - self._delay(), chunk)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wanted.wait()
            self._wanted.clear()
            if not self._stop.is_set() and self._state_deg is not None:
                try:
                    self._ask(self._asked_s, self._state_deg)
                except FeatherweightError as error:  # said where the action is asked for
                    self._failure = error
