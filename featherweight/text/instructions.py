"""Instruction data: the task format of LLM-Adapters, its prompt, and how an answer is read out of generated text.

A file is a list of objects with `instruction`, `input`, `output` and `answer` (JSON or JSON lines). Commonsense tasks
end their instruction with a line "Answer format: a/b/..."; arithmetic ones have a number as answer or, for AQuA, a
letter.
Source: arXiv 2304.01933; the prompt and the extraction rules are those of its code and of arXiv 2412.06289.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.text.packing import IGNORED_LABEL

Template = Literal["alpaca", "official"]

_PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_ANSWER_FORMAT = re.compile(r"Answer format:\s*(.+?)\s*$", re.IGNORECASE)

_GSM8K_ANSWER = re.compile(r"\n#### ?(-?[$\d][\d.,]*)\s*\Z")
"""The last line of a solution of GSM8K."""

CONTAMINATED_BY_MATH_10K = ("AddSub", "MultiArith", "SingleEq")
"""Test sets whose questions stand in MAWPS, which math_10k trains on; report them apart, if at all."""


@dataclass(frozen=True)
class Instruction:
    """One question with its wanted response."""

    instruction: str
    output: str
    """The whole response."""
    answer: str
    """What counts: an option, a number or a letter."""
    texts: tuple[str, ...] = ()
    """Of a cloze question: the texts among which `output` is the right one."""

    @property
    def options(self) -> list[str]:
        """The options of a multiple-choice question, in the words of its instruction; empty for other questions."""
        found = _ANSWER_FORMAT.search(self.instruction)
        return [option.strip() for option in found[1].split("/")] if found else []


def load_instructions(path: str | os.PathLike[str]) -> list[Instruction]:
    """Read a file of instructions.

    Args:
        path: JSON or JSON lines. The question may stand under input (if not empty), instruction, prompt, question,
            Problem or problem; the response under output, answer, Rationale, rationale, solution. Both stay as they
            stand, but for a last line of GSM8K ("#### 72"), which is the answer and no part of the response.
    Raises:
        ConfigError: if the file cannot be read, is empty, or a row has no question or response, or text that this task
            would not train on; rows count from 1, blank lines are none.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"load_instructions: path={path} cannot be read ({error}); expected a file of JSON or JSON lines. Check "
            "the path."
        ) from error
    if text.lstrip().startswith("["):
        rows = _parse(text, path, 1)
    else:
        rows = [_parse(line, path, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise ConfigError(f"load_instructions: path={path} is empty; expected one row or more. Fill the file.")
    return [_instruction(entry, number, path) for number, entry in enumerate(rows, 1)]


def _parse(text: str, path: Any, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"load_instructions: path={path} is no JSON at line {first_line + error.lineno - 1}, column {error.colno} "
            f"({error.msg}); expected a list of objects, or one object on each line. Correct the line."
        ) from error


_QUESTIONS = ("input", "instruction", "prompt", "question", "Problem", "problem", "original_text")
_RESPONSES = ("output", "answer", "Rationale", "rationale", "solution", "ans")
_FACTS = ("segmented_text", "equation", "Equation", "options", "correct", "category", "id")
"""Columns of the sets of LLM-Adapters that say nothing that a model should read."""


def _instruction(entry: Any, number: int, path: Any) -> Instruction:
    where = f"load_instructions: row={number} of {path}"
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"{where} is a {type(entry).__name__}; expected an object with an instruction and an output. Correct the "
            "row."
        )
    lost = [key for key, value in entry.items() if key not in (*_QUESTIONS, *_RESPONSES, *_FACTS) and value]
    if lost and not isinstance(entry[lost[0]], int | float | bool):
        task = "preference" if {"chosen", "rejected"} & set(entry) else "chat"
        raise ConfigError(
            f"{where} has the column {lost[0]!r}, which the task instructions would not train on; expected an "
            f"instruction and an output alone. Use the task {task}, which knows more formats, or remove the column."
        )
    question = _first(entry, _QUESTIONS, where)
    if entry.get("instruction") and entry.get("input"):
        question = f"{entry['instruction']}\n\n{entry['input']}"
    response = _first(entry, _RESPONSES, where)
    if question is None or response is None:
        lacking = "question" if question is None else "response"
        raise ConfigError(
            f"{where} has the keys {sorted(entry)} and no {lacking} among them; expected an instruction and an output "
            "that are not empty. Rename the keys, or fill or remove the row."
        )
    answer = entry.get("answer")
    final = _GSM8K_ANSWER.search(response)
    if final is not None:
        return Instruction(question, response[: final.start()], final[1])
    return Instruction(question, response, str(response if answer is None else answer).strip())


def as_cloze(example: Instruction) -> Instruction | None:
    """Return a multiple-choice question whose options are their texts instead of their numbers, or None if it has none.

    The small models that a laptop fine-tunes choose between "answer1" and "answer2" as by dice, but find the right text
    more probable than the others.

    Example:
        >>> text = "Choose: What is red? Answer1: a cloud Answer2: blood Answer format: answer1/answer2"
        >>> as_cloze(Instruction(text, "the correct answer is answer2", "answer2")).output
        'blood'
    """
    names = example.options
    question = _ANSWER_FORMAT.sub("", example.instruction)
    parts = (
        re.split("|".join(rf"\b{re.escape(name)}:" for name in names), question, flags=re.IGNORECASE) if names else []
    )
    if len(parts) != len(names) + 1 or example.answer not in names:
        return None
    stem = parts[0].partition(": ")[2].strip() or parts[0].strip()
    texts = [part.strip() for part in parts[1:]]
    return Instruction(stem, texts[names.index(example.answer)], example.answer, tuple(texts))


def _first(entry: Mapping[str, Any], keys: Sequence[str], where: str) -> str | None:
    key = next((key for key in keys if entry.get(key) not in (None, "")), None)
    if key is None:
        return None
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(
            f"{where} holds a {type(value).__name__} under {key!r}; expected a text. Correct the row, or use the task "
            "chat, which reads lists of messages."
        )
    return str(value)


def prompt_of(instruction: str, template: Template = "alpaca", *, for_training: bool = True) -> str:
    """Return the text in front of a response.

    Args:
        instruction: the question.
        template: alpaca is one text for training and evaluation; official has the two different ones of the paper's
            code, to reproduce its numbers.
        for_training: which of the two official texts.
    Example:
        >>> prompt_of("Name a colour.").splitlines()[-1]
        '### Response:'
    """
    if template == "alpaca":
        return f"{_PREAMBLE}\n\n### Instruction:\n{instruction}\n\n### Response:\n"
    if for_training:
        return f"<s> {_PREAMBLE}  \n\n### Instruction:\n{instruction}\n{' ' * 16}\n### Response:\n"
    return f"<s> {_PREAMBLE} \n\n### Instruction:\n{instruction}\n\n### Response:\n"


def encode_instruction(
    example: Instruction, tokenizer: Any, *, max_tokens: int = 2048, template: Template = "alpaca"
) -> dict[str, list[int]]:
    """Return token ids and labels of one example; only the response and the end-of-text token count.

    Args:
        example: question and response.
        tokenizer: of the model; its own begin-of-text token is used if it has one.
        max_tokens: longer examples lose tokens at the end.
        template: see `prompt_of`.
    """
    prompt = prompt_tokens(example.instruction, tokenizer, template=template)
    space = " " if template == "official" else ""
    response = tokenizer(f"{example.output}{space}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    ids = [*prompt, *response][:max_tokens]
    return {"input_ids": ids, "labels": [IGNORED_LABEL] * min(len(prompt), max_tokens) + ids[len(prompt) :]}


def prompt_tokens(
    instruction: str, tokenizer: Any, *, template: Template = "alpaca", for_training: bool = True
) -> list[int]:
    """Return the token ids of a prompt."""
    text = prompt_of(instruction, template, for_training=for_training)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    has_begin = template == "alpaca" and tokenizer.bos_token_id is not None
    return [tokenizer.bos_token_id, *ids] if has_begin else list(ids)


def pad_batch(examples: Sequence[Mapping[str, Sequence[int]]], pad: int) -> dict[str, Tensor]:
    """Join examples into tensors (B, L), padded behind their end: input_ids, labels and attention_mask."""
    length = max(len(example["input_ids"]) for example in examples)
    ids = torch.full((len(examples), length), pad)
    labels = torch.full((len(examples), length), IGNORED_LABEL)
    mask = torch.zeros((len(examples), length), dtype=torch.int64)
    for row, example in enumerate(examples):
        count = len(example["input_ids"])
        ids[row, :count] = torch.tensor(example["input_ids"])
        labels[row, :count] = torch.tensor(example["labels"])
        mask[row, :count] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


# ---- answers in generated text ---------------------------------------------------------------------------------------


def extract_option(text: str, options: Sequence[str]) -> str | None:
    """Return the option that a response names first, or None.

    Example:
        >>> extract_option("The correct answer is Answer2, not answer1.", ["answer1", "answer2"])
        'answer2'
    """
    found = re.search("|".join(re.escape(option.lower()) for option in options), text.lower()) if options else None
    return found[0] if found else None


def extract_number(text: str) -> float | None:
    """Return the last number of a response, or None.

    Example:
        >>> extract_number("So 3 * 400 = 1,200. The answer is 1,200.")
        1200.0
    """
    found = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    return float(found[-1]) if found else None


def extract_letter(text: str, *, official: bool = False) -> str | None:
    """Return the letter from A to E that a response gives as its answer, or None.

    Args:
        text: the response.
        official: take the first of these letters anywhere, as the paper's code does; that takes the article "A" for an
            answer.
    Example:
        >>> extract_letter("A train needs 3 hours. The answer is C."), extract_letter("A train", official=True)
        ('C', 'A')
    """
    if official:
        found = re.search("[A-E]", text)
        return found[0] if found else None
    marked = re.findall(r"(?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([A-E])\b", text, re.IGNORECASE)
    if marked:
        return str(marked[-1]).upper()
    alone = re.findall(r"\(([A-E])\)|\b([A-E])[).](?:\s|$)", text)
    return next((letter for pair in reversed(alone) for letter in pair if letter), None)


def is_correct(example: Instruction, response: str) -> bool:
    """Tell whether a response gives the answer of an example: its option, its letter, or its number within 0.001."""
    if example.options:
        return extract_option(response, example.options) == example.answer.lower()
    if re.fullmatch("[A-E]", example.answer):
        return extract_letter(response) == example.answer
    wanted, found = extract_number(example.answer), extract_number(response)
    return wanted is not None and found is not None and abs(wanted - found) <= 1e-3
