"""How often a policy, or the expert, puts the cube into the bin, over layouts that nobody learnt from."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from featherweight.robot.intervals import wilson_interval
from featherweight.robot.kit import SERVOS
from featherweight.robot.learning.policy import Policy, Seen
from featherweight.robot.learning.policy_leader import PolicyLeader
from featherweight.robot.recording.demonstrations import run_expert
from featherweight.robot.safety.controller import Controller
from featherweight.robot.sim.cameras import Cameras
from featherweight.robot.sim.session import VirtualSession

LONGEST_S = 20.0
FIRST_UNSEEN_SEED = 10_000
"""Demonstrations take seeds from 0 on, evaluations from here on."""


@dataclass
class Evaluation:
    """What came out."""

    seeds: list[int] = field(default_factory=list)
    placed: list[bool] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    """Virtual seconds of the runs that succeeded."""
    processor_s: float = 0.0

    @property
    def successes(self) -> int:
        """Cubes in the bin."""
        return sum(self.placed)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the share of successes, at 95 %."""
        return wilson_interval(self.successes, len(self.placed))


def evaluate(
    policy: Policy | None,
    seeds: Sequence[int],
    on_run: Callable[[int, bool], None] | None = None,
    zero_offset_deg: Sequence[float] = (0.0,) * SERVOS,
) -> Evaluation:
    """Run a policy, or the expert if it is None, once for each seed, in virtual time through the safety pipeline.

    Args:
        policy: trained.
        seeds: of the layouts.
        on_run: called with each seed and whether its cube is in the bin.
        zero_offset_deg: (6,) errors of assembly of the kit.
    """
    session, result, start_s = VirtualSession(zero_offset_deg=zero_offset_deg), Evaluation(), time.process_time()
    for seed in seeds:
        session.reset(seed)
        begin_s = session.clock()
        is_placed = run_expert(session) if policy is None else run_policy(session, policy)
        result.seeds.append(seed)
        result.placed.append(is_placed)
        if is_placed:
            result.times_s.append(session.clock() - begin_s)
        if on_run is not None:
            on_run(seed, is_placed)
    result.processor_s = time.process_time() - start_s
    return result


def run_policy(session: VirtualSession, policy: Policy, longest_s: float = LONGEST_S) -> bool:
    """Let a policy lead in a fresh session; return whether the cube lies in the bin, let go.

    Raises:
        DeviceError: if the policy sees pictures and none can be drawn here.
    """
    placed_since: float | None = None

    def on_step(_: Controller) -> bool:
        nonlocal placed_since
        is_placed = session.world.is_placed() and session.robot.reported_deg()[5] > 0
        placed_since = (placed_since or session.clock()) if is_placed else None
        return placed_since is None or session.clock() - placed_since < 1.0

    with eyes_of(policy, session) as see:
        session.run(PolicyLeader(policy, see, session.clock, in_thread=False), longest_s, on_step)
    session.robot.sleep(0.5)
    return session.world.is_placed()


@contextlib.contextmanager
def eyes_of(policy: Policy, session: VirtualSession) -> Iterator[Callable[[], Seen]]:
    """Give what a policy sees of a session: the scene, or the pictures of its cameras in its own size."""
    if not policy.config.cameras:
        yield lambda: Seen(session.scene())
        return
    height_px, width_px = policy.picture_size_px
    cameras = Cameras(session.world, policy.config.cameras, width_px, height_px)
    try:
        yield lambda: Seen(pictures=cameras.render())
    finally:
        cameras.close()
