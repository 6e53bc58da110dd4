"""What the benchmarks of guards share: the judge that reads all tiers behind a prefix, and rates with intervals."""

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "reference"))
import guard_stand_in as world_of

from featherweight.guard.metrics import rate_interval
from featherweight.guard.options import GuardOptions, default_layers, default_prefix_states
from featherweight.guard.prefix import prefix_ids
from featherweight.guard.scoring import Scoring

__all__ = ["judge_for", "percent", "world_of"]


def judge_for(model: Any, tokenizer: Any, prefix: str, probe_tokens: int, text_classifier: str = "bow") -> Scoring:
    """Return what reads all tiers behind a prefix."""
    _, ids = prefix_ids(tokenizer, prefix)
    options = GuardOptions(
        prefix_text=prefix,
        prefix_ids=ids,
        probe_tokens=probe_tokens,
        layers=default_layers(model.config.num_hidden_layers),
        prefix_states=default_prefix_states(ids),
        stages=[{"tier": "probe_hidden"}],
        text_classifier=text_classifier,
    )
    return Scoring(options, {}, tokenizer=tokenizer)


def percent(hits: torch.Tensor) -> str:
    """Return a rate with its interval of 95 %."""
    low, high = rate_interval(int(hits.sum()), len(hits))
    return f"{100 * float(hits.double().mean()):.1f} ({100 * low:.1f}-{100 * high:.1f})"
