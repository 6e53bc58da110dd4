"""Options of the tasks on text: what stands beside `name` under the recipe's key `task`. Without torch.

Source of the methods of preferences: see `featherweight.text.preference_loss`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from featherweight.config import Config
from featherweight.text.conversation import Role
from featherweight.text.sources import ONLY_CHAT_STREAMS, Data

LongRows = Literal["cut_turns", "leave_out", "refuse"]
TrainOn = Literal["assistant", "last"] | list[Role]
PreferenceMethod = Literal["dpo", "simpo", "orpo", "kto"]


class LanguageConfig(Config):
    """Options of every task that trains a model of transformers on text."""

    model: str | dict[str, Any] = "smollm2"
    """smollm2, tiny, a shape such as llama-60m, a model folder, a .gguf or .json file, a name of the Hugging Face hub,
    or the configuration of a new model."""
    weights: Literal["pretrained", "random"] | None = None
    """With which weights training begins. None: those of the model; a name of a shape, such as llama-3-8b, has none and
    is refused. random: new ones, also for a model that has some."""
    tokenizer: str | None = None
    """Whose tokenizer: any source of a model, or bytes. None: the model's own; a new model has bytes."""
    max_positions: int | None = Field(default=None, ge=2)
    """Tokens that the model is to read at most, where that is more than its configuration says; the trained model says
    so, too. None: what it says."""
    rope_scaling: Literal["none", "linear", "yarn"] = "yarn"
    """How `max_positions` stretches rotary positions; none: not at all, for new weights, or a model that can."""
    held_out_seed: int = 0
    """Seed of the held-out split; apart from the run's seed, so that runs with different seeds are compared on the same
    rows."""

    where: ClassVar[str]
    """Opens messages, such as "task chat"."""

    def check_weights(self, adapters: Sequence[str] = ()) -> None:
        """Refuse a shape without weights, and adapters on random ones; see `featherweight.models.weights`.

        Raises:
            ConfigError: if training should not begin so.
        """
        from featherweight.models.weights import check_weights

        check_weights(self.model, self.weights, adapters=adapters, where=self.where)

    @model_validator(mode="before")
    @classmethod
    def _streams_or_says_so(cls, values: Any) -> Any:
        if isinstance(values, dict) and "stream" in values and "stream" not in cls.model_fields:
            raise ValueError(f"stream={values['stream']} {ONLY_CHAT_STREAMS}")
        return values

    @field_validator("held_out", check_fields=False)
    @classmethod
    def _is_a_share(cls, held_out: float | str) -> float | str:
        if isinstance(held_out, float | int) and not 0 < held_out < 1:
            raise ValueError(
                "is out of range; expected 0 < held_out < 1, or the path of a file. Set it to 0.05, for example."
            )
        return held_out


class RowLimits(LanguageConfig):
    """Limits on the rows of a task whose data are rows."""

    max_train_rows: int | None = Field(default=None, ge=1)
    """Use only the first so many training rows; None uses all."""
    max_held_out_rows: int | None = Field(default=None, ge=1)
    """Use only the first so many held-out rows; None uses all."""


class TextConfig(LanguageConfig):
    """Options of the text task."""

    where = "text task"
    corpus: str = "english"
    """english, python, a .txt, .md, .jsonl, .json, .csv, .tsv or .parquet file, a folder of them, or
    hf:name[:config][:split]."""
    text_key: str = "text"
    """Column of the text in files with columns."""
    split_text_files: bool = True
    """True: blank lines in a .txt file separate documents. False: such a file is one document."""
    held_out: float | str = 0.05
    """Share of the documents to hold out, 0 < share < 1 (a single document is cut into 20 pieces first); or a corpus of
    its own (documents that also stand there are not trained on)."""
    seq_len: int = Field(default=256, ge=2)
    """Tokens of one row."""
    max_train_tokens: int | None = Field(default=None, ge=2)
    """Use only the first so many training tokens; None uses all."""
    max_held_out_tokens: int | None = Field(default=None, ge=2)
    """Use only the first so many held-out tokens; None uses all."""


class InstructionConfig(RowLimits):
    """Options of the task of instructions."""

    where = "instructions task"
    data: str
    """A file of JSON or JSON lines with an instruction and an output in each row."""
    held_out: float | str = 0.05
    """Share of the questions to hold out, 0 < share < 1; or a file of its own (questions that also stand there are not
    trained on)."""
    prompt: Literal["alpaca", "official", "cloze"] = "alpaca"
    """alpaca: one text around the question for training and evaluation. official: the two of LLM-Adapters. cloze: a
    question with options is answered by the text of the right one, which small models learn sooner."""
    max_tokens: int = Field(default=256, ge=2)
    """Longest row, prompt and response together; longer ones lose the end of their response."""
    leave_out_long: bool = False
    """True: leave out rows longer than max_tokens. False: cut them, and refuse a row whose prompt alone is longer."""
    max_questions: int = Field(default=100, ge=0)
    """Measure the accuracy on the first so many held-out questions that have options and are not cut; 0 does not
    measure it."""


class RowsConfig(RowLimits):
    """Options of every task that learns from a model and rows with columns."""

    data: Data
    """A file (.jsonl, .json, .csv, .tsv, .parquet, .arrow; texts also compressed), a folder of them, or
    hf:name[:config][:split]; or a list of such sources, which may have weights: [{path: a.jsonl, weight: 2}, ...]."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of the file's columns for the fields of a row: {prompt: frage, response: antwort}."""
    ignore_columns: list[str] = Field(default_factory=list)
    """Columns with text that are left out on purpose."""
    held_out: float | str = 0.05
    """Share of the rows to hold out, 0 < share < 1; or a file of its own (rows that begin as one of its rows are not
    trained on)."""
    max_tokens: int = Field(default=1024, ge=8)
    """Longest row in tokens."""
    group_by_length: bool = False
    """True: rows of like length stand in one micro-batch, which saves padding; the longest come first. False: rows come
    in an order of chance."""


class ClassificationConfig(RowsConfig):
    """Options of the task of classification."""

    where = "task classification"
    max_tokens: int = Field(default=128, ge=8)
    """Longest text in tokens, a pair counted together."""
    long_rows: Literal["cut", "leave_out", "refuse"] = "cut"
    """What happens to longer texts. cut: their end goes, of a pair that of the longer text. leave_out: the row is left
    out. refuse: an error. The report counts them."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """How much each class counts in the loss. balanced: as if all were equally frequent, 1 on average; {name: weight}:
    the others have 1; None: all have 1. Held-out figures are not weighted."""

    @field_validator("max_positions")
    @classmethod
    def _reads_what_it_reads(cls, positions: int | None) -> None:
        if positions is not None:
            raise ValueError(
                f"={positions} is not there for a classification, whose longer texts are cut (`long_rows`); expected "
                "null. Leave it out."
            )

    @field_validator("class_weights")
    @classmethod
    def _are_positive(cls, weights: Any) -> Any:
        if isinstance(weights, Mapping) and not all(0 < weight < float("inf") for weight in weights.values()):
            raise ValueError("has a weight that is not above 0; expected positive numbers. Correct it.")
        return weights


class ConversationConfig(RowsConfig):
    """Options of every task whose data are conversations."""

    template: str | None = None
    """Chat template: chatml, alpaca, or a text of Jinja. None: the tokenizer's own. It is saved with the model."""


class ChatConfig(ConversationConfig):
    """Options of the task of conversations."""

    where = "task chat"
    train_on: TrainOn = "assistant"
    """assistant: all its turns are learnt. last: the last one of each conversation. A list of roles, such as
    [assistant, tool]: all turns of theirs; rows without any are left out and counted."""
    long_rows: LongRows = "cut_turns"
    """What happens to longer ones. cut_turns: whole turns go from the end until the rest fits, so that an answer is
    never cut; where not even the first answer fits, the row is left out. leave_out: the row is left out. refuse: an
    error. The report counts them."""
    pack: bool = False
    """True: several conversations stand in one row of max_tokens; each sees itself alone. False: rows are padded."""
    stream: bool = False
    """True: rows are read while training goes on, for data larger than the memory; folders are read file by file in an
    order of chance. False: they are read before it begins."""
    shuffle_rows: int = Field(default=10_000, ge=1)
    """stream: so many rows are read ahead and shuffled; they are what is in memory at a time."""

    @field_validator("train_on")
    @classmethod
    def _names_roles_once(cls, train_on: TrainOn) -> TrainOn:
        if isinstance(train_on, list) and (not train_on or len(set(train_on)) < len(train_on)):
            raise ValueError("is empty or names a role twice; expected roles such as [assistant, tool]. Correct it.")
        return train_on


class PreferenceConfig(ConversationConfig):
    """Options of the task of preferences."""

    where = "task preference"
    method: PreferenceMethod = "dpo"
    """dpo: two answers, against the model before training. simpo and orpo: two answers, no reference. kto: answers that
    were judged good or bad one by one (pairs are taken apart)."""
    beta: float | None = Field(default=None, gt=0)
    """Scale of rewards; None takes 0.1, for simpo 2."""
    gamma: float = Field(default=1.0, ge=0)
    """simpo: by how much the better answer has to win."""
    good_weight: float = Field(default=1.0, gt=0)
    """kto: weight of good answers."""
    bad_weight: float = Field(default=1.0, gt=0)
    """kto: weight of bad answers."""
    long_rows: Literal["leave_out", "refuse"] = "leave_out"
    """What happens to pairs of which an answer with its prompt is longer than max_tokens; the report counts them."""
