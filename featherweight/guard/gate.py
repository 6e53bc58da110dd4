"""The guard in front of one answer after another, as `featherweight.models.chat` asks for it."""

from typing import Any

from featherweight.guard.decoding import AnswerRules, Judged, continue_refusal, read_probe
from featherweight.guard.monitor import Monitor
from featherweight.guard.probe import Probe
from featherweight.guard.reading import all_stops
from featherweight.guard.room import probe_limit
from featherweight.guard.verdict import Verdict
from featherweight.models.generation import Decoding, branch


class Gate:
    """Judges a prompt that was read, before its answer begins.

    Args:
        guard: or an ensemble, bound to the tokenizer.
        model: of the guard.
        tokenizer: its own.
        request: what a callback of the guard gets.
        max_new_tokens: of a refusal that the model writes itself, with `on_flag: continue`.
        text: judged as the turn of a user instead of what was read, which has no chat template around it.
    """

    def __init__(
        self,
        guard: Any,
        model: Any,
        tokenizer: Any,
        *,
        request: Any = None,
        text: str | None = None,
        max_new_tokens: int = 128,
    ) -> None:
        self.verdict: Verdict | None = None
        """Of the last prompt."""
        self._guard, self._model, self._request = guard, model, request
        self._tokenizer, self._text = tokenizer, text
        self._stops, self._max_new_tokens = all_stops(model, tokenizer), max_new_tokens
        self._monitor: Monitor | None = None

    @property
    def needs_hidden(self) -> bool:
        """Whether the prompt must be read with hidden states."""
        return any(one.options.needs_hidden for one in self._guard.members)

    def __call__(self, decoding: Decoding) -> str | None:
        """Return the text of the reply if the prompt is flagged, otherwise None; the decoding stays where it is.

        Raises:
            ConfigError: if the prompt leaves no room for the probe.
        """
        self.verdict = self._judged(decoding)
        self._monitor = self._guard.new_monitor(1)
        if not self.verdict.flagged or self._guard.options.on_flag == "annotate":
            return None
        if self._guard.options.on_flag == "continue" and self.verdict.error is None and self._text is None:
            rules = AnswerRules(max_new_tokens=self._max_new_tokens, stop_token_ids=self._stops)
            judged = Judged(decoding, [self.verdict], [0])
            found = continue_refusal(judged, 0, self.verdict, self._guard, rules, self._guard.new_monitor(1))
            if found:
                return str(self._tokenizer.decode(found, skip_special_tokens=True)).strip()
        return str(self._guard.refusal(self.verdict, self._request))

    @property
    def hold_back(self) -> int:
        """So many of the newest tokens of an answer wait for what `check` says; 0 checks none."""
        monitor = self._guard.new_monitor(1)
        return 0 if monitor is None else int(monitor.hold_back)

    def check(self, decoding: Decoding) -> str | None:
        """Return what ends an answer, whose newest token was read with hidden states, or None to go on."""
        if self._monitor is None or decoding.hidden_states is None or not self._monitor.read(decoding.hidden_states)[0]:
            return None
        return f" {self._guard.options.refusal_text}"

    def _judged(self, decoding: Decoding) -> Verdict:
        if self._text is not None:
            verdict: Verdict = self._guard.judge(self._model, self._tokenizer, [self._text])[0]
            return verdict
        verdicts = [self._verdict_of(self._guard.members[place], decoding) for place in self._guard.draw()]
        combined: Verdict = self._guard.combine(verdicts)
        return combined

    def _verdict_of(self, member: Any, decoding: Decoding) -> Verdict:
        probe = Probe(member, 1, self._stops, limits=[probe_limit(self._model, decoding.length, member)])
        probe.read_prompt(decoding.logits, decoding.hidden_states, decoding.tokens)
        if not probe.is_decided:
            with branch(decoding) as trial:
                read_probe(trial, probe, member.options.forced_ids)
        return probe.verdicts[0]
