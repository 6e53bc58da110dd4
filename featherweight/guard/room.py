"""Whether a prompt, the forced prefix and the probe fit into what a model can read."""

from typing import Any

from featherweight.errors import ConfigError
from featherweight.guard.probe import Judge


def context_of(model: Any) -> int | None:
    """Return how many tokens a model can read; None if it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def reserved_tokens(guard: Any) -> int:
    """Return how many tokens behind a prompt a guard, or each guard of an ensemble, may read."""
    return max(len(one.options.forced_ids) + one.options.probe_tokens for one in guard.members)


def require_room(model: Any, tokens: int, guard: Judge) -> None:
    """Refuse a prompt that leaves no room for prefix and probe: it could not be judged.

    Raises:
        ConfigError: naming the lengths.
    """
    context, needed = context_of(model), len(guard.options.forced_ids) + guard.options.probe_tokens
    if context is not None and tokens + needed > context:
        raise ConfigError(
            f"guard: prompt={tokens} tokens leave no room for {needed} tokens of prefix and probe in the context of "
            f"{context} tokens; expected at most {context - needed}. Shorten the prompt."
        )
