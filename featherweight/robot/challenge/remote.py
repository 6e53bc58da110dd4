"""An operator and a robot with a bad network between them, all in virtual time, through the real code of both sides."""

from collections import deque
from collections.abc import Callable

from featherweight.robot.challenge.judge import Judge
from featherweight.robot.challenge.log import Record
from featherweight.robot.challenge.score import TIME_LIMIT_S
from featherweight.robot.contract import Teleoperator
from featherweight.robot.kinematics.dh import Array
from featherweight.robot.network.follower_side import FollowerSide
from featherweight.robot.network.impaired import ImpairedQueue, Impairment
from featherweight.robot.network.inproc import InprocBroker
from featherweight.robot.network.operator_side import OperatorSide
from featherweight.robot.network.topics import Topics
from featherweight.robot.network.transport import Callback, Transport
from featherweight.robot.safety.config import SafetyConfig
from featherweight.robot.safety.mode import Mode
from featherweight.robot.sim.session import VirtualSession

RATE_HZ = 60.0
KEPT_SCENES = 600
"""Scenes of the past that an operator may still have to see."""


class VirtualLink:
    """A transport whose messages come out of an impaired queue when `deliver` is called."""

    def __init__(self, transport: Transport, impairment: Impairment, clock: Callable[[], float]) -> None:
        self._transport, self._queue, self._clock = transport, ImpairedQueue(impairment), clock

    @property
    def is_connected(self) -> bool:
        """See `Transport`."""
        return self._transport.is_connected

    def publish(self, topic: str, message: bytes) -> None:
        """Send later, or never."""
        self._queue.push(self._clock(), topic, message)

    def deliver(self) -> None:
        """Send what is due."""
        for topic, message in self._queue.pop(self._clock()):
            self._transport.publish(topic, message)

    def subscribe(self, topic: str, callback: Callback) -> None:
        """See `Transport`."""
        self._transport.subscribe(topic, callback)

    def liveliness(self, topic: str) -> None:
        """See `Transport`."""
        self._transport.liveliness(topic)

    def roster(self, topic: str) -> list[str]:
        """See `Transport`."""
        return self._transport.roster(topic)

    def close(self) -> None:
        """See `Transport`."""
        self._transport.close()


class RemoteRun:
    """One run of the challenge over a network.

    Args:
        session: fresh; its robot is driven.
        make_leader: makes the operator's leader from a function that returns the (7,) scene as the operator sees it,
            late, and from the clock.
        impairment: of each way.
        seed: of the layout, for the log.
        target: which cube the operator looks at.
        safety: limits of the robot's side; the default drops commands older than 250 ms.
    """

    def __init__(
        self,
        session: VirtualSession,
        make_leader: Callable[[Callable[[], Array], Callable[[], float]], Teleoperator],
        impairment: Impairment,
        seed: int,
        target: Callable[[VirtualSession], int] = lambda session: 0,
        safety: SafetyConfig | None = None,
    ) -> None:
        self.session, self._target = session, target
        topics, broker = Topics("challenge", "arm1"), InprocBroker("challenge")
        back = impairment.model_copy(update={"seed": impairment.seed + 1})
        self._links = [
            VirtualLink(broker.join("arm1", "robot"), back, session.clock),
            VirtualLink(broker.join("operator", "operator"), impairment, session.clock),
        ]
        self._scenes: deque[tuple[int, Array]] = deque(maxlen=KEPT_SCENES)
        self._sequence = 0
        self.leader = make_leader(self._seen_scene, session.clock)
        self.robot_side = FollowerSide(session.robot, self._links[0], topics, safety, clock_ns=self._clock_ns)
        self.operator_side = OperatorSide(self.leader, self._links[1], topics, clock_ns=self._clock_ns)
        self.judge = Judge(
            session.world, seed, {"impairment": impairment.to_dict(), "max_age_ms": self.robot_side.safety.max_age_ms}
        )

    def run(self, longest_s: float = TIME_LIMIT_S) -> list[Record]:
        """Run until everything is placed or the time is over; return the log.

        The clock of the challenge starts when the arm follows for the first time.
        """
        session, start_s = self.session, None
        begin_s, still_s = session.clock(), 0.0
        with self.leader:
            while session.clock() - begin_s < longest_s + 30:
                session.robot.sleep(1 / RATE_HZ)
                self._step()
                mode = self.robot_side.controller.mode
                if start_s is None and mode is Mode.ACTIVE:
                    start_s = session.clock()
                if start_s is None:
                    continue
                elapsed_s = session.clock() - start_s
                self.judge.look(elapsed_s, self.robot_side.controller, session.robot.reported_deg()[5])
                is_done = all(session.world.is_placed(i) for i in range(len(session.world.cubes)))
                still_s = still_s + 1 / RATE_HZ if is_done and session.robot.reported_deg()[5] > 0 else 0.0
                # Cubes that still slide are in the bin before they count.
                if (still_s > 1.5 and self.judge.is_complete) or elapsed_s >= longest_s:
                    break
        return self.judge.finish(self.robot_side.controller, self.operator_side.delays.round_trip_ms.p50)

    def _step(self) -> None:
        for link in self._links:
            link.deliver()
        self.operator_side.step()
        for link in self._links:
            link.deliver()
        self.robot_side.step()
        self._sequence += 1
        self._scenes.append((self._sequence, self.session.scene(self._target(self.session))))

    def _seen_scene(self) -> Array:
        """Return the scene of the newest state that the operator has: pictures travel with states."""
        state = self.operator_side.state
        number = state.sequence if state is not None else 0
        for sequence, scene in reversed(self._scenes):
            if sequence <= number:
                return scene
        return self._scenes[0][1] if self._scenes else self.session.scene(self._target(self.session))

    def _clock_ns(self) -> int:
        return round(self.session.clock() * 1e9)


def first_free_cube(session: VirtualSession) -> int:
    """Return the first cube that is not in the bin yet; the last one if all are."""
    world = session.world
    free = [i for i in range(len(world.cubes)) if not world.is_placed(i)]
    return free[0] if free else len(world.cubes) - 1
