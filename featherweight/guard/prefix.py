"""The forced prefix as tokens: everywhere the same ids, so that the prompt that was read stays in front of it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from featherweight.errors import ConfigError
from featherweight.models.templates import choose_template, encode_prompt, render

Message = Mapping[str, Any]

_THINKING = re.compile(r"<\s*(think|thinking|reasoning|thought)\s*>\s*$", re.IGNORECASE)
_CHECKED = (
    "Hello",
    "What is the capital of France?",
    "a",
    "1 + 1 =",
    "Grüße aus Köln",
    "日本語",
    "Tell me a story.",
    "print('x')",
    "",
    "?!",
    "It ends with a blank ",
    "two\nlines",
    "😀",
    "UPPER CASE",
    "a/b/c.txt",
    "I'm",
)


def require_chat_template(tokenizer: Any) -> None:
    """Refuse a tokenizer without a chat template: a guard forces the opening of a reply, and needs to know where it is.

    Raises:
        ConfigError: if there is none.
    """
    choose_template(tokenizer, None, where="guard")


def judged_messages(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation that is judged: without the beginning of an answer that the caller has put at its end.

    Such a beginning would steer the probe, too.
    """
    kept = list(messages)
    while kept and kept[-1].get("role") == "assistant":
        kept.pop()
    return kept


def answer_ids(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """Return the tokens in front of the reply, and those of its beginning if the caller gives one.

    Raises:
        ConfigError: if nothing but answers is there, or the template refuses the turns.
    """
    judged = judged_messages(messages)
    if not judged:
        raise ConfigError("conversation: messages hold no turn of a user; expected at least one. Add what is asked.")
    begun = "".join(str(message.get("content") or "") for message in messages[len(judged) :])
    ids = list(tokenizer(begun, add_special_tokens=False)["input_ids"]) if begun else []
    return encode_prompt(tokenizer, judged), ids


def prefix_ids(tokenizer: Any, text: str, *, preamble: str = "") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens of a preamble and of a prefix behind any prompt of the tokenizer's template.

    Raises:
        ConfigError: if the prefix is empty or ends with white space, or the template opens a thinking block and no
            preamble closes it.
    """
    require_chat_template(tokenizer)
    if not text.strip() or text != text.rstrip():
        raise ConfigError(
            f"guard: prefix={text!r} {'is empty' if not text.strip() else 'ends with white space'}; expected the "
            'opening of a reply that ends with a word. Write "I\'m sorry, but I cannot".'
        )
    opened = render(tokenizer, [{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    if _THINKING.search(opened) and not preamble:
        raise ConfigError(
            f"guard: the chat template ends with {opened.rstrip()[-12:]!r}, so a prefix would land in a block of "
            "thoughts; expected preamble_text to close it. Give preamble_text, such as '</think>\\n\\n'."
        )
    preamble_ids = _behind_prompts(tokenizer, preamble, "") if preamble else ()
    return preamble_ids, _behind_prompts(tokenizer, text, preamble)


def _behind_prompts(tokenizer: Any, text: str, before: str) -> tuple[int, ...]:
    """Return the ids of a text behind prompts; encoded alone where a token would reach over the boundary."""
    alone = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    found = set()
    for content in _CHECKED:
        prompt = render(tokenizer, [{"role": "user", "content": content}], add_generation_prompt=True) + before
        base = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        full = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
        found.add(tuple(full[len(base) :]) if full[: len(base)] == base else alone)
    return found.pop() if len(found) == 1 else alone
