"""The member S2FT of PEFT's enumeration."""

import peft

from featherweight.methods.s2ft.peft_type import add_peft_type


def test_the_member_is_added_once_and_stands_behind_those_of_peft():
    before = list(peft.PeftType)
    add_peft_type()
    assert list(peft.PeftType) == before
    assert peft.PeftType("S2FT") is peft.PeftType.S2FT and peft.PeftType.S2FT == "S2FT"
