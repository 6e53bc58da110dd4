"""The guard in front of one answer after another, as `featherweight.models.chat` asks for it."""

from typing import Any

from featherweight.guard.decoding import read_probe
from featherweight.guard.probe import Probe
from featherweight.guard.reading import all_stops
from featherweight.guard.room import require_room
from featherweight.guard.verdict import Verdict
from featherweight.models.generation import Decoding, branch


class Gate:
    """Judges a prompt that was read, before its answer begins.

    Args:
        guard: bound to the tokenizer.
        model: of the guard.
        tokenizer: its own.
        request: what a callback of the guard gets.
        text: judged as the turn of a user instead of what was read, which has no chat template around it.
    """

    def __init__(self, guard: Any, model: Any, tokenizer: Any, *, request: Any = None, text: str | None = None) -> None:
        self.verdict: Verdict | None = None
        """Of the last prompt."""
        self._guard, self._model, self._request = guard, model, request
        self._tokenizer, self._text = tokenizer, text
        self._stops = all_stops(model, tokenizer)

    @property
    def needs_hidden(self) -> bool:
        """Whether the prompt must be read with hidden states."""
        return bool(self._guard.options.needs_hidden)

    def __call__(self, decoding: Decoding) -> str | None:
        """Return the text of the reply if the prompt is flagged, otherwise None; the decoding stays where it is.

        Raises:
            ConfigError: if the prompt leaves no room for the probe.
        """
        self.verdict = self._judged(decoding)
        if not self.verdict.flagged or self._guard.options.on_flag == "annotate":
            return None
        return str(self._guard.refusal(self.verdict, self._request))

    def _judged(self, decoding: Decoding) -> Verdict:
        if self._text is not None:
            verdict: Verdict = self._guard.judge(self._model, self._tokenizer, [self._text])[0]
            return verdict
        require_room(self._model, decoding.length, self._guard)
        probe = Probe(self._guard, 1, self._stops)
        probe.read_prompt(decoding.logits, decoding.hidden_states)
        if not probe.is_decided:
            with branch(decoding) as trial:
                read_probe(trial, probe, self._guard.options.forced_ids)
        return probe.verdicts[0]
