"""Making S2FT known to PEFT, whose list of methods is an enumeration without a door for others.

After `register`, `peft.get_peft_model`, `PeftModel.from_pretrained` and saving treat S2FT as one of PEFT's own methods.
"""

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


def register() -> None:
    """Register S2FT with PEFT; calling it again changes nothing."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType, register_peft_method

    add_peft_type()
    if PeftType(NAME) in PEFT_TYPE_TO_CONFIG_MAPPING:
        return
    from featherweight.methods.s2ft.config import S2FTConfig
    from featherweight.methods.s2ft.model import S2FTModel

    register_peft_method(name=NAME.lower(), config_cls=S2FTConfig, model_cls=S2FTModel, prefix=S2FTModel.prefix)
