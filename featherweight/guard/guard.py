"""`PrefixGuard`: a calibrated guard of one model; its folder, its scores and its way into transformers' `generate`."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.guard.calibration import calibrate, fit_guard
from featherweight.guard.decoding import Callback
from featherweight.guard.decoding_loop import decoding_loop
from featherweight.guard.evidence import Evidence
from featherweight.guard.fingerprint import check_fingerprint
from featherweight.guard.linear import Linear
from featherweight.guard.monitor import NAME, Monitor
from featherweight.guard.options import GuardOptions
from featherweight.guard.probe import Alone
from featherweight.guard.reading import judge_all
from featherweight.guard.readings import read_readings
from featherweight.guard.scoring import Scoring, TextFunction
from featherweight.guard.storage import GuardFiles, read_guard, write_guard
from featherweight.guard.thresholds import Goal
from featherweight.guard.verdict import Verdict
from featherweight.report import Report


class PrefixGuard(Alone):
    """A guard: the forced prefix, what is looked at behind it, and where the threshold lies.

    Args:
        options: its settings.
        scores: tier -> linear score of its features.
        vocabulary: (F,) int64: the tokens whose log-probabilities the tier next_token reads.
        fingerprints: of the model it was calibrated with; None matches every model.
        report: of the calibration.
        classifier: of texts, for `text_classifier: finetune` and `custom`.
        callback: for `on_flag: callback`: (request, verdict) -> text of the reply, or None for the refusal text.

    Example:
        >>> options = GuardOptions(prefix_text="I cannot", prefix_ids=[1, 2], stages=[{"tier": "prefix_hidden"}])
        >>> PrefixGuard(options, {}).options.forced_ids
        (1, 2)
    """

    def __init__(
        self,
        options: GuardOptions,
        scores: Mapping[str, Linear],
        *,
        vocabulary: Tensor | None = None,
        fingerprints: Mapping[str, Any] | None = None,
        report: Report | None = None,
        classifier: TextFunction | None = None,
        callback: Callback | None = None,
    ) -> None:
        self.options, self.fingerprints, self.report, self.callback = options, fingerprints, report, callback
        self._scoring = Scoring(options, scores, vocabulary, classifier=classifier)

    @property
    def tiers(self) -> tuple[str, ...]:
        """Those that it was fitted for."""
        return tuple(self._scoring.scores)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], *, text_function: TextFunction | None = None) -> Self:
        """Read the folder of a guard. No file of it can run code.

        Args:
            folder: of the guard.
            text_function: what it was calibrated with, for `text_classifier: custom`.

        Raises:
            CheckpointError: if it is no guard, or damaged.
            ConfigError: if it needs a function of the caller's, and got none.
        """
        guard = cls._from_files(read_guard(Path(folder)))
        if guard.options.text_classifier == "custom" and "probe" in {stage.tier for stage in guard.options.stages}:
            if text_function is None:
                raise ConfigError(
                    f"guard: text_function=None, and the guard of {folder} scores texts by a function that no file "
                    "holds; expected that of its calibration. Call PrefixGuard.from_pretrained(..., text_function=...)."
                )
            guard._scoring.classifier = text_function
        return guard

    @classmethod
    def calibrate(cls, model: nn.Module, tokenizer: Any, **arguments: Any) -> Self:
        """Make a guard from labelled prompts; see `featherweight.guard.calibration.calibrate` for the arguments."""
        guard = cls._from_files(calibrate(model, tokenizer, **arguments))
        guard._scoring.tokenizer = tokenizer
        return guard

    @classmethod
    def refit(
        cls,
        folders: Sequence[str | PathLike[str]],
        tokenizer: Any,
        *,
        tier: str = "probe_hidden",
        target_fpr: float = 0.01,
        target_tpr: float | None = None,
        cost_ratio: float | None = None,
        confidence: float | None = None,
        borderline_fpr: float | None = None,
        category_fpr: Mapping[str, float] | None = None,
        text_classifier: str | None = None,
        text_base: str | None = None,
        text_function: TextFunction | None = None,
    ) -> Self:
        """Make a guard from what a calibration kept of the model, without running it.

        Args:
            folders: written by `calibrate(..., keep_readings=FOLDER)`; several are joined.
            tokenizer: of the model.
            tier: what decides.
            target_fpr: as in `calibrate`, like the others.
            target_tpr: see there.
            cost_ratio: see there.
            confidence: see there.
            borderline_fpr: see there.
            category_fpr: see there.
            text_classifier: bow, encoder or finetune; None takes that of the calibration.
            text_base: folder of the model that finetune starts from; None takes MiniLM.
            text_function: takes texts, returns numbers, instead of those.

        Raises:
            CheckpointError: if a folder is damaged.
            ConfigError: if the classes were probed with different prefixes, or the folders are of different models.
        """
        goal = Goal(target_fpr, target_tpr, cost_ratio, confidence, borderline_fpr, category_fpr or {})
        readings = read_readings([Path(folder).expanduser() for folder in folders])
        files = fit_guard(
            readings,
            tokenizer,
            tier=tier,
            goal=goal,
            text_classifier=text_classifier if text_function is None else "custom",
            text_base=text_base,
            text_function=text_function,
        )
        guard = cls._from_files(files)
        guard._scoring.tokenizer = tokenizer
        return guard

    @classmethod
    def _from_files(cls, files: GuardFiles) -> Self:
        return cls(
            files.options,
            files.scores,
            vocabulary=files.vocabulary,
            fingerprints=files.fingerprints,
            report=files.report,
            classifier=files.classifier,
        )

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the guard as a folder, which appears complete or not at all.

        Raises:
            ConfigError: if the folder cannot be written.
        """
        scoring = self._scoring
        files = GuardFiles(
            self.options, scoring.scores, scoring.vocabulary, self.fingerprints, self.report, scoring.classifier
        )
        write_guard(Path(folder), files)

    def with_options(self, **changes: Any) -> Self:
        """Return a guard with some settings changed, bound to the same tokenizer."""
        options, old = GuardOptions.parse({**self.options.to_dict(), **changes}, where="guard"), self._scoring
        other = type(self)(
            options,
            old.scores,
            vocabulary=old.vocabulary,
            fingerprints=self.fingerprints,
            report=self.report,
            classifier=old.classifier,
            callback=self.callback,
        )
        other._scoring.tokenizer = old.tokenizer
        return other

    def with_threshold(self, flag_above: float) -> Self:
        """Return a guard whose last stage alone decides, at another threshold; infinities flag nothing or all."""
        return self.with_options(**self.options.with_threshold(flag_above).to_dict())

    def bind(self, model: Any, tokenizer: Any, *, allow_mismatch: bool = False) -> Self:
        """Prove that the guard belongs to a model, and remember its tokenizer.

        Raises:
            CheckpointError: if it was calibrated with another model, tokenizer or chat template.
        """
        if self.fingerprints is not None and not allow_mismatch:
            check_fingerprint(self.fingerprints, model, tokenizer)
        self._scoring.tokenizer = tokenizer
        return self

    def score(self, tier: str, evidence: Evidence) -> Tensor:
        """Return (B,) scores of a tier, larger for what ought to be refused.

        Raises:
            CheckpointError: if the guard was not fitted for this tier.
        """
        return self._scoring.score(tier, evidence)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return the texts of probes as the numbers that the tier probe scores."""
        return self._scoring.text_features(texts)

    def linear(self, tier: str) -> Linear:
        """Return the linear score of a tier."""
        return self._scoring.scores[tier]

    def new_monitor(self, rows: int) -> Monitor | None:
        """Return what watches the answers of so many rows, or None if none are watched."""
        return self._scoring.new_monitor(rows)

    def with_monitor(self, model: nn.Module, tokenizer: Any, **arguments: Any) -> Self:
        """Return a guard that also watches answers; see `featherweight.guard.monitor_fit.fit_monitor`."""
        from featherweight.guard.monitor_fit import fit_monitor

        score, options, report = fit_monitor(self, model, tokenizer, **arguments)
        other = self.with_options(monitor=options.to_dict())
        other._scoring.scores = {**self._scoring.scores, NAME: score}
        if other.report is not None:
            other.report.sections.extend(report.sections)
        return other

    def probe_text(self, probe_ids: Sequence[int]) -> str:
        """Return the text of probe tokens; "" if the guard is bound to no tokenizer and needs none."""
        return self._scoring.probe_text(probe_ids)

    def judge(self, model: Any, tokenizer: Any, prompts: Sequence[Any], *, batch_size: int = 8) -> list[Verdict]:
        """Return the verdicts of requests, without answers.

        Args:
            model: of the guard, in evaluation mode.
            tokenizer: its own.
            prompts: texts, or lists of messages.
            batch_size: requests that are read together.

        Raises:
            CheckpointError: if the guard belongs to another model.
        """
        if self._scoring.tokenizer is None:
            self.bind(model, tokenizer)
        return judge_all(self, model, tokenizer, prompts, batch_size=batch_size)

    def refusal(self, verdict: Verdict, request: Any = None) -> str:
        """Return the text of the reply to a flagged request, by the option `on_flag`.

        Args:
            verdict: of the request.
            request: what the callback gets of it: messages, or token ids.
        """
        if self.options.on_flag == "callback" and self.callback is not None:
            return self.callback(request, verdict) or self.options.refusal_text
        if self.options.on_flag == "truncate" and verdict.error is None:
            text = f"{self.options.prefix_text} {verdict.probe_text.strip()}"
            ends = [text.rfind(mark) for mark in ".!?"]
            if max(ends) > len(self.options.prefix_text):
                return text[: max(ends) + 1].strip()
        return self.options.refusal_text

    def refusal_ids(self, verdict: Verdict, request: Any = None) -> list[int]:
        """Return the tokens of that text, with the one that ends a reply.

        Raises:
            ConfigError: if the guard is bound to no tokenizer.
        """
        if self._scoring.tokenizer is None:
            raise ConfigError(
                "guard: tokenizer=None, and a flagged request needs the tokens of its refusal; expected the model's "
                "tokenizer. Call guard.bind(model, tokenizer) first."
            )
        ids = list(self._scoring.tokenizer(self.refusal(verdict, request), add_special_tokens=False)["input_ids"])
        return (
            ids if self._scoring.tokenizer.eos_token_id is None else [*ids, int(self._scoring.tokenizer.eos_token_id)]
        )

    @property
    def decoding_loop(self) -> Any:
        """The loop for ``model.generate(..., custom_generate=guard.decoding_loop, guard=guard)``."""
        return decoding_loop
