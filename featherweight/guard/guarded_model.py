"""`GuardedModel`: a model that answers as before, except that it refuses what its guard flags."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from featherweight.errors import ConfigError
from featherweight.guard.decoding_loop import decoding_loop
from featherweight.guard.ensemble import GuardEnsemble
from featherweight.guard.gate import Gate
from featherweight.guard.guard import PrefixGuard
from featherweight.guard.prefix import answer_ids
from featherweight.guard.verdict import Verdict
from featherweight.models.chat import AnswerOptions, Writer
from featherweight.models.templates import stop_ids


class GuardedModel:
    """A causal language model behind a guard; other attributes are the model's.

    Args:
        model: of transformers, also inside PEFT, quantised or compressed; put into evaluation mode.
        tokenizer: its own, with a chat template.
        guard: calibrated for it, or an ensemble.
        allow_mismatch: use a guard of another model all the same.

    Raises:
        CheckpointError: if the guard was calibrated with another model, tokenizer or chat template.
    """

    def __init__(
        self, model: Any, tokenizer: Any, guard: PrefixGuard | GuardEnsemble, *, allow_mismatch: bool = False
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.guard = guard.bind(model, tokenizer, allow_mismatch=allow_mismatch)
        self.verdict: Verdict | None = None
        """Of the last request to `chat` or `stream`."""

    def generate(self, *arguments: Any, return_guard: bool = False, **options: Any) -> Any:
        """Generate like the model's own `generate`, with its arguments and its return value.

        Args:
            arguments: passed on.
            return_guard: return transformers' output object with an attribute `guard`: a list of verdicts.
            options: passed on.

        Raises:
            ConfigError: with beams or an assistant.
        """
        if "custom_generate" in options:
            raise ConfigError("guard: custom_generate is the guard's own way in; expected none. Leave it out.")
        if options.get("assistant_model") is not None:
            raise ConfigError("guard: assistant_model chooses several tokens at once; expected none. Leave it out.")
        if options.get("streamer") is not None:
            options["guard_streamer"] = options.pop("streamer")
        if return_guard:
            options["return_dict_in_generate"] = True
        return self.model.generate(*arguments, custom_generate=decoding_loop, guard=self.guard, **options)

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Return the reply to a conversation; `verdict` tells what the guard said."""
        return "".join(self.stream(messages, **options))

    def stream(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Generator[str]:
        """Yield the reply to a conversation in pieces; none before the verdict.

        Args:
            messages: turns. If the last one is the assistant's, the answer goes on from it, and is judged without it.
            options: those of `featherweight.models.chat.AnswerOptions`.
        """
        prompt_ids, begun_ids = answer_ids(self.tokenizer, messages)
        gate = Gate(self.guard, self.model, self.tokenizer, request=list(messages))
        writer = Writer(self.model, self.tokenizer, AnswerOptions(**options), stops=stop_ids(self.tokenizer), gate=gate)
        self.verdict = None
        for piece in writer.write(prompt_ids, begun_ids):
            self.verdict = gate.verdict
            yield piece
        self.verdict = gate.verdict

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)
