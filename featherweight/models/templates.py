"""Chat templates: from messages to the token ids that a model sees, and which of them the assistant has said.

The template is the tokenizer's own (Jinja, as transformers keeps it), or one of `TEMPLATES` for a base model that has
none; it becomes the tokenizer's, so that the one that trained is the one that is saved and that a chat client finds.

Which tokens are the assistant's is read off the template itself where it marks them (``{% generation %}``). Elsewhere
the text is rendered up to each answer and through it: what lies between is the answer, with the mark that ends it. That
is proved for each conversation, as some templates rewrite earlier turns when later ones come.
Shapes: L tokens of a conversation.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from featherweight.errors import ConfigError, did_you_mean

Message = Mapping[str, Any]

_ALPACA_PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)

TEMPLATES: dict[str, str] = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% "
        "endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "alpaca": (
        "{{ bos_token or '' }}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'user' %}"
        "{% if loop.first %}{{ '" + _ALPACA_PREAMBLE + "\\n\\n' }}{% endif %}"
        "{{ '### Instruction:\\n' + message['content'] + '\\n\\n### Response:\\n' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
        "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}"
        "{% else %}{{ raise_exception('the template alpaca knows no role ' + message['role']) }}{% endif %}{% endfor %}"
    ),
}
"""Templates for models that have none, by name. Alpaca's begins with its preamble unless a system turn stands there."""


@dataclass(frozen=True)
class EncodedConversation:
    """The tokens of a conversation."""

    ids: tuple[int, ...]
    """(L,)"""
    answer_spans: tuple[tuple[int, int], ...]
    """For each turn of the assistant, the first and the last but one of its tokens, its end mark included."""

    def labels(self, answers: Sequence[int] | None = None, *, ignored: int = -100) -> list[int]:
        """Return the ids of the answers to learn, and `ignored` elsewhere.

        Args:
            answers: which spans, negative from the end; None for all.
            ignored: label of other tokens.
        """
        spans = self.answer_spans if answers is None else [self.answer_spans[index] for index in answers]
        labels = [ignored] * len(self.ids)
        for start, stop in spans:
            labels[start:stop] = self.ids[start:stop]
        return labels


def choose_template(tokenizer: Any, name: str | None, *, where: str = "template") -> str:
    """Give a tokenizer the template that is asked for, and return its text.

    Args:
        tokenizer: of the model; changed if `name` is given.
        name: one of `TEMPLATES`, a text of Jinja, or None for the tokenizer's own.
        where: who asks, for messages.
    Raises:
        ConfigError: for an unknown name, a tokenizer that has no template and gets none, or a named template whose end
            mark the tokenizer does not know as a token.
    """
    if name is None:
        own = tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default")
        if not own:
            raise ConfigError(
                f"{where}: the tokenizer {tokenizer.name_or_path!r} has no chat template (a base model); expected one. "
                f"Choose one: template: {' or '.join(TEMPLATES)}."
            )
        return str(own)
    if name not in TEMPLATES and "{" not in name:
        raise ConfigError(
            f"{where}: template={name!r} is unknown; expected one of {', '.join(TEMPLATES)}, or a text of Jinja. "
            f"{did_you_mean(name, list(TEMPLATES))}"
        )
    text = TEMPLATES.get(name, name)
    if name == "alpaca" and tokenizer.eos_token is None:
        raise ConfigError(
            f"{where}: template=alpaca ends answers with the tokenizer's eos_token, and {tokenizer.name_or_path!r} has "
            "none; expected a tokenizer with one. Set eos_token in its tokenizer_config.json."
        )
    tokenizer.chat_template = text
    return text


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Any] = (),
    add_generation_prompt: bool = False,
    where: str = "template",
) -> str:
    """Return the text of a conversation; `where`, such as file and line, opens messages.

    Raises:
        ConfigError: if the template refuses the messages (it raises, or knows no such role).
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, add_generation_prompt=add_generation_prompt, tokenize=False
        )
    except Exception as error:  # Jinja runs whatever a template says
        roles = ", ".join(str(message["role"]) for message in messages)
        raise ConfigError(
            f"{where}: the chat template of {tokenizer.name_or_path!r} refuses turns of {_shortened(roles)}: {error}; "
            "expected turns that it knows. Change the row, or choose another template."
        ) from error
    return str(text)


def _shortened(roles: str) -> str:
    return roles if len(roles) <= 60 else f"{roles[:57]}..."


def encode_conversation(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Any] = (),
    last_only: bool = False,
    roles: Sequence[str] = ("assistant",),
    where: str = "conversation",
) -> EncodedConversation:
    """Return the token ids of a conversation and where its answers stand.

    Args:
        tokenizer: a fast one, with its template.
        messages: turns, as `apply_chat_template` takes them.
        tools: schemas of functions.
        last_only: look for the last answer alone, as for a template that rewrites earlier ones.
        roles: whose turns count as answers. Of others than the assistant the content counts with the mark that ends it.
        where: file and line, for messages.
    Returns:
        ids are those of ``apply_chat_template(messages, tokenize=True)``, but where one of its tokens reaches from a
        prompt into its answer: there they are those of the prompt and those of the answer.
    Raises:
        ConfigError: if the template raises, or rewrites an earlier turn when later ones come and marks nothing.
    """
    text = render(tokenizer, messages, tools=tools, where=where)
    spans: list[tuple[int, int]] = []
    if "assistant" in roles:
        marked = _marked_spans(tokenizer, messages, tools) if has_marks(tokenizer) else None
        if marked is None:
            answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
            spans = _rendered_spans(tokenizer, messages, answers[-1:] if last_only else answers, tools, text, where)
        else:
            spans = marked[-1:] if last_only else marked
    others = [i for i, message in enumerate(messages) if message["role"] in roles and message["role"] != "assistant"]
    spans = sorted(spans + [_content_span(tokenizer, messages, index, tools, text, where) for index in others])
    ids, offsets = _tokens(tokenizer, text, [start for start, _ in spans])
    return EncodedConversation(tuple(ids), tuple(_token_span(offsets, *span, where) for span in spans))


def _tokens(tokenizer: Any, text: str, answer_starts: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return ids and places of a text, in which no token reaches from a prompt into its answer.

    A tokenizer may join the line break in front of an answer with the blanks that the answer begins with. A model that
    generates is given the prompt alone, so it never sees such a token: there the text is encoded in two parts.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    crossed = [s for s in answer_starts if any(first < s < last for first, last in encoded["offset_mapping"])]
    if not crossed:
        return encoded["input_ids"], encoded["offset_mapping"]
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for start, stop in itertools.pairwise([0, *crossed, len(text)]):
        part = tokenizer(text[start:stop], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids += part["input_ids"]
        offsets += [(first + start, last + start) for first, last in part["offset_mapping"]]
    return ids, offsets


def encode_prompt(tokenizer: Any, messages: Sequence[Message], *, tools: Sequence[Any] = ()) -> list[int]:
    """Return the token ids in front of the next answer."""
    text = render(tokenizer, messages, tools=tools, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def stop_ids(tokenizer: Any) -> list[int]:
    """Return the ids that end an answer under the tokenizer's template: its end mark and the end of text.

    Found by rendering an answer: the special token that follows it.
    """
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if not tokenizer.chat_template:
        return found
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        encoded = encode_conversation(tokenizer, messages)
    except ConfigError:
        return found
    last = encoded.ids[encoded.answer_spans[-1][1] - 1]
    return [last, *(one for one in found if one != last)] if last in _special_ids(tokenizer) else found


def has_marks(tokenizer: Any) -> bool:
    """Say whether the template marks the assistant's words."""
    return "{% generation" in _spaced(choose_template(tokenizer, None))


@lru_cache(maxsize=64)
def _spaced(template: str) -> str:
    return template.replace("{%-", "{%").replace("{%generation", "{% generation")


def _special_ids(tokenizer: Any) -> set[int]:
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def _marked_spans(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any]) -> list[tuple[int, int]] | None:
    """Return the spans of characters that the template marks, one for each answer; None if their number differs."""
    from transformers.utils.chat_template_utils import render_jinja_template

    _, marked = render_jinja_template(
        conversations=[list(messages)],
        tools=list(tools) or None,
        chat_template=choose_template(tokenizer, None),
        return_assistant_tokens_mask=True,
        add_generation_prompt=False,
        **tokenizer.special_tokens_map,
    )
    spans = [(start, stop) for start, stop in marked[0]]
    answers = sum(message["role"] == "assistant" for message in messages)
    return spans if len(spans) == answers else None


def _rendered_spans(
    tokenizer: Any, messages: Sequence[Message], answers: Sequence[int], tools: Sequence[Any], text: str, where: str
) -> list[tuple[int, int]]:
    """Return the spans of characters between what stands before an answer and what stands through it."""
    spans = []
    for index in answers:
        before = render(tokenizer, messages[:index], tools=tools, add_generation_prompt=True)
        through = render(tokenizer, messages[: index + 1], tools=tools)
        if not (text.startswith(through) and through.startswith(before)):
            raise ConfigError(
                f"{where}: the chat template writes turn {index + 1} in another way when later turns follow, and marks "
                "no answers ({% generation %}); expected a template whose text only grows. Train on the last answer "
                "alone (train_on: last), or choose another template."
            )
        spans.append((len(before), len(before) + _end_of_answer(through[len(before) :], messages[index])))
    return spans


def _content_span(
    tokenizer: Any, messages: Sequence[Message], index: int, tools: Sequence[Any], text: str, where: str
) -> tuple[int, int]:
    """Return the span of characters of what a turn of another role than the assistant says, with its end mark."""
    role, content = messages[index]["role"], str(messages[index].get("content") or "").strip()
    try:
        # Some templates know no conversation that begins with nothing; then the turn is looked for from the start.
        before = render(tokenizer, messages[:index], tools=tools, where=where) if index else ""
        through = render(tokenizer, messages[: index + 1], tools=tools, where=where)
    except ConfigError:
        before = through = ""
    said = through[len(before) :] if through.startswith(before) and text.startswith(through) else ""
    if not content or content not in said:
        raise ConfigError(
            f"{where}: the chat template does not write turn {index + 1}, of '{role}', as it stands, so its tokens "
            "cannot be told from others; expected a template that does. Learn the assistant's turns alone (train_on: "
            "assistant), or choose another template."
        )
    return len(before) + said.rfind(content), len(before) + _end_of_answer(said, messages[index])


def _end_of_answer(rendered: str, message: Message) -> int:
    """Return how much of a rendered answer the assistant says: to its end mark, without the white space behind that."""
    content = str(message.get("content") or "")
    place = rendered.rfind(content.strip()) if content.strip() else 0
    end = max(place, 0) + len(content.strip())
    mark = rendered[end:].rstrip()
    return end + len(mark) if mark else len(rendered)


def _token_span(offsets: Sequence[tuple[int, int]], start: int, stop: int, where: str) -> tuple[int, int]:
    """Return the tokens that begin inside of a span of characters."""
    inside = [index for index, (first, last) in enumerate(offsets) if start <= first < stop and last > first]
    if not inside:
        raise ConfigError(f"{where}: an answer has no token; expected some text in it. Correct the row.")
    return inside[0], inside[-1] + 1
