"""What a finished model can do, measured on local data: held-out loss and perplexity, multiple choice by likelihood."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.config import Config
from featherweight.errors import ConfigError
from featherweight.models.tokenizer import Tokenizer
from featherweight.report import Report
from featherweight.text.compress import token_stream
from featherweight.text.multiple_choice import option_scores
from featherweight.text.perplexity import describe_protocol, perplexity
from featherweight.text.questions import Question, read_questions

PROMPT = "Question: {question}\nAnswer:"
"""Around a question; a choice follows after a space."""


class TextResult(Config):
    """How well a model predicts a text."""

    loss: float | None
    """Nats per token; None if it is not finite."""
    perplexity: float | None
    """Its exponential."""
    bits_per_byte: float | None
    """The same per byte of the text, which does not depend on the tokenizer."""
    tokens: int
    protocol: str
    """How it was measured."""


class ChoiceResult(Config):
    """How many questions a model answers right, by likelihood."""

    accuracy: float
    """Share of questions whose right choice has the largest probability."""
    accuracy_norm: float
    """The same with the logarithm divided by the bytes of the choice, so that long ones are not at a disadvantage."""
    stderr: float
    """Standard error of `accuracy`."""
    chance: float
    """Accuracy of guessing."""
    questions: int


def evaluate_text(
    model: nn.Module, tokenizer: Tokenizer, corpus: str, *, tokens: int = 16384, window_tokens: int = 1024
) -> TextResult:
    """Measure loss and perplexity on a text.

    Args:
        model: a causal language model; its mode comes back afterwards.
        tokenizer: its tokenizer.
        corpus: as in recipes: english, python, a file, a folder, hf:name.
        tokens: of its beginning.
        window_tokens: of the windows into which they are cut.
    Raises:
        ConfigError: if the corpus cannot be read or is empty.
    """
    stream = token_stream(corpus, tokenizer, tokens)
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None) or window_tokens
    window = min(window_tokens, int(limit))
    value = perplexity(model, stream, window_tokens=window)
    loss = math.log(value) if math.isfinite(value) else None
    count = len(tokenizer.decode(stream.tolist()).encode())
    return TextResult(
        loss=loss,
        perplexity=value if loss is not None else None,
        bits_per_byte=loss * len(stream) / count / math.log(2) if loss is not None and count else None,
        tokens=len(stream),
        protocol=describe_protocol(corpus, len(stream), window),
    )


def evaluate_questions(
    model: nn.Module, tokenizer: Tokenizer, source: str, *, limit: int | None = None, prompt: str = PROMPT
) -> ChoiceResult:
    """Measure how many multiple-choice questions of a file a model answers right; nothing is generated.

    Args:
        model: a causal language model; its mode comes back afterwards.
        tokenizer: its tokenizer.
        source: see `read_questions`.
        limit: only the first so many questions.
        prompt: text around "{question}".
    Raises:
        ConfigError: if the file holds something else, or a question does not fit into the model.
    Cost: one forward pass for each question, with a row for each choice.
    """
    if "{question}" not in prompt:
        raise ConfigError(
            f"evaluate: prompt={prompt!r} has no place for the question; expected {{question}} in it. Add it."
        )
    questions = read_questions(source, limit=limit)
    was_training = model.training
    model.eval()
    try:
        scored = [_is_right(model, tokenizer, question, prompt) for question in questions]
    finally:
        model.train(was_training)
    count = len(questions)
    accuracy = sum(right for right, _ in scored) / count
    return ChoiceResult(
        accuracy=accuracy,
        accuracy_norm=sum(right for _, right in scored) / count,
        stderr=math.sqrt(accuracy * (1 - accuracy) / max(1, count - 1)),
        chance=sum(1 / len(question.choices) for question in questions) / count,
        questions=count,
    )


def _is_right(model: nn.Module, tokenizer: Any, question: Question, prompt: str) -> tuple[bool, bool]:
    """Return whether the right choice is the likeliest, and whether it is per byte."""
    ids = tokenizer(prompt.replace("{question}", question.stem))["input_ids"]
    scores = option_scores(model, tokenizer, ids, [f" {choice}" for choice in question.choices])
    lengths = torch.tensor([max(1, len(choice.encode())) for choice in question.choices], dtype=torch.float64)
    return int(scores.argmax()) == question.answer, int((scores / lengths).argmax()) == question.answer


def evaluation_report(
    model: Any,
    tokenizer: Tokenizer,
    name: str,
    *,
    texts: Sequence[str] = (),
    questions: Sequence[str] = (),
    tasks: Sequence[str] = (),
    include: Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    tokens: int = 16384,
) -> tuple[Report, dict[str, Any]]:
    """Measure all that is asked for, and return the report and the same numbers as plain values.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        name: of the model, for the report.
        texts: see `evaluate_text`.
        questions: see `evaluate_questions`.
        tasks: of the harness, see `featherweight.text.harness.evaluate_tasks`; so are `include` and `shots`.
        include: as described.
        shots: as described.
        limit: of the questions of each file and task.
        tokens: of each text.
    """
    report = Report(f"Evaluation of {name}")
    results: dict[str, Any] = {}
    if tasks:
        # First, because a name that is unknown should cost no waiting.
        from featherweight.text.harness import evaluate_tasks

        found = evaluate_tasks(model, tokenizer, tasks, include=include, limit=limit, shots=shots)
        metrics = [(task, metric) for task, values in found.items() for metric in values if "stderr" not in metric]
        rows = [[task, one, found[task][one], found[task].get(f"{one}_stderr")] for task, one in metrics]
        report.add_table("Tasks of lm-evaluation-harness", ["task", "metric", "value", "standard error"], rows)
        results["tasks"] = found
    if questions:
        answers = {source: evaluate_questions(model, tokenizer, source, limit=limit) for source in questions}
        columns = ["file", "accuracy", "accuracy, by length", "standard error", "chance", "questions"]
        table = [
            [source, one.accuracy, one.accuracy_norm, one.stderr, one.chance, one.questions]
            for source, one in answers.items()
        ]
        report.add_table("Multiple choice", columns, table)
        results["questions"] = {source: one.to_dict() for source, one in answers.items()}
    if texts:
        losses = {source: evaluate_text(model, tokenizer, source, tokens=tokens) for source in texts}
        columns = ["text", "loss (nats/token)", "perplexity", "bits/byte", "tokens"]
        report.add_table(
            "Perplexity",
            columns,
            [[source, one.loss, one.perplexity, one.bits_per_byte, one.tokens] for source, one in losses.items()],
        )
        report.add_note("\n".join(one.protocol for one in losses.values()), title="How perplexity was measured")
        results["text"] = {source: one.to_dict() for source, one in losses.items()}
    return report, results
