"""What tasks on rows with columns share: options of model and data, reading, and the split."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator

from featherweight.config import Config
from featherweight.errors import ConfigError
from featherweight.text.conversation import Conversation, Record, Turn
from featherweight.text.corpus import split_documents
from featherweight.text.formats import records
from featherweight.text.rows import read_rows

One = TypeVar("One")
TASKS_OF_KINDS = {"conversation": "chat", "preference": "preference", "judgement": "preference", "document": "text"}
"""Which task trains on which kind of record."""


class RowsConfig(Config):
    """Options of every task that learns from a model and rows with columns."""

    model: str | dict[str, Any] = "smollm2"
    """smollm2, tiny, a shape such as llama-60m, a model folder, a .gguf or .json file, a name of the Hugging Face hub,
    or the configuration of a new model."""
    weights: Literal["pretrained", "random"] | None = None
    """With which weights training begins. None: those of the model; a name of a shape, such as llama-3-8b, has none and
    is refused. random: new ones, also for a model that has some."""
    tokenizer: str | None = None
    """Whose tokenizer: any source of a model, or bytes. None: the model's own; a new model has bytes."""
    data: str
    """A file (.jsonl, .json, .csv, .tsv, .parquet, .arrow; texts also compressed), a folder of them, or
    hf:name[:config][:split]. The formats stand in the docs of `featherweight.text.formats`."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of the file's columns for the fields of a row: {prompt: frage, response: antwort}."""
    ignore_columns: list[str] = Field(default_factory=list)
    """Columns with text that are left out on purpose."""
    held_out: float | str = 0.05
    """Share of the rows to hold out, 0 < share < 1; or a file of its own (rows that begin as one of its rows are not
    trained on)."""
    held_out_seed: int = 0
    """Seed of the held-out split; apart from the run's seed, so that runs with different seeds are compared on the same
    rows."""
    max_tokens: int = Field(default=1024, ge=8)
    """Longest row in tokens."""
    max_train_rows: int | None = Field(default=None, ge=1)
    """Use only the first so many training rows; None uses all."""
    max_held_out_rows: int | None = Field(default=None, ge=1)
    """Use only the first so many held-out rows; None uses all."""

    @field_validator("held_out")
    @classmethod
    def _is_a_share(cls, held_out: float | str) -> float | str:
        if isinstance(held_out, float | int) and not 0 < held_out < 1:
            raise ValueError(
                "is out of range; expected 0 < held_out < 1, or the path of a file. Set it to 0.05, for example."
            )
        return held_out


class ConversationConfig(RowsConfig):
    """Options of every task whose data are conversations."""

    template: str | None = None
    """Chat template: chatml, alpaca, or a text of Jinja. None: the tokenizer's own. It is saved with the model."""


def load_records(source: str, config: ConversationConfig, kinds: tuple[type[Record], ...], where: str) -> list[Any]:
    """Return what the rows of a source say.

    Args:
        source: see `read_rows`.
        config: how its columns are read.
        kinds: of records that the task learns from.
        where: opens messages: "task chat".
    Raises:
        ConfigError: for a row that is not understood, or is of another kind.
    """
    found = []
    for one in records(read_rows(source), columns=config.columns, ignore_columns=config.ignore_columns):
        if not isinstance(one, kinds):
            kind = type(one).__name__.lower()
            wanted = " or ".join(f"{one.__name__.lower()}s" for one in kinds)
            raise ConfigError(
                f"{where}: data={source} holds rows of the kind '{kind}'; expected {wanted}. Use the task "
                f"{TASKS_OF_KINDS[kind]} for them."
            )
        found.append(one)
    return found


def split_records(
    rows: Sequence[One],
    held_out: Sequence[One] | None,
    config: RowsConfig,
    beginning: Callable[[One], str],
    where: str,
) -> tuple[list[One], list[One]]:
    """Return training and held-out rows; rows that begin alike stand on one side.

    Args:
        rows: of the data.
        held_out: of the file to hold out, if one is named.
        config: share and seed.
        beginning: what a row begins with, in words.
        where: opens messages.
    Raises:
        ConfigError: if nothing is left to train on or to hold out.
    """
    beginnings = [beginning(row) for row in rows]
    if held_out is not None:
        known = {beginning(row) for row in held_out}
        training = [row for row, text in zip(rows, beginnings, strict=True) if text not in known]
        if not training:
            raise ConfigError(
                f"{where}: data={config.data} holds no row that does not begin as one of held_out={config.held_out}; "
                "expected some to train on. Hold out another file, or a share such as 0.05."
            )
        return training, list(held_out)
    if len(set(beginnings)) < 2:
        raise ConfigError(
            f"{where}: data={config.data} holds rows that all begin alike; expected 2 or more, one of them to hold "
            "out. Add rows, or name a second file in held_out."
        )
    assert isinstance(config.held_out, float)
    chosen = set(split_documents(beginnings, config.held_out, config.held_out_seed)[0])
    training = [row for row, text in zip(rows, beginnings, strict=True) if text in chosen]
    return training, [row for row, text in zip(rows, beginnings, strict=True) if text not in chosen]


def beginning_of(turns: Sequence[Turn]) -> str:
    """Return turns as one text that tells them from others."""
    return "\0".join(f"{turn.role}\0{turn.content}" for turn in turns)


def beginning_of_conversation(conversation: Conversation) -> str:
    """Return what stands before the first answer."""
    return beginning_of(conversation.turns[: conversation.answers[0]])


def template_name(config: ConversationConfig) -> str:
    """Return what reports call the template."""
    if config.template is None:
        return "the tokenizer's own"
    return config.template if "{" not in config.template else "a text of Jinja"
