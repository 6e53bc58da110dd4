"""From evidence to scores: the features of each tier, and the linear score fitted on them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import CheckpointError, ConfigError
from featherweight.guard.evidence import Evidence, next_token_features, required
from featherweight.guard.linear import Linear
from featherweight.guard.monitor import NAME, Monitor
from featherweight.guard.openings import continuation_features
from featherweight.guard.options import GuardOptions
from featherweight.guard.probe import Alone
from featherweight.guard.text_features import bow_features, classified_text, encoder_features

TextFunction = Callable[[Sequence[str]], Tensor]
"""N texts -> (N,) or (N, F) numbers."""


class Scoring(Alone):
    """What scores evidence; a guard has one, and so has its calibration.

    Args:
        options: of the guard.
        scores: tier -> linear score of its features.
        vocabulary: (F,) int64: the tokens whose log-probabilities the tier next_token reads.
        tokenizer: of the model; None as long as no text is read.
        classifier: of texts, for `text_classifier: finetune` and `custom`; None until it is there.
    """

    def __init__(
        self,
        options: GuardOptions,
        scores: Mapping[str, Linear],
        vocabulary: Tensor | None = None,
        tokenizer: Any = None,
        classifier: TextFunction | None = None,
    ) -> None:
        self.options, self.scores = options, dict(scores)
        self.vocabulary, self.tokenizer, self.classifier = vocabulary, tokenizer, classifier

    def score(self, tier: str, evidence: Evidence) -> Tensor:
        """Return (B,) scores of a tier, larger for what ought to be refused.

        Raises:
            CheckpointError: if the guard was not fitted for this tier.
        """
        if tier not in self.scores:
            raise CheckpointError(
                f"guard: tier={tier} has no score; expected one of {', '.join(self.scores) or 'none here'}. Calibrate "
                "the guard for it."
            )
        return self.scores[tier](self.features(tier, evidence))

    def features(self, tier: str, evidence: Evidence) -> Tensor:
        """Return (B, F): what a tier looks at, as numbers."""
        if tier == "hidden":
            return required(evidence, "prompt_hidden")
        if tier == "logprob":
            return required(evidence, "prefix_logprob")[:, None] / len(self.options.prefix_ids)
        if tier == "next_token":
            assert self.vocabulary is not None, "a guard with this tier knows its tokens"
            return next_token_features(evidence, self.vocabulary.to(required(evidence, "next_ids").device))
        if tier == "prefix_hidden":
            return required(evidence, "prefix_hidden")
        if tier == "continuation":
            return continuation_features(required(evidence, "opening_logprobs"), len(self.options.policy_openings))
        if tier == "probe_hidden":
            return required(evidence, "probe_hidden")
        if tier == "states":
            return torch.cat([required(evidence, "prefix_hidden"), required(evidence, "probe_hidden")], dim=1)
        if tier == "states_words":
            states = self.features("states", evidence)
            return torch.cat([states, self.word_features(evidence).to(states)], dim=1)
        return self.text_features(self.texts(evidence))

    def word_features(self, evidence: Evidence) -> Tensor:
        """Return (B, F): the words of requests as numbers.

        Raises:
            ConfigError: if the guard is bound to no tokenizer.
        """
        if self.tokenizer is None:
            raise ConfigError(
                "guard: tokenizer=None, and the tier states_words reads text; expected the model's tokenizer. Call "
                "guard.bind(model, tokenizer) first."
            )
        return bow_features([self.tokenizer.decode(ids, skip_special_tokens=True) for ids in evidence.prompt_ids])

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return (B, F): the texts of probes as numbers."""
        if self.options.text_classifier == "encoder":
            return encoder_features(texts)
        # As long as nothing is trained, as in the search for a prefix, words stand for it.
        if self.classifier is None:
            return bow_features(texts)
        found = self.classifier(texts)
        if found.ndim not in (1, 2) or len(found) != len(texts):
            raise ConfigError(
                f"guard: text_function gave {tuple(found.shape)} for {len(texts)} texts; expected (N,) or (N, F) "
                "numbers. Return a row for each text."
            )
        return found.detach().float().reshape(len(texts), -1)

    def new_monitor(self, rows: int) -> Monitor | None:
        """Return what watches answers, or None if none are watched."""
        if self.options.monitor is None:
            return None
        return Monitor(self.scores[NAME], self.options.monitor, self.options.layers, rows)

    def texts(self, evidence: Evidence) -> list[str]:
        """Return the texts that the tier `probe` classifies."""
        options = self.options
        return [
            classified_text(
                options.prefix_text, self.probe_text(ids), ended=ended, include_prefix=options.include_prefix
            )
            for ids, ended in zip(evidence.probe_ids, evidence.probe_ended, strict=True)
        ]

    def probe_text(self, probe_ids: Sequence[int]) -> str:
        """Return the text of probe tokens; "" if the guard is bound to no tokenizer and needs none."""
        if self.tokenizer is None:
            if any(stage.tier == "probe" for stage in self.options.stages):
                raise ConfigError(
                    "guard: tokenizer=None, and the tier probe reads text; expected the model's tokenizer. Call "
                    "guard.bind(model, tokenizer) first."
                )
            return ""
        return str(self.tokenizer.decode(probe_ids, skip_special_tokens=True))
