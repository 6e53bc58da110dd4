"""The tokenizer of a GGUF file: byte-level BPE, as GPT-2, SmolLM2 and Llama 3 have it.

llama.cpp cuts a text into words by a rule of its own that the file only names; a tokenizer is written only if its rule
is one of those, so that the engine sees the tokens that the model was trained on.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from featherweight.errors import ConfigError
from featherweight.models.templates import stop_ids

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of tokens."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_SPLITS = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}


@dataclass(frozen=True)
class GgufTokenizer:
    """What stands in the file."""

    pre: str
    """llama.cpp's name of the rule that cuts a text into words."""
    tokens: list[str]
    types: list[int]
    merges: list[str]
    ids: dict[str, int]
    """Special tokens: bos, eos, eot, unknown, padding."""
    adds_bos: bool
    template: str | None
    """The chat template, without marks that only training reads."""


def read_tokenizer(tokenizer: Any, rows: int, *, where: str) -> GgufTokenizer:
    """Return what a GGUF file says of a tokenizer.

    Args:
        tokenizer: a fast one of transformers.
        rows: of the model's embedding; tokens that the tokenizer lacks are written as unused.
        where: its name, for messages.

    Raises:
        ConfigError: if it is no byte-level BPE that llama.cpp knows, or has more tokens than the model.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = (
        json.loads(backend.to_str()) if backend is not None else {"model": {"type": type(tokenizer).__name__}}
    )
    model, normalizer = content["model"], content.get("normalizer")
    pre = _rule(content.get("pre_tokenizer"))
    if pre == "qwen2" and normalizer == {"type": "NFC"}:
        normalizer = None  # llama.cpp leaves it out, too: text is nearly always in this form already
    if model["type"] != "BPE" or pre is None or normalizer is not None or not model.get("merges"):
        found = f"{model['type']}, pre-tokenizer {_describe(content.get('pre_tokenizer'))}"
        raise ConfigError(
            f"export: tokenizer={where} ({found}{', normalizer' if normalizer else ''}"
            f"{'' if model.get('merges') else ', no merges'}) is none that a GGUF file can name; expected a byte-level "
            "BPE as GPT-2, SmolLM2, Llama 3 or Qwen 2 have. Write a dense copy: --to hf:bf16."
        )
    if len(tokenizer) > rows:
        raise ConfigError(
            f"export: tokenizer={where} has {len(tokenizer)} tokens, and the model's embedding {rows} rows; expected "
            "no more. Give the tokenizer that the model was trained with."
        )
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [UNUSED] * rows
    for token, index in model["vocab"].items():
        tokens[index], types[index] = token, NORMAL
    for index, added in tokenizer.added_tokens_decoder.items():
        tokens[index], types[index] = added.content, CONTROL if added.special else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return GgufTokenizer(
        pre,
        tokens,
        types,
        merges,
        _special_ids(tokenizer),
        tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id],
        None if template is None else without_marks(template),
    )


def without_marks(template: str) -> str:
    """Return a template without its {% generation %} marks, which only transformers knows; white space stays."""
    return re.sub(r"{%(-?)\s*(?:end)?generation\s*(-?)%}", r"{#\1 \2#}", template)


def _special_ids(tokenizer: Any) -> dict[str, int]:
    stops = stop_ids(tokenizer)
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "eot": stops[0] if stops and stops[0] != tokenizer.eos_token_id else None,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    return {name: int(value) for name, value in ids.items() if value is not None}


def _rule(pre_tokenizer: Any) -> str | None:
    """Return llama.cpp's name of a pre-tokenizer; None if it has none."""
    match _steps(pre_tokenizer):
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return "gpt-2"
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ]:
            return "smollm"
        case [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return _SPLITS.get(pattern)
    return None


def _steps(pre_tokenizer: Any) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    return list(pre_tokenizer["pretokenizers"]) if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _describe(pre_tokenizer: Any) -> str:
    return " + ".join(step["type"] for step in _steps(pre_tokenizer)) or "none"
