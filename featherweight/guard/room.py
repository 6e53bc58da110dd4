"""Whether a prompt, the forced prefix and the probe fit into what a model can read."""

from typing import Any

from featherweight.errors import ConfigError
from featherweight.guard.options import READ_AT, GuardOptions
from featherweight.guard.probe import Judge

LEAST_PROBE = 8
"""Where the context has no room for a whole probe, one of so many tokens is read; with fewer, nothing is judged."""


def context_of(model: Any) -> int | None:
    """Return how many tokens a model can read; None if it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def reserved_tokens(guard: Any) -> int:
    """Return how many tokens behind a prompt a guard, or each guard of an ensemble, needs at least."""
    return max(len(one.options.forced_ids) + _least(one.options) for one in guard.members)


def probe_limit(model: Any, tokens: int, guard: Judge) -> int:
    """Return how many tokens the probe behind a prompt may have: all of them, or as many as the context leaves.

    Args:
        model: says how long its context is.
        tokens: of the prompt.
        guard: wants a probe of its length, and takes one of `LEAST_PROBE` tokens.

    Raises:
        ConfigError: if there is no room for the prefix and so many tokens: the prompt could not be judged.
    """
    context, options = context_of(model), guard.options
    needed = len(options.forced_ids) + _least(options)
    if context is None:
        return options.probe_tokens
    if tokens + needed > context:
        raise ConfigError(
            f"guard: prompt={tokens} tokens leave no room for {needed} tokens of prefix and probe in the context of "
            f"{context} tokens; expected at most {context - needed}. Shorten the prompt."
        )
    return max(1, min(options.probe_tokens, context - tokens - len(options.forced_ids)))


def _least(options: GuardOptions) -> int:
    """Return how many tokens behind the prefix a guard reads at least."""
    compared = max((len(one) for one in options.openings), default=0) if options.needs_openings else 0
    return max(compared, min(LEAST_PROBE, options.probe_tokens) if READ_AT[options.deciding.tier] == 2 else 0)
