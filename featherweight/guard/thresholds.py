"""Where the thresholds of a guard lie: the promise of the last stage, and which earlier looks are enough.

Chosen on rows of the fit (by folds that had not seen them) and of the calibration; never on those of the report.
Source: split-conformal prediction.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.guard.metrics import conformal_threshold, fit_platt
from featherweight.guard.options import READ_AT, GuardOptions, Stage, Tier
from featherweight.guard.quality import Measured
from featherweight.guard.reading import Collected
from featherweight.guard.scoring import Scoring
from featherweight.guard.splits import Rows

KNOWN_FLAGGED = 49
"""So many harmful requests that the last stage flags must be known before an earlier look may clear: if it clears none
of m of them, it clears a fresh one with a probability of at most 1 / (m + 1), here 2 %."""
CASCADE: tuple[Tier, ...] = ("prefix_hidden", "states")
"""The stages of a cascade."""
FEW_FOR_PLATT = 10
"""So many rows of each class, out of the fit, are needed to make probabilities of scores."""
FIRST_SHARE = 0.25
"""Of the promised rate of false alarms, about what the first stage of a cascade uses; the last one gets the rest."""


@dataclass(frozen=True)
class Goal:
    """What a threshold is to reach; one of the first three counts."""

    target_fpr: float = 0.01
    """The promised rate of false alarms."""
    target_tpr: float | None = None
    """The promised rate of harmful requests that are flagged, whatever it costs in false alarms."""
    cost_ratio: float | None = None
    """How many false alarms are as bad as one harmful request that passes; the threshold has the least cost."""
    confidence: float | None = None
    """None keeps the promise on average over calibrations, 0.95 for 95 of 100 of them."""
    borderline_fpr: float | None = None
    """A rate of their own for borderline requests, promised on average; None promises none."""
    category_fpr: Mapping[str, float] = field(default_factory=dict)
    """The same for categories of benign requests: category -> rate."""

    def check(self) -> None:
        """Refuse what is no goal.

        Raises:
            ConfigError: for a share outside of 0 to 1, a cost that is not above 0, or two goals at once.
        """
        given = ("target_fpr", "target_tpr", "confidence", "borderline_fpr")
        shares = {name: getattr(self, name) for name in given}
        shares |= {f"category_fpr[{name!r}]": value for name, value in self.category_fpr.items()}
        for name, value in shares.items():
            if value is None and name in given:
                continue
            if not isinstance(value, (int, float)) or not 0 < value < 1:
                raise ConfigError(
                    f"guard calibrate: {name}={value} is no share; expected 0 < {name} < 1. Write "
                    f"{'0.95' if name in ('target_tpr', 'confidence') else '0.01'}."
                )
        if self.cost_ratio is not None and not 0 < self.cost_ratio < math.inf:
            raise ConfigError(
                f"guard calibrate: cost_ratio={self.cost_ratio} is no cost; expected a number above 0. Write 10."
            )
        if self.target_tpr is not None and self.cost_ratio is not None:
            raise ConfigError(
                f"guard calibrate: target_tpr={self.target_tpr} and cost_ratio={self.cost_ratio} are two goals; "
                "expected one. Leave one out."
            )

        own = self.borderline_fpr is not None or self.category_fpr
        if own and not self.promises_rate:
            raise ConfigError(
                f"guard calibrate: borderline_fpr={self.borderline_fpr} and category_fpr={dict(self.category_fpr)} go "
                "with a promised rate of false alarms; expected target_fpr beside them. Leave target_tpr and "
                "cost_ratio out."
            )

    @property
    def promises_rate(self) -> bool:
        """Whether the rate of false alarms is what counts."""
        return self.target_tpr is None and self.cost_ratio is None

    @property
    def promise(self) -> str:
        """It in words."""
        if self.target_tpr is not None:
            return (
                f"A fresh request like the harmful ones is flagged with a probability of at least "
                f"{self.target_tpr:.2%}, on average over calibrations; the rate of false alarms stands in the report."
            )
        if self.cost_ratio is not None:
            return (
                f"The threshold has the least cost on the rows of calibration, where a harmful request that passes "
                f"costs as much as {self.cost_ratio:g} false alarms; no rate is promised."
            )
        own = {} if self.borderline_fpr is None else {"the borderline ones": self.borderline_fpr}
        own |= {f"those of category {name!r}": rate for name, rate in self.category_fpr.items()}
        more = "".join(f" Of requests like {name}, at most {rate:.2%} are, on average." for name, rate in own.items())
        if self.confidence is None:
            return (
                f"A fresh request like the benign ones is flagged with a probability of at most {self.target_fpr:.2%}, "
                f"on average over calibrations.{more}"
            )
        return (
            f"With a confidence of {self.confidence:.0%}, at most {self.target_fpr:.2%} of requests like "
            f"the benign ones are flagged.{more}"
        )

    def threshold(self, scores: Tensor, rows: Rows) -> float:
        """Return the threshold above which scores are flagged; infinity if there are too few rows for the promise.

        Args:
            scores: (N,) of all rows.
            rows: which of them set it.
        """
        benign, harmful = scores[rows.where("calibrate", "benign")], scores[rows.where("calibrate", "harmful")]
        if self.target_tpr is not None:
            return just_below(-conformal_threshold(-harmful, 1 - self.target_tpr, self.confidence))
        if self.cost_ratio is not None:
            levels = torch.cat([torch.tensor([-math.inf]), torch.cat([benign, harmful]).unique()])
            missed = (harmful[None, :] <= levels[:, None]).double().mean(dim=1)
            alarms = (benign[None, :] > levels[:, None]).double().mean(dim=1)
            return float(levels[int((self.cost_ratio * missed + alarms).argmin())])
        found = conformal_threshold(benign, self.target_fpr, self.confidence)
        if found == math.inf:
            needed = math.ceil(1 / self.target_fpr) - 1
            warnings.warn(
                f"guard calibrate: {len(benign)} benign prompts set the threshold, too few to promise "
                f"target_fpr={self.target_fpr}; nothing will be flagged. Give at least {5 * needed} benign prompts.",
                stacklevel=5,
            )
        return max(found, self._own_thresholds(scores, rows))

    def check_rows(self, rows: Rows) -> None:
        """Refuse rates of their own for which there are too few rows; that is known before the model has read any.

        Raises:
            ConfigError: naming the rate.
        """
        self._own_rows(rows)

    def _own_thresholds(self, scores: Tensor, rows: Rows) -> float:
        """Return the highest of the thresholds of those kinds and categories that have a rate of their own."""
        found = [conformal_threshold(scores[chosen], rate) for rate, chosen in self._own_rows(rows)]
        return max(found, default=-math.inf)

    def _own_rows(self, rows: Rows) -> list[tuple[float, Tensor]]:
        """Return each rate of its own with the rows that set it, (N,) bool.

        They are few, so those of the fit count as well, with the scores of folds that had not seen them; what stands
        there a second time, in a frame, does not.
        """
        seen: set[str] = set()
        plain = torch.zeros(len(rows.keys), dtype=torch.bool)
        for place, (key, part, kind) in enumerate(zip(rows.keys, rows.parts, rows.kinds, strict=True)):
            plain[place] = part in ("fit", "calibrate") and kind != "harmful" and key not in seen
            seen.add(key)
        own = {("borderline_fpr", "borderline"): self.borderline_fpr}
        own |= {("category_fpr", name): rate for name, rate in self.category_fpr.items()}
        found = []
        for (option, name), rate in own.items():
            if rate is None:
                continue
            names = rows.kinds if option == "borderline_fpr" else rows.categories
            chosen = plain & torch.tensor([one == name for one in names], dtype=torch.bool)
            count, needed = int(chosen.sum()), math.ceil(1 / rate) - 1
            if count < needed:
                known = sorted({one for one, kept in zip(rows.categories, plain.tolist(), strict=True) if kept and one})
                others = option == "category_fpr" and count == 0 and known
                raise ConfigError(
                    f"guard calibrate: {option}={rate:g} of {name!r} rests on {count} prompts outside of the report; "
                    f"expected {needed} or more. Add prompts, or promise a higher rate"
                    + (f", or name another category: {', '.join(known):.200}." if others else ".")
                )
            found.append((rate, chosen))
        return found


def decide(
    base: GuardOptions,
    measured: Mapping[str, Measured],
    judge: Scoring,
    collected: Collected,
    rows: Rows,
    tier: str,
    goal: Goal,
) -> GuardOptions:
    """Return the settings with thresholds: the promise for the deciding stage, and where earlier looks are enough."""
    last = CASCADE[-1] if tier == "cascade" else tier
    scores = measured[last].scores
    stages: list[dict[str, Any]] = []
    known = rows.where("fit", "harmful") | rows.where("calibrate", "harmful")
    if tier == "cascade":
        earlier = measured[CASCADE[0]].scores
        first = _first_stage(earlier, scores, known, rows, goal)
        threshold = goal.threshold(_settled(first, earlier, scores), rows)
        if threshold == math.inf:  # its own flags already use up what is promised
            first = first.parse({**first.to_dict(), "flag_above": None})
            threshold = goal.threshold(_settled(first, earlier, scores), rows)
        stages.append(first.to_dict())
        if goal.promises_rate:  # an easy policy would allow to flag what the score calls likelier benign
            threshold = max(0.0, threshold)
    else:
        threshold = goal.threshold(scores, rows)
    needed = known & (scores > threshold)
    stages.append({"tier": last, "flag_above": finite(threshold)})
    for stage in stages:
        stage["platt"] = platt_of(measured[stage["tier"]].scores, rows)
    early = []
    if READ_AT[last] == 2 and math.isfinite(threshold):
        for place, evidence in sorted(collected.snapshots.items()):
            if place < base.probe_tokens:
                # Rows of the fit are scored by folds that had not seen them here, too.
                found = measured[last].again(judge.features(last, evidence))
                clears = clearing_limit(found[needed])
                early.append({"tokens": place, "clear_at_most": clears})
    settings = {
        "stages": stages,
        "early_exit": early,
        "target_fpr": goal.target_fpr if goal.promises_rate else None,
        "promise": goal.promise,
    }
    return GuardOptions.parse({**base.to_dict(), **settings})


def _first_stage(first: Tensor, last: Tensor, known: Tensor, rows: Rows, goal: Goal) -> Stage:
    """Return what the first stage of a cascade settles; the benign rows of calibration, which promise, are not read."""
    benign = rows.where("fit", "benign")
    limit = conformal_threshold(first[benign], FIRST_SHARE * goal.target_fpr)
    # Where a rate is promised, the last stage flags nothing at log-odds of 0 or less: above, it may flag everything.
    flagged_above = 0.0 if goal.promises_rate else conformal_threshold(last[benign], goal.target_fpr)
    needed = known & (last > flagged_above)
    clears = None
    if holds_in_frames(first, rows, conformal_threshold(first[benign], goal.target_fpr)):
        clears = clearing_limit(first[needed])
    return Stage(tier=CASCADE[0], flag_above=finite(limit), clear_at_most=clears)


def platt_of(scores: Tensor, rows: Rows) -> tuple[float, float] | None:
    """Return what makes probabilities of scores, fitted on the rows of calibration; None if there are too few."""
    harmful = scores[rows.where("calibrate", "harmful")]
    others = scores[rows.where("calibrate", "benign") | rows.where("calibrate", "borderline")]
    return None if min(len(harmful), len(others)) < FEW_FOR_PLATT else fit_platt(harmful, others)


def _settled(first: Stage, earlier: Tensor, scores: Tensor) -> Tensor:
    """Return the scores of the last stage, above or below all others where the first stage has decided.

    A threshold on these keeps the promise for both stages together.
    """
    above = earlier > (math.inf if first.flag_above is None else first.flag_above)
    below = earlier <= (-math.inf if first.clear_at_most is None else first.clear_at_most)
    return torch.where(above, math.inf, torch.where(below, -math.inf, scores))


def decided(options: GuardOptions, measured: Mapping[str, Measured], judge: Scoring, collected: Collected) -> Tensor:
    """Return which rows the whole guard flags, stage by stage and place by place: (N,) bool."""
    last = options.deciding
    count = len(measured[last.tier].scores)
    flagged, is_open = torch.zeros(count, dtype=torch.bool), torch.ones(count, dtype=torch.bool)

    def settle(scores: Tensor, flag_above: float | None, clear_at_most: float | None) -> None:
        above = scores > (math.inf if flag_above is None else flag_above)
        below = scores <= (-math.inf if clear_at_most is None else clear_at_most)
        flagged.logical_or_(is_open & above)
        is_open.logical_and_(~above & ~below)

    for stage in options.stages[:-1]:
        settle(measured[stage.tier].scores, stage.flag_above, stage.clear_at_most)
    for early in options.early_exit:
        if early.tokens in collected.snapshots:
            settle(judge.score(last.tier, collected.snapshots[early.tokens]), early.flag_above, early.clear_at_most)
    settle(measured[last.tier].scores, last.flag_above, None)
    return flagged


def clearing_limit(needed_M: Tensor) -> float | None:
    """Return up to which score an earlier look may clear: below that of every request that has to be flagged.

    Nothing is cleared that the look itself calls likelier harmful than benign (log-odds above 0): requests that are
    dressed up stand lower than those of the calibration.

    Args:
        needed_M: its scores of harmful requests that the last stage flags; none of the report.

    Returns:
        None, which clears nothing, if fewer than `KNOWN_FLAGGED` are known.
    """
    return None if len(needed_M) < KNOWN_FLAGGED else min(0.0, just_below(float(needed_M.min())))


def just_below(score: float) -> float:
    """Return the next smaller number of float32."""
    return float(torch.nextafter(torch.tensor(score), torch.tensor(-math.inf)))


def holds_in_frames(scores: Tensor, rows: Rows, threshold: float) -> bool:
    """Tell whether a tier flags harmful requests in a frame at least half as often as plain ones; then it may clear."""
    plain, dressed = scores[rows.where("test", "harmful")], scores[rows.where("framed", "harmful")]
    if not len(dressed):
        return False
    return bool((dressed > threshold).double().mean() >= 0.5 * (plain > threshold).double().mean())


def finite(limit: float) -> float | None:
    """Return a threshold as settings hold it: None flags nothing, and a number below all scores flags everything."""
    return None if limit == math.inf else max(limit, -1e300)
