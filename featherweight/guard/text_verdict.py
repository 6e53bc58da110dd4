"""The verdict on the words of a probe that another engine wrote."""

import math
from typing import Any

from featherweight.errors import ConfigError
from featherweight.guard.text_features import classified_text
from featherweight.guard.verdict import Verdict


def require_text_guard(guard: Any, where: str) -> None:
    """Refuse a guard that looks at more than words, alone or in an ensemble.

    Raises:
        ConfigError: naming its tiers.
    """
    for member in guard.members:
        tiers = [stage.tier for stage in member.options.stages]
        if tiers != ["probe"]:
            raise ConfigError(
                f"{where}: tier={', '.join(tiers)} reads hidden states, which do not cross HTTP; expected probe alone. "
                "Calibrate with --tier probe."
            )


def judge_text(guard: Any, probe: str, *, ended: bool) -> Verdict:
    """Return the verdict on a probe.

    Args:
        guard: of the tier probe alone.
        probe: what was written after the forced prefix.
        ended: whether the reply ended inside of it.
    """
    options = guard.options
    text = classified_text(options.prefix_text, probe, ended=ended, include_prefix=options.include_prefix)
    score = float(guard.linear("probe")(guard.text_features([text]))[0])
    error = None if math.isfinite(score) else "the score is not a finite number"
    flagged = error is not None or options.deciding.flags(score)
    share = options.deciding.probability(score)
    return Verdict(flagged, score, "probe", len(probe.split()), probe, error, probability=share)
