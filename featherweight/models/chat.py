"""Answers of a model as text, piece by piece: continuations of a prompt, and conversations of several turns.

The words in front of an answer are the template's (`featherweight.models.templates`), the tokens those of
`featherweight.models.generation`; here tokens become text as soon as they are whole characters. Nothing here knows a
terminal.
"""

import time
from collections import deque
from collections.abc import Collection, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pydantic import Field

from featherweight.errors import ConfigError
from featherweight.models.generation import Decoding, extend, prefill, stop_token_ids_of, stream
from featherweight.models.sampling import Sampling
from featherweight.models.templates import choose_template, encode_prompt, stop_ids

PREFILL_TOKENS = 1024
"""A prompt is read in parts of this size, which bounds the memory of its activations."""


class AnswerOptions(Sampling):
    """How an answer is made. The default takes the likeliest token each time and draws no random numbers."""

    max_new_tokens: int = Field(default=512, ge=1)
    """An answer has at most so many tokens."""
    seed: int = Field(default=0, ge=0)
    """Of the random numbers, which only a temperature above 0 draws: the same seed, the same words."""


@dataclass(frozen=True)
class AnswerFacts:
    """What an answer took."""

    prompt_tokens: int
    """Tokens in front of it, those known from earlier turns included."""
    new_tokens: int
    """Its own, the mark that ends it included."""
    seconds: float
    """From the question to its last token."""
    is_cut: bool
    """It ended because of `max_new_tokens` or of the model's context, or was interrupted; not by the model itself."""

    @property
    def tokens_per_s(self) -> float:
        """Its own tokens by all of its time."""
        return self.new_tokens / self.seconds if self.seconds > 0 else 0.0


class Gate(Protocol):
    """What may refuse a prompt before its answer begins, such as a guard."""

    @property
    def needs_hidden(self) -> bool:
        """Whether the prompt must be read with hidden states."""
        ...

    def __call__(self, decoding: Decoding) -> str | None:
        """Return the reply of a prompt that was read and is refused, otherwise None; the decoding stays as it is."""
        ...

    @property
    def hold_back(self) -> int:
        """So many of the newest tokens of an answer wait for what `check` says; 0 checks none."""
        ...

    def check(self, decoding: Decoding) -> str | None:
        """Return what ends an answer, whose newest token was read with hidden states, or None to go on."""
        ...


class Writer:
    """A model that continues token ids as text, and knows what it has read before.

    Args:
        model: a causal language model; put into evaluation mode.
        tokenizer: its own.
        options: how tokens are chosen.
        stops: the tokens that end a text.
        gate: asked before each answer.

    Example:
        >>> from featherweight.models import load_model, load_tokenizer
        >>> writer = Writer(load_model("tiny"), load_tokenizer("tiny"), AnswerOptions(max_new_tokens=3))
        >>> len("".join(writer.write([72, 105]))) <= 3, writer.facts.prompt_tokens
        (True, 2)
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        options: AnswerOptions | None = None,
        *,
        stops: Collection[int] = (),
        gate: Gate | None = None,
    ) -> None:
        self.options = options or AnswerOptions()
        self._gate = gate
        self.facts = AnswerFacts(0, 0, 0.0, False)
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._stops = {*stops, *stop_token_ids_of(model)}
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._generator = torch.Generator(next(model.parameters()).device).manual_seed(self.options.seed)
        self._decoding: Decoding | None = None

    def write(self, prompt_ids: Sequence[int], begun_ids: Sequence[int] = ()) -> Generator[str]:
        """Continue a prompt.

        What was read and written before is not read again where the prompt begins with it.

        Args:
            prompt_ids: at least one token.
            begun_ids: how the answer begins, which the gate does not see.

        Yields:
            Pieces of text, none empty, of whole characters, special tokens left out. `facts` tells afterwards, also
            when the caller stops early, what they took.

        Raises:
            ConfigError: if the prompt fills the model's context.
        """
        prompt_ids = list(prompt_ids)
        self.facts = AnswerFacts(len(prompt_ids), 0, 0.0, False)
        room = self.options.max_new_tokens
        if self._context is not None:
            room = min(room, self._context - len(prompt_ids) - len(begun_ids))
        if room < 1:
            raise ConfigError(
                f"generate: prompt={len(prompt_ids)} tokens fill the model's context of {self._context} tokens; "
                "expected fewer. Shorten the prompt, or begin a new conversation (/reset)."
            )
        begin, count, is_cut = time.perf_counter(), 0, True
        # Kept again only when all of this went well: an interrupt may have left half a token in the cache.
        decoding, self._decoding = self._decoding, None
        text, held = GrowingText(self._tokenizer), 0 if self._gate is None else self._gate.hold_back
        try:
            decoding = self._read(decoding, prompt_ids)
            if self._gate is not None and (refusal := self._gate(decoding)) is not None:
                count, is_cut, self._decoding = len(self._tokenizer(refusal)["input_ids"]), False, decoding
                yield refusal
                return
            if begun_ids:
                extend(decoding, torch.tensor(list(begun_ids)))
            tokens = stream(
                decoding,
                max_new_tokens=room,
                sampling=Sampling(**{name: getattr(self.options, name) for name in Sampling.model_fields}),
                generators=self._generator,
                stop_token_ids=self._stops,
                output_hidden_states=held > 0,
            )
            waiting, start = deque[int](), decoding.length
            for token in tokens:
                count += 1
                if held and decoding.length > start and (refusal := self._checked(decoding)) is not None:
                    yield refusal
                    return
                waiting.append(int(token))
                if int(token) in self._stops:
                    is_cut = False
                elif len(waiting) > held and (piece := text.add(waiting.popleft())):
                    yield piece
            for one in waiting:
                if one not in self._stops and (piece := text.add(one)):
                    yield piece
            if rest := text.rest():
                yield rest
            self._decoding = decoding
        finally:
            self.facts = AnswerFacts(len(prompt_ids), count, time.perf_counter() - begin, is_cut)

    def forget(self) -> None:
        """Drop what was read, and begin the random numbers anew."""
        self._decoding = None
        self._generator.manual_seed(self.options.seed)

    def _checked(self, decoding: Decoding) -> str | None:
        return None if self._gate is None else self._gate.check(decoding)

    def _read(self, known: Decoding | None, prompt_ids: list[int]) -> Decoding:
        hidden = self._gate is not None and self._gate.needs_hidden
        if known is not None:
            before = known.token_ids[0].tolist()
            if len(before) < len(prompt_ids) and prompt_ids[: len(before)] == before:
                extend(known, torch.tensor(prompt_ids[len(before) :]), output_hidden_states=hidden)
                return known
        return prefill(self._model, torch.tensor([prompt_ids]), chunk_size=PREFILL_TOKENS, output_hidden_states=hidden)


class Chat:
    """A conversation of several turns.

    Args:
        model: a causal language model.
        tokenizer: its own, with a chat template.
        system: the text of the system turn; None: whatever the template puts there.
        options: how answers are made.
        gate: asked before each answer.

    Raises:
        ConfigError: if the tokenizer has no template.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        system: str | None = None,
        options: AnswerOptions | None = None,
        gate: Gate | None = None,
    ) -> None:
        choose_template(tokenizer, None, where="chat")
        self._tokenizer = tokenizer
        self._system = system
        self._writer = Writer(model, tokenizer, options, stops=stop_ids(tokenizer), gate=gate)
        self.messages: list[dict[str, str]] = self._opening()

    @property
    def facts(self) -> AnswerFacts:
        """What the last answer took."""
        return self._writer.facts

    def ask(self, question: str) -> Generator[str]:
        """Answer the next turn of the user.

        Args:
            question: what the user says.

        Yields:
            Pieces of the answer. Question and answer stand in `messages` as soon as the caller stops, an answer that
            was cut short as far as it came. If nothing was answered, neither stands there.

        Raises:
            ConfigError: if the template refuses the turns, or they fill the model's context.
        """
        messages = [*self.messages, {"role": "user", "content": question}]
        prompt_ids = encode_prompt(self._tokenizer, messages)
        pieces: list[str] = []
        try:
            with closing(self._writer.write(prompt_ids)) as answer:
                for piece in answer:
                    pieces.append(piece)
                    yield piece
        finally:
            if self._writer.facts.new_tokens:
                self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

    def reset(self) -> None:
        """Begin a new conversation, with the same system turn and the same seed."""
        self.messages = self._opening()
        self._writer.forget()

    def _opening(self) -> list[dict[str, str]]:
        return [] if self._system is None else [{"role": "system", "content": self._system}]


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text that is to be continued: without the token that would end it.

    Raises:
        ConfigError: if there is none and the tokenizer has none to begin with.
    """
    ids = list(tokenizer(text)["input_ids"])
    while ids and ids[-1] == tokenizer.eos_token_id and text:
        ids.pop()
    if not ids:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if first is None:
            raise ConfigError("generate: prompt='' has no token; expected some text. Give a prompt.")
        ids = [int(first)]
    return ids


class GrowingText:
    """Text that grows by tokens and is handed out in whole characters.

    A token is decoded behind the ones before it, as many tokenizers write a blank only between words; what was handed
    out is decoded twice at most, so a long answer costs no more by the token than a short one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # the first token that is decoded
        self._shown = 0  # tokens that are handed out

    def add(self, token_id: int) -> str:
        """Return what the next token adds; nothing in the middle of a character."""
        self._ids.append(token_id)
        piece = self._new()
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return piece

    def rest(self) -> str:
        """Return what was held back, a broken character included."""
        return self._new() if self._shown < len(self._ids) else ""

    def _new(self) -> str:
        before = self._decode(self._ids[self._context : self._shown])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        # The clean-up of old tokenizers takes blanks away again that were handed out.
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
