"""One owner of a part of a parameter or module at a time."""

import copy
import gc

import pytest
from torch import nn

from featherweight.errors import ConfigError
from featherweight.ownership import Part, claim, owner_of, owners_of, refuse_owned, release


class Owner:
    pass


WORDS = {"words": "MsT", "way_out": "Remove it first."}


def test_a_second_owner_is_refused_with_the_way_out_and_another_part_is_free():
    module, first, second = nn.Linear(2, 2), Owner(), Owner()
    claim(Part.FORWARD, module, first, **WORDS)
    claim(Part.FORWARD, module, first, **WORDS)
    with pytest.raises(ConfigError, match="module='layers.0' has an owner already, MsT owns its forward.*Remove it"):
        claim(Part.FORWARD, module, second, name="layers.0", **WORDS)
    claim(Part.WEIGHT, module, second, **WORDS)
    assert owner_of(Part.FORWARD, module) is first and owner_of(Part.WEIGHT, module) is second
    assert owners_of(Part.FORWARD, [module, module, nn.Linear(1, 1)]) == [first]


def test_a_claim_ends_with_its_release_and_with_its_owner_but_not_by_somebody_else():
    parameter, owner = nn.Linear(2, 2).weight, Owner()
    claim(Part.GRADIENT, parameter, owner, **WORDS)
    release(Part.GRADIENT, parameter, Owner())
    assert owner_of(Part.GRADIENT, parameter) is owner
    release(Part.GRADIENT, parameter, owner)
    refuse_owned(Part.GRADIENT, parameter, "test")
    claim(Part.GRADIENT, parameter, owner, **WORDS)
    del owner
    gc.collect()
    assert owner_of(Part.GRADIENT, parameter) is None
    refuse_owned(Part.GRADIENT, parameter, "test")


def test_a_copy_has_no_owner():
    module, owner = nn.Linear(2, 2), Owner()
    claim(Part.FORWARD, module, owner, **WORDS)
    assert owner_of(Part.FORWARD, copy.deepcopy(module)) is None
