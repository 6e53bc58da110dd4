"""What `fw init` and `fw plan --data` know before anything is chosen: the user's model on the user's data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featherweight.cli.data import require_data, roles_of, tokenizer_of
from featherweight.errors import ConfigError

if TYPE_CHECKING:
    from featherweight.models.facts import ModelFacts
    from featherweight.text.starter import Choices
    from featherweight.text.survey import Survey


@dataclass(frozen=True)
class Look:
    """What a look at a model and data has shown."""

    model: str
    facts: "ModelFacts"
    found: "Survey"
    choices: "Choices"

    def recipe(self, seq_len: int | None) -> dict[str, Any]:
        """Return a recipe without methods; its rows have `seq_len` tokens, or as many as 98 of 100 rows need."""
        from featherweight.text.starter import recipe_for_data

        return recipe_for_data(self.model, self.facts, self.found, self.choices, max_tokens=seq_len)

    def comments(self, max_tokens: int) -> list[str]:
        """Return what was understood, in lines for the top of a recipe."""
        from featherweight.text.starter import length_comment, understood

        return [
            f"Fine-tunes {self.facts.name} ({self.facts.parameters / 1e6:,.0f} M parameters) on {self.found.source}.",
            *understood(self.model, self.found, self.choices),
            length_comment(self.found, max_tokens),
        ]


def look(
    command: str,
    model: str,
    data: str,
    *,
    columns: dict[str, str],
    ignore_columns: list[str],
    template: str | None,
    train_on: str,
) -> Look:
    """Read data with a model's tokenizer, and say what they are.

    Args:
        command: opens messages, such as "fw init".
        model: its source.
        data: a file, a folder of files, or hf:name.
        columns: field to column.
        ignore_columns: left out on purpose.
        template: chat template of a base model.
        train_on: assistant, last, or roles with commas between.
    Raises:
        ConfigError: if the data are not there, are documents or not understood, or the model has no weights.
    """
    roles_of(train_on)
    require_data(data)
    from featherweight.text.survey import survey, understand_source

    read = understand_source(data, columns=columns, ignore_columns=ignore_columns)
    if read.format.name == "text":
        raise ConfigError(
            f"{command}: data={data} holds documents, no conversations; expected turns. Train on documents by a recipe "
            "of the task text: task: {name: text, corpus: " + data + "}."
        )
    from featherweight.models.facts import model_facts
    from featherweight.models.weights import check_weights
    from featherweight.text.classifier import classifier_facts
    from featherweight.text.labelled import class_names
    from featherweight.text.starter import Choices

    check_weights(model, None, where=command)
    is_classified = read.format.name == "classification"
    tokenizer = tokenizer_of(model, template, command=command, has_turns=not is_classified)
    found = survey(
        data, tokenizer, columns=columns, ignore_columns=ignore_columns, train_on=roles_of(train_on), examples=0
    )
    if is_classified:
        facts = classifier_facts(model, class_names(found.classes), tokenizer)
    else:
        facts = model_facts(model, tokenizer=tokenizer)
    return Look(model, facts, found, Choices(columns, tuple(ignore_columns), template, roles_of(train_on)))
