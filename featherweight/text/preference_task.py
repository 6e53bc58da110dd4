"""Preferences as a task: of two answers the better one becomes more probable (DPO, SimPO, ORPO), or judged ones (KTO).

Implements `featherweight.training.task.Task`; recipes reach it by `task: {name: preference, ...}`. Log-probabilities
come from hidden states (`causal_logprobs`), so the logits of a sequence never exist; those of the model before training
are computed once, before the first step.
Shapes: P pairs or judged answers of a micro-batch, each with 2 rows, R = 2 P rows, L tokens of the longest one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.methods.fused_head import causal_logprobs
from featherweight.models.facts import model_facts
from featherweight.models.load import load_tokenizer
from featherweight.models.quiet import quiet_transformers
from featherweight.models.templates import choose_template, encode_conversation
from featherweight.text.causal_task import Endings, begin_model
from featherweight.text.conversation import Conversation, Judgement, Preference, Turn
from featherweight.text.conversation_data import (
    Part,
    beginning_of,
    load_records,
    order_of,
    split_records,
    template_name,
)
from featherweight.text.instructions import pad_batch
from featherweight.text.language_task import LanguageTask, facts_of, require_length
from featherweight.text.options import PreferenceConfig, PreferenceMethod
from featherweight.text.packing import IGNORED_LABEL
from featherweight.text.preference_loss import NEEDS_REFERENCE, Outcome, dpo, kto, orpo, simpo
from featherweight.text.row_order import RowOrder
from featherweight.text.skeleton import TextSkeleton
from featherweight.text.sources import data_name
from featherweight.training.task import Batch, Split, Words

WHERE = PreferenceConfig.where
BETAS: dict[PreferenceMethod, float] = {"dpo": 0.1, "kto": 0.1, "simpo": 2.0, "orpo": 0.1}
"""Of each method, where a recipe names none: those of the papers."""


@dataclass(frozen=True)
class Encoded:
    """A prompt with an answer, of which the answer counts."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """What one loss is computed from: two rows that belong together."""

    first: Encoded
    """The chosen answer, or the judged one."""
    second: Encoded
    """The rejected answer; of a judged one, the answer to another prompt in its place."""
    is_good: bool = True


class PreferenceTask(LanguageTask):
    """Prefer what is preferred.

    Micro-batches hold P samples: "input_ids" and "labels" (P, 2, L) int64, padded behind their end, the two rows of a
    sample side by side; "is_good" (P,) bool; where a reference is needed "reference" (P, 2) float32.

    Args:
        config: options.
        seed: of the weights of a new model.
    Raises:
        ConfigError: if model, template and data do not exist or do not fit each other; the message names file and line.
    """

    Config = PreferenceConfig
    where = WHERE

    @classmethod
    def skeleton(cls, config: PreferenceConfig, *, seed: int, layers: int | None = None) -> "PreferenceSkeleton":
        """Return a task whose rows all have `max_tokens`, without data and weights; see `Skeleton`."""
        return PreferenceSkeleton(config, layers=layers)

    def __init__(self, config: PreferenceConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.words = words_of(config)
        tokenizer: Any = load_tokenizer(config.tokenizer or config.model)
        self.tokenizer = tokenizer
        choose_template(tokenizer, config.template, where=WHERE)
        training, held_out = self._split()
        self.facts = model_facts(config.model, tokenizer=tokenizer)
        require_length(self, self.facts)
        self.left_out: dict[Split, int] = {"train": 0, "held_out": 0}
        encoded = self._encode(training.limited(config.max_train_rows), "train")
        self._sources = encoded.sources
        self._samples: dict[Split, list[Sample]] = {
            "train": encoded.rows,
            "held_out": self._encode(held_out.limited(config.max_held_out_rows), "held_out").rows,
        }
        self._reference: dict[Split, Tensor] = {}
        self._endings = Endings.of(tokenizer, where=WHERE)

    def build_model(self) -> nn.Module:
        """Return the model with float32 weights on the CPU; random weights follow from the task's seed."""
        model = begin_model(self)
        self._endings.write(model)
        return model

    def prepare(self, model: nn.Module) -> None:
        """Compute the log-probabilities of all answers under the model before training, where the method needs them.

        One forward pass over the data. Weights in 16, 8 or 4 bits and new adapters are in it, so that training begins
        at its reference.
        """
        if self.config.method in NEEDS_REFERENCE:
            self._reference = {split: self._reference_of(model, samples) for split, samples in self._samples.items()}

    def row_count(self, split: Split) -> int:
        """Return the samples of a split."""
        return len(self._samples[split])

    def row_order(self) -> RowOrder:
        """Mix sources by their weights, and group by length, where asked for."""
        lengths = [max(len(one.first.ids), len(one.second.ids)) for one in self._samples["train"]]
        return order_of(self.config, self._sources, lengths)

    def collate(self, split: Split, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return samples of a split as a micro-batch."""
        samples = [self._samples[split][number] for number in rows]
        sides = [side for one in samples for side in (one.first, one.second)]
        padded = pad_batch([{"input_ids": side.ids, "labels": side.labels} for side in sides], self._endings.pad)
        batch = {name: padded[name].view(len(samples), 2, -1) for name in ("input_ids", "labels")}
        batch["is_good"] = torch.tensor([one.is_good for one in samples])
        if self.config.method in NEEDS_REFERENCE:
            if not self._reference:
                self.prepare(self.build_model())
            batch["reference"] = self._reference[split][list(rows)]
        return batch

    def item_count(self, batch: Batch) -> int:
        """Return the number of pairs, or of judged answers."""
        return len(batch["labels"])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the float32 sum of the losses, with its graph, and their number."""
        return outcome(model, batch, self.config).losses_P.sum(), self.item_count(batch)

    def evaluate(self, model: nn.Module, *, micro_batch_size: int) -> dict[str, float]:
        """Return held_out_loss, reward_accuracy (share with a margin above 0) and reward_margin of the split."""
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        own = torch.zeros(4, dtype=torch.float64)  # pairs, and sums of losses, of margins above 0, and of margins
        try:
            with torch.no_grad():
                for batch, counts in self.held_out_share(micro_batch_size):
                    found = outcome(model, {name: one.to(device) for name, one in batch.items()}, self.config)
                    margins = found.margins_P.double()
                    sums = (found.losses_P.double().sum(), (margins > 0).sum(), margins.sum())
                    own += counts * torch.tensor([len(margins), *(float(one) for one in sums)], dtype=torch.float64)
        finally:
            model.train(was_training)
        pairs, *totals = self.share.sum(own).tolist()
        means = (one / pairs for one in totals)
        return dict(zip(("held_out_loss", "reward_accuracy", "reward_margin"), means, strict=True))

    def describe(self) -> dict[str, object]:
        """Return names and exact counts for the report; tokens are those of the answers."""
        config = self.config
        facts = facts_of(self, self.facts) | {
            "data": data_name(config.data),
            "template": template_name(config),
            "method": config.method,
            "beta": beta_of(config),
            "max_tokens": config.max_tokens,
        }
        for name, samples in self._samples.items():
            rows = [row for one in samples for row in (one.first, one.second)]
            facts[f"{name}_{self.words.count_key}"] = len(samples)
            facts[f"{name}_tokens"] = sum(label != IGNORED_LABEL for row in rows for label in row.labels)
            facts[f"{name}_left_out"] = self.left_out[name]
        return facts

    # ---- data --------------------------------------------------------------------------------------------------------

    def _split(self) -> tuple[Part[Any], Part[Any]]:
        config = self.config
        kinds = (Preference, Judgement) if config.method == "kto" else (Preference,)
        rows = self._judged(load_records(config.data, config, kinds, WHERE))
        held_out = None
        if isinstance(config.held_out, str):
            held_out = self._judged(load_records(config.held_out, config, kinds, WHERE))
        return split_records(rows, held_out, config, _beginning, WHERE)

    def _judged(self, part: Part[Any]) -> Part[Any]:
        """Return pairs as two judged answers each, where the method takes those."""
        if self.config.method != "kto":
            return part
        taken_apart = [
            (judged, source)
            for row, source in zip(part.rows, part.sources, strict=True)
            for judged in (
                [row]
                if isinstance(row, Judgement)
                else [Judgement(c, good) for c, good in zip(row.conversations(), (True, False), strict=True)]
            )
        ]
        return Part([row for row, _ in taken_apart], [source for _, source in taken_apart])

    def _encode(self, part: Part[Any], split: Split) -> Part[Sample]:
        found: Part[Sample] = Part([], [])
        with quiet_transformers():
            for number, source in enumerate(part.sources):
                if (one := self._sample(part.rows, number)) is not None:
                    found.rows.append(one)
                    found.sources.append(source)
        self.left_out[split] = len(part.rows) - len(found.rows)
        if set(found.sources) != set(part.sources):
            raise ConfigError(
                f"{WHERE}: max_tokens={self.config.max_tokens} leaves out all {len(part.rows)} rows of one split or "
                "source; expected a length that some have. Raise max_tokens."
            )
        return found

    def _sample(self, rows: Sequence[Any], number: int) -> Sample | None:
        """Return a sample; None if it is too long and is to be left out."""
        row = rows[number]
        if isinstance(row, Preference):
            first, second = (
                self._answer(row.prompt, answer, row.tools, row.where) for answer in (row.chosen, row.rejected)
            )
            is_good = True
        else:
            prompt, answer = _prompt_and_answer(row.conversation)
            _, other = _prompt_and_answer(rows[(number + 1) % len(rows)].conversation)
            tools, where = row.conversation.tools, row.conversation.where
            first, second = (self._answer(prompt, one, tools, where) for one in (answer, other))
            is_good = row.is_good
        longest = max(len(first.ids), len(second.ids))
        if longest <= self.config.max_tokens:
            return Sample(first, second, is_good)
        if self.config.long_rows == "refuse":
            where = row.where if isinstance(row, Preference) else row.conversation.where
            raise ConfigError(
                f"{where}: {longest} tokens are more than max_tokens={self.config.max_tokens}; expected rows that fit. "
                "Raise max_tokens, or set long_rows: leave_out."
            )
        return None

    def _answer(self, prompt: Sequence[Turn], answer: Sequence[Turn], tools: Sequence[Any], where: str) -> Encoded:
        """Return the tokens of a prompt with an answer, of whose turns the assistant's count."""
        said = sum(turn.role == "assistant" for turn in answer)
        encoded = encode_conversation(
            self.tokenizer,
            [turn.message() for turn in (*prompt, *answer)],
            tools=tools,
            last_only=said == 1,
            where=where,
        )
        return Encoded(encoded.ids, tuple(encoded.labels(range(-said, 0), ignored=IGNORED_LABEL)))

    def _reference_of(self, model: nn.Module, samples: Sequence[Sample]) -> Tensor:
        """Return the summed log-probabilities of all answers under a model, (samples, 2) float32."""
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        found = []
        with torch.no_grad():
            for one in samples:
                batch = pad_batch(
                    [{"input_ids": r.ids, "labels": r.labels} for r in (one.first, one.second)], self._endings.pad
                )
                labels = batch["labels"].to(device)
                sums_R = causal_logprobs(model, labels, input_ids=batch["input_ids"].to(device)).sum(dim=1)
                found.append(sums_R.float().cpu())
        model.train(was_training)
        return torch.stack(found)


class PreferenceSkeleton(TextSkeleton):
    """Stands for the task in a simulation: twice the rows, and no logits."""

    def __init__(self, config: PreferenceConfig, *, layers: int | None = None) -> None:
        stretched = (config.max_positions, config.rope_scaling)
        super().__init__(
            config.model, seq_len=config.max_tokens, layers=layers, length_key="max_tokens", stretched=stretched
        )
        self.config = config
        self.words = words_of(config)

    def batches(self, split: Any, *, micro_batch_size: int, **others: Any) -> Iterator[dict[str, Tensor]]:
        """Yield micro-batches of the right shapes for ever; their content means nothing."""
        for batch in super().batches(split, micro_batch_size=2 * micro_batch_size):
            pairs = {name: rows_RL.view(micro_batch_size, 2, -1) for name, rows_RL in batch.items()}
            pairs["is_good"] = torch.zeros(micro_batch_size, dtype=torch.bool)
            if self.config.method in NEEDS_REFERENCE:
                pairs["reference"] = torch.zeros(micro_batch_size, 2)
            yield pairs

    def item_count(self, batch: Batch) -> int:
        """Return the number of samples, as the task does."""
        return len(batch["labels"])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Return the sum of the losses and their number, as the task does."""
        return outcome(model, batch, self.config).losses_P.sum(), self.item_count(batch)


def outcome(model: nn.Module, batch: Batch, config: PreferenceConfig) -> Outcome:
    """Return the losses of a micro-batch of `PreferenceTask.batches`.

    Args:
        model: on the device of the batch.
        batch: of P samples.
        config: method and its numbers.
    """
    # The first rows of all samples, then the second ones.
    ids_RL, labels_RL = (batch[name].transpose(0, 1).flatten(0, 1) for name in ("input_ids", "labels"))
    inputs = {"input_ids": ids_RL}
    beta, method = beta_of(config), config.method
    if method == "kto":
        # The second half only measures how far the model has moved; it has no gradient.
        pairs = len(batch["labels"])
        answer_P = causal_logprobs(model, labels_RL[:pairs], input_ids=inputs["input_ids"][:pairs]).sum(dim=1)
        with torch.no_grad():
            other_P = causal_logprobs(model, labels_RL[pairs:], input_ids=inputs["input_ids"][pairs:]).sum(dim=1)
        reference_P, reference_other_P = batch["reference"].unbind(dim=1)
        kl = (other_P - reference_other_P).mean().clamp(min=0)
        weights = {"good_weight": config.good_weight, "bad_weight": config.bad_weight}
        return kto(answer_P, reference_P, batch["is_good"], kl, beta=beta, **weights)
    sums_R = causal_logprobs(model, labels_RL, **inputs).sum(dim=1)
    if method == "dpo":
        return dpo(*sums_R.chunk(2), *batch["reference"].unbind(dim=1), beta=beta)
    counts_R = (labels_RL[:, 1:] != IGNORED_LABEL).sum(dim=1)
    chosen_P, rejected_P = (sums_R / counts_R).chunk(2)
    if method == "simpo":
        return simpo(chosen_P, rejected_P, beta=beta, gamma=config.gamma)
    return orpo(chosen_P, rejected_P, beta=beta)


def beta_of(config: PreferenceConfig) -> float:
    """Return the scale of rewards."""
    return BETAS[config.method] if config.beta is None else config.beta


def words_of(config: PreferenceConfig) -> Words:
    """Return what the task counts."""
    items = "answers" if config.method == "kto" else "pairs"
    return Words(items, f"loss/{items[:-1]}", ("reward_accuracy", "reward_margin"))


def _beginning(row: Any) -> str:
    prompt = row.prompt if isinstance(row, Preference) else _prompt_and_answer(row.conversation)[0]
    return beginning_of(prompt)


def _prompt_and_answer(conversation: Conversation) -> tuple[Sequence[Turn], Sequence[Turn]]:
    """Return what stands before the last answer, and that answer."""
    place = conversation.answers[-1]
    return conversation.turns[:place], conversation.turns[place : place + 1]
