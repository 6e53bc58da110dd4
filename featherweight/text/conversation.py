"""What a row of chat data says: turns of a conversation, a preference between answers, or a judged answer.

Nothing here knows about files, columns or tokens: `formats` makes these records of rows,
`featherweight.models.templates` makes tokens of them. Texts stand as they were brought; nothing is stripped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from featherweight.errors import ConfigError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: Role
    content: str
    """The text, as it stands; empty where a turn only calls tools."""
    extra: tuple[tuple[str, Any], ...] = ()
    """Further fields of the message that templates read, in their order: tool_calls, name, reasoning_content, ..."""

    def message(self) -> dict[str, Any]:
        """Return the turn as `apply_chat_template` takes it."""
        return {"role": self.role, "content": self.content, **dict(self.extra)}


@dataclass(frozen=True)
class Conversation:
    """Turns in their order, and the tools that the assistant may call.

    Raises:
        ConfigError: from `check`, not from here.
    """

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    where: str = ""
    """File and line, for messages."""

    def messages(self, count: int | None = None) -> list[dict[str, Any]]:
        """Return the first `count` turns, or all, as `apply_chat_template` takes them."""
        return [turn.message() for turn in self.turns[:count]]

    @property
    def answers(self) -> list[int]:
        """The indices of the assistant's turns."""
        return [index for index, turn in enumerate(self.turns) if turn.role == "assistant"]

    @property
    def prompt(self) -> "Conversation":
        """All before the last turn of the assistant."""
        return Conversation(self.turns[: self.answers[-1]], self.tools, self.where)


@dataclass(frozen=True)
class Preference:
    """A prompt with two answers, of which one is preferred."""

    prompt: tuple[Turn, ...]
    chosen: tuple[Turn, ...]
    rejected: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    where: str = ""

    def conversations(self) -> tuple[Conversation, Conversation]:
        """Return the prompt with the chosen and with the rejected answer."""
        chosen, rejected = (
            Conversation((*self.prompt, *answer), self.tools, self.where) for answer in (self.chosen, self.rejected)
        )
        return chosen, rejected


@dataclass(frozen=True)
class Judgement:
    """A conversation whose answer was found good or bad."""

    conversation: Conversation
    is_good: bool


@dataclass(frozen=True)
class Document:
    """A text without turns."""

    text: str
    where: str = ""


Record = Conversation | Preference | Judgement | Document
TASKS_OF_KINDS = {"conversation": "chat", "preference": "preference", "judgement": "preference", "document": "text"}
"""Which task trains on which kind of record."""


def of_kind(found: Iterator[Record], source: str, kinds: tuple[type[Record], ...], where: str) -> Iterator[Any]:
    """Yield records that a task learns from.

    Raises:
        ConfigError: for one of another kind, with the task that learns from it.
    """
    for one in found:
        if not isinstance(one, kinds):
            kind = type(one).__name__.lower()
            wanted = " or ".join(f"{one.__name__.lower()}s" for one in kinds)
            raise ConfigError(
                f"{where}: data={source} holds rows of the kind '{kind}'; expected {wanted}. Use the task "
                f"{TASKS_OF_KINDS[kind]} for them."
            )
        yield one


def check(conversation: Conversation) -> None:
    """Refuse turns in an order that no template means: who speaks twice, who answers nobody, whose tool nobody called.

    Raises:
        ConfigError: with the place of the row and of the turn.
    """
    before: Role | None = None
    for number, turn in enumerate(conversation.turns, 1):
        problem = _problem(before, turn.role)
        if problem:
            order = ", ".join(one.role for one in conversation.turns[:number])
            raise ConfigError(
                f"{conversation.where or 'conversation'}: turn {number} is of '{turn.role}' {problem} (so far: "
                f"{order}); expected an optional system turn, then user and assistant in turn, tools after the "
                "assistant. Correct the row, or leave it out."
            )
        before = turn.role
    if not conversation.answers:
        raise ConfigError(
            f"{conversation.where or 'conversation'}: roles={[turn.role for turn in conversation.turns]} hold no turn "
            "of the assistant; expected one or more to learn from. Correct the row, or leave it out."
        )


def _problem(before: Role | None, role: Role) -> str:
    if role == "system":
        return "" if before is None else "and not the first"
    if role == "user":
        return "right after another" if before == "user" else ""
    if role == "assistant":
        if before in (None, "system"):
            return "and answers nobody"
        return "right after another" if before == "assistant" else ""
    return "" if before in ("assistant", "tool") else "and no assistant has called it"


def shared_beginning(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> int:
    """Return how many first turns two conversations share: the prompt of a preference without one of its own."""
    count = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        count += 1
    return count
