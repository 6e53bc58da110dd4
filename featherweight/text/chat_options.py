"""Options of the task of conversations."""

from typing import Literal

from pydantic import Field, field_validator

from featherweight.text.conversation import Role
from featherweight.text.conversation_data import ConversationConfig

LongRows = Literal["cut_turns", "leave_out", "refuse"]
TrainOn = Literal["assistant", "last"] | list[Role]


class ChatConfig(ConversationConfig):
    """Options of the task of conversations."""

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
