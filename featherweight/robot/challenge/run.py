"""Runs of the challenge: who operates, over which network, and what came out."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from featherweight.errors import ConfigError, did_you_mean
from featherweight.robot.challenge.eager import EagerHand
from featherweight.robot.challenge.hand import Clock, Hand
from featherweight.robot.challenge.log import write_log
from featherweight.robot.challenge.patient import PatientHand
from featherweight.robot.challenge.remote import RemoteRun, first_free_cube
from featherweight.robot.challenge.score import TIME_LIMIT_S, Score, score_log
from featherweight.robot.challenge.shared import SharedLeader
from featherweight.robot.contract import Teleoperator
from featherweight.robot.kinematics.dh import Array
from featherweight.robot.network.impaired import Impairment
from featherweight.robot.safety.config import SafetyConfig
from featherweight.robot.sim.session import VirtualSession

if TYPE_CHECKING:
    from featherweight.robot.learning.policy import Policy

HANDS: dict[str, type[Hand]] = {
    "hand": PatientHand,
    "eager": EagerHand,
    "shared": PatientHand,
    "shared-eager": EagerHand,
}
"""Operator -> the model of a person in it."""
OPERATORS = ("hand", "eager", "policy", "shared", "shared-eager")
ALONE = ("hand", "eager")
"""Those without a policy."""


def parse_impairment(text: str) -> Impairment:
    """Return a network from a preset's name, or from words like "150ms+-30,1%": round trip, its spread, loss each way.

    Raises:
        ConfigError: if the words are neither.

    Example:
        >>> network = parse_impairment("150ms+-30,1%")
        >>> network.delay_s, network.jitter_s, network.loss
        (0.075, 0.015, 0.01)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)ms(?:(?:\+-|±)(\d+(?:\.\d+)?))?(?:,(\d+(?:\.\d+)?)%)?", text.strip())
    if found is None:
        return Impairment.preset(text)
    delay_ms, spread_ms, loss = (float(group or 0) for group in found.groups())
    return Impairment(delay_s=delay_ms / 2000, jitter_s=spread_ms / 2000, loss=loss / 100)


def run_challenge(
    operator: str,
    policy: "Policy | None",
    seed: int,
    impairment: Impairment,
    cubes: int = 1,
    log: Path | None = None,
    longest_s: float = TIME_LIMIT_S,
    max_age_ms: float | None = None,
) -> Score:
    """Run the challenge once, in virtual time.

    Args:
        operator: "hand" (a model of a person who moves and waits), "eager" (of one who never waits), "policy", or
            "shared" and "shared-eager" (a hand, helped by the policy).
        policy: trained; for those that have one.
        seed: of layout, hand and network.
        impairment: of the network, each way.
        cubes: on the table.
        log: where the judge's log goes; None for nowhere.
        longest_s: time limit.
        max_age_ms: age above which the robot's side drops a command; None for that of `SafetyConfig`.
    Raises:
        ConfigError: if the operator is unknown, there is no policy for it, or every command would come too late.
    """
    if operator not in OPERATORS:
        raise ConfigError(
            f"challenge: operator={operator} is unknown; expected one of {', '.join(OPERATORS)}. "
            f"{did_you_mean(operator, OPERATORS)}"
        )
    if operator not in ALONE and policy is None:
        raise ConfigError(f"challenge: operator={operator} needs a policy; expected --policy RUN. Train one.")
    safety = SafetyConfig() if max_age_ms is None else SafetyConfig(max_age_ms=max_age_ms)
    if 1000 * impairment.delay_s >= safety.max_age_ms:
        raise ConfigError(
            f"challenge: delay_ms={1000 * impairment.delay_s:g} is not below max_age_ms={safety.max_age_ms:g}, so "
            "every command would be dropped; expected a quicker network. Allow older commands with --max-age."
        )
    runs: list[RemoteRun] = []

    def round_trip_s() -> float:
        return runs[0].operator_side.delays.round_trip_ms.p50 / 1000

    def make_leader(see: Callable[[], Array], clock: Clock) -> Teleoperator:
        if policy is None or operator in ALONE:
            return HANDS[operator](see, clock, seed)
        from featherweight.robot.learning.policy import Seen
        from featherweight.robot.learning.policy_leader import PolicyLeader

        helper = PolicyLeader(policy, lambda: Seen(see()), clock, in_thread=False, delay=round_trip_s)
        return helper if operator == "policy" else SharedLeader(HANDS[operator](see, clock, seed), helper)

    session = VirtualSession(seed, cubes=cubes)
    network = impairment.model_copy(update={"seed": 2 * seed})
    runs.append(RemoteRun(session, make_leader, network, seed, first_free_cube, safety))
    records = runs[0].run(longest_s)
    if log is not None:
        write_log(log, records)
    return score_log(records)
