"""Prefix guidance: a guard that reads what a model understood of a request, after the forced opening of a refusal.

One file per concept: `options`, `prefix` (as tokens), `probe` and `evidence` (what is read), `text_features`,
`finetuned`, `linear` and `scoring` (what it says), `room`, `decoding` and `gate` (generation), `decoding_loop`
(transformers' hook), `monitor` and `monitor_fit` (long answers), `ensemble` (several prefixes); `metrics`,
`prompt_files`, `splits`, `frames`, `prefix_search`, `readings`, `fitting`, `thresholds`, `calibration`, `latency` and
`quality` (how a guard is made), `evaluation`, `text_verdict` (for other engines), `storage`, `markdown`, `export` and
`fingerprint` (its folder).
"""

from typing import Any

from featherweight.lazy_names import load_name

_LAZY = {
    "GuardEnsemble": "featherweight.guard.ensemble",
    "GuardOptions": "featherweight.guard.options",
    "GuardedModel": "featherweight.guard.guarded_model",
    "PrefixGuard": "featherweight.guard.guard",
    "Verdict": "featherweight.guard.verdict",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _LAZY, name)
