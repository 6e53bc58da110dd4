"""A cut that keeps the perplexity of a text within a limit: which parts of the text do what.

Three parts that do not overlap: the first one judges, before and after; the second one chooses the cut; what follows
calibrates, unless another text is given for that.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.methods.welore import WeLore
from featherweight.methods.welore.search import FoundCut, find_cut
from featherweight.report import Report
from featherweight.text.perplexity import perplexity

SMALLEST_TEXT = 256
"""Tokens with which a cut can be chosen at all."""


@dataclass(frozen=True)
class PerplexityLimit:
    """What the perplexity may rise to."""

    factor: float | None
    """Times that of the model."""
    value: float | None
    """Or the perplexity itself."""

    @classmethod
    def parse(cls, given: str | float) -> "PerplexityLimit":
        """Read "1.1x" (times that of the model) or a perplexity such as 25.

        Raises:
            ConfigError: if it is neither.
        Example:
            >>> PerplexityLimit.parse("1.1x").factor, PerplexityLimit.parse(25).value
            (1.1, 25.0)
        """
        text = str(given).strip().lower()
        is_factor = text.endswith("x")
        try:
            number = float(text.removesuffix("x"))
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number > 1):
            raise ConfigError(
                f"compress: max_perplexity={given} is no limit; expected a factor above 1 such as 1.1x, or a "
                "perplexity such as 25. Correct it."
            )
        return cls(number if is_factor else None, None if is_factor else number)

    def rise(self, loss: float) -> float:
        """Return how far a loss may rise, in nats.

        Raises:
            ConfigError: if it is beyond the limit already.
        """
        allowed = math.log(self.factor) if self.factor is not None else math.log(self.value or 1) - loss
        if allowed <= 0:
            raise ConfigError(
                f"compress: max_perplexity={self.value:g} is below the {math.exp(loss):.4g} of the model before any "
                "cut; expected more. Give a factor such as 1.1x."
            )
        return allowed


def search_cut(
    model: nn.Module,
    options: WeLore,
    limit: PerplexityLimit,
    stream: Tensor,
    *,
    window_tokens: int,
    batches: list[Tensor] | None,
    tell: Callable[[str], None],
) -> FoundCut:
    """Find the cut of a model that keeps to a limit.

    Args:
        model: in memory.
        options: of the cut, without a budget.
        limit: of the perplexity.
        stream: (T,) tokens that choose.
        window_tokens: of the perplexity.
        batches: of calibration, if the method wants some.
        tell: is told what was measured.
    Raises:
        ConfigError: if the text is too short, or no cut keeps to the limit.
    """
    if len(stream) < SMALLEST_TEXT:
        raise ConfigError(
            f"compress: the text that chooses the cut has {len(stream)} tokens behind those that judge it; expected at "
            f"least {SMALLEST_TEXT}. Give --evaluate a longer text."
        )
    measured = [0]

    def measure(model: nn.Module) -> float:
        measured[0] += 1
        return math.log(perplexity(model, stream, window_tokens=window_tokens))

    found = find_cut(model, options, measure, limit.rise(measure(model)), batches)
    tell(
        f"perplexity on the {len(stream)} tokens that chose the cut: {math.exp(found.loss_after):.4g}, before: "
        f"{math.exp(found.loss_before):.4g} ({measured[0]} measurements)"
    )
    return found


def add_search(report: Report, found: FoundCut) -> None:
    """Add what a search has measured: the perplexity over the ranks of each kind that went, cut alone."""
    curves = {
        kind: (list(shares), [math.exp(min(cost, 20.0)) for cost in costs])
        for kind, (shares, costs) in found.curves.items()
    }
    report.add_curves(
        "What cutting one kind alone costs", "share of its ranks", "perplexity, times that before", curves
    )
    rows = [
        [kind, share, factor]
        for kind, (shares, factors) in curves.items()
        for share, factor in zip(shares[1:], factors[1:], strict=True)
    ]
    report.add_table("Cut alone", ["kind", "share of its ranks", "perplexity, times that before"], rows)
