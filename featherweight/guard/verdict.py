"""What a guard says of a request, and what that cost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """The judgement of one request."""

    flagged: bool
    """It ought to be refused, or could not be judged."""
    score: float
    """Of the stage that decided; larger is more likely to need a refusal. NaN if it could not be judged."""
    tier: str
    """What that stage looked at."""
    probe_tokens: int
    """Tokens that the model wrote after the prefix."""
    probe_text: str = ""
    """What it wrote."""
    error: str | None = None
    """Why the request could not be judged; it is flagged then."""
    probe_ids: tuple[int, ...] = ()
    """Its tokens."""
    has_ended: bool = False
    """The reply ended inside of the probe; it is not continued."""
    probability: float | None = None
    """That the request ought to be refused, at the shares of the calibration; None where that was not fitted."""


@dataclass
class Costs:
    """Token-forwards: how many tokens went through the model, a token of a batch of two counted twice."""

    prompt_tokens: int = 0
    """Of the prompts, without padding; each is read once."""
    prefix_tokens: int = 0
    """Of the forced prefix."""
    probe_tokens: int = 0
    """Of the probe; its last token is not read."""
    opening_tokens: int = 0
    """Of the openings that are compared; the last one of each is not read."""
    padding_tokens: int = 0
    """Read beside the prefix in a parallel branch, and masked."""
    answer_tokens: int = 0
    """Of the answer; its last token is not read."""
    extra_steps: int = 0
    """Forward passes that an unguarded request would not have waited for."""

    @property
    def token_forwards(self) -> int:
        """All together."""
        return self.unguarded_forwards + self.extra_forwards

    @property
    def unguarded_forwards(self) -> int:
        """What the answer alone takes."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def extra_forwards(self) -> int:
        """What the guard adds."""
        return self.prefix_tokens + self.probe_tokens + self.opening_tokens + self.padding_tokens


def predict_costs(
    prompt_tokens: int,
    prefix_tokens: int,
    probe_tokens: int,
    answer_tokens: int,
    *,
    parallel: bool = False,
    openings: tuple[int, int] = (0, 0),
) -> Costs:
    """Return what a request that passes will cost.

    Args:
        prompt_tokens: of the prompt.
        prefix_tokens: forced, 0 if the guard looks at the prompt alone.
        probe_tokens: written after the prefix until the verdict, 0 if the guard looks at the prefix alone.
        answer_tokens: of the answer.
        parallel: the probe is a second row beside the answer.
        openings: how many are compared, and the tokens of each.

    Example:
        >>> predict_costs(200, 7, 12, 128).token_forwards, predict_costs(200, 7, 12, 128, parallel=True).token_forwards
        (345, 351)
    """
    read = max(0, probe_tokens - 1)
    compared = openings[0] * max(0, openings[1] - 1)
    return Costs(
        prompt_tokens,
        prefix_tokens,
        read,
        opening_tokens=compared,
        padding_tokens=max(0, prefix_tokens - 1) if parallel else 0,
        answer_tokens=answer_tokens - 1,
        extra_steps=0 if parallel else (prefix_tokens > 0) + read + (compared > 0),
    )
