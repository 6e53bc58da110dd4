"""Multiple choice by likelihood: the answer is the option that the model finds most probable; nothing is generated.

Shapes: L tokens of a prompt with an option, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.models.decoding_rows import keep_rows
from featherweight.models.generation import adds_virtual_tokens, extend, prefill
from featherweight.text.instructions import Instruction, Template, prompt_tokens
from featherweight.training.share import Share
from featherweight.unwrap import unwrap_model

ANSWER_PREFIX = "the correct answer is "
"""How the responses of the commonsense tasks begin."""


def evaluate_multiple_choice(
    model: nn.Module,
    tokenizer: Any,
    examples: Iterable[Instruction],
    *,
    template: Template = "alpaca",
    prefix: str = ANSWER_PREFIX,
    share: Share | None = None,
) -> dict[str, float]:
    """Return the share of questions whose right option is the most probable one; a collective of the processes.

    Args:
        model: a causal language model; its mode comes back afterwards.
        tokenizer: its tokenizer.
        examples: questions with options.
        template: of the prompt.
        prefix: how a response begins before the option.
        share: which questions are those of this process; None for all.
    Returns:
        accuracy, questions, and chance: the accuracy of guessing.
    Raises:
        ConfigError: if a question has no options, or its answer is none of them.
    Cost: the tokens of each question once and those of its options, in two forward passes, or in one where the options
        differ in one token. Several processes, whose passes must match, make one pass for each question, with a row of
        prompt and option for each option if they differ in more than one token.
    """
    asked, share = list(examples), share or Share()
    for example in asked:  # all of them before the first pass, so that no process is left waiting for another one
        if _options_of(example)[1] not in _options_of(example)[0]:
            options, answer = _options_of(example)
            raise ConfigError(
                f"multiple_choice: answer={answer!r} is none of the options {options}; expected a question with "
                "'Answer format: a/b', or a cloze. Leave other tasks out."
            )
    was_training = model.training
    model.eval()
    right = count = chance = 0.0
    try:
        for example, counts in share.of(asked):
            options, answer = _options_of(example)
            prompt = prompt_tokens(example.instruction, tokenizer, template=template, for_training=False)
            begin = "" if example.texts else prefix
            scores = option_scores(
                model,
                tokenizer,
                prompt,
                [f"{begin}{option}" for option in options],
                per_token=bool(example.texts),
                one_pass=share.processes > 1,
            )
            if counts:
                right += options[int(scores.argmax())] == answer
                chance += 1 / len(options)
                count += 1
    finally:
        model.train(was_training)
    if not asked:
        raise ConfigError("multiple_choice: examples=0 are none; expected some questions. Give a longer list.")
    right, count, chance = share.sums(right, count, chance)
    return {"accuracy": right / count, "questions": count, "chance": chance / count}


def _options_of(example: Instruction) -> tuple[Sequence[str], str]:
    """Return the options of a question and the right one."""
    return (list(example.texts), example.output) if example.texts else (example.options, example.answer)


def is_multiple_choice(example: Instruction) -> bool:
    """Tell whether a question has two options or more and its answer is one of them."""
    options, answer = _options_of(example)
    return len(options) > 1 and answer in options


def answer_prefix(examples: Iterable[Instruction]) -> str:
    """Return how the responses begin before their answer if all begin alike, else `ANSWER_PREFIX`.

    Example:
        >>> answer_prefix([Instruction("Wet?", "It is a", "a"), Instruction("Dry?", "It is b", "b")])
        'It is '
    """
    found = {one.output.removesuffix(one.answer) if one.output.endswith(one.answer) else None for one in examples}
    prefix = found.pop() if len(found) == 1 else None
    return ANSWER_PREFIX if prefix is None else prefix


@torch.no_grad()
def option_scores(
    model: nn.Module,
    tokenizer: Any,
    prompt: Sequence[int],
    responses: Sequence[str],
    *,
    per_token: bool = False,
    one_pass: bool = False,
) -> Tensor:
    """Return the log-probability of each response after a prompt, in nats; (options,) float64.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer.
        prompt: token ids.
        responses: texts.
        per_token: mean over the tokens of a response instead of their sum, so that long ones are not at a disadvantage.
        one_pass: read the prompt with every response, for models whose passes are counted; else it is read once, where
            the model has a cache.
    """
    encoded = [tokenizer(response, add_special_tokens=False)["input_ids"] for response in responses]
    shared = _shared_length(encoded)
    device = next(model.parameters()).device
    if all(len(tokens) == shared + 1 for tokens in encoded):
        ids = torch.tensor([[*prompt, *encoded[0][:shared]]], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -1].double().log_softmax(-1)
        return torch.stack([logits[tokens[-1]] for tokens in encoded]).cpu()
    # Padded behind their end, where causal attention does not look.
    longest = max(map(len, encoded))
    padded_BP = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in encoded], device=device)
    prompt_L = torch.tensor(prompt, device=device)
    if one_pass or not hasattr(unwrap_model(model), "config") or adds_virtual_tokens(model):
        ids = torch.cat([prompt_L.expand(len(encoded), -1), padded_BP], dim=1)
        # From the end, because virtual tokens of prompt tuning have logits too.
        logits_BPV = model(input_ids=ids, use_cache=False).logits[:, -longest - 1 : -1]
    else:
        decoding = prefill(model, prompt_L[None])
        keep_rows(decoding, [0] * len(encoded))
        logits_BPV = torch.cat([decoding.logits[:, None], extend(decoding, padded_BP)[:, :-1]], dim=1)
    scores = []
    for logits_LV, tokens in zip(logits_BPV, encoded, strict=True):
        log_probabilities = logits_LV[: len(tokens)].double().log_softmax(-1)
        chosen = log_probabilities.gather(-1, torch.tensor(tokens, device=device)[:, None])
        scores.append(chosen.mean() if per_token else chosen.sum())
    return torch.stack(scores).cpu()


def _shared_length(encoded: Sequence[Sequence[int]]) -> int:
    length = 0
    for column in zip(*encoded, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return length
