"""The name of S2FT in PEFT's list of methods, which is an enumeration without a door for others."""

from typing import Any

NAME = "S2FT"


def add_peft_type() -> None:
    """Add the member S2FT to PEFT's enumeration of methods, once; a PEFT that has it already is left alone."""
    from peft.utils import PeftType

    if NAME in PeftType.__members__:
        return
    member: Any = str.__new__(PeftType, NAME)
    member._name_ = member._value_ = NAME
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    # What enum's own metaclass does for a member of the class body.
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    type.__setattr__(PeftType, NAME, member)
