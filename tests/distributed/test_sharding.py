"""`shard` refuses what has no rows or is wrapped, with the way out."""

import pytest
import torch

import featherweight as fw
from featherweight.distributed.sharding import KINDS
from featherweight.errors import ConfigError


def named(name):
    """A module whose class bears the name of a wrapper of another library."""
    return type(name, (torch.nn.Linear,), {"__module__": "elsewhere"})(2, 2)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("DistributedDataParallel", "core_hook"),
        ("DataParallel", "torchrun"),
        ("FullyShardedDataParallel", "FSDP2"),
        ("DeepSpeedEngine", "ZeRO"),
    ],
)
def test_wrapped_models_are_refused_with_what_to_use_instead(name, words):
    with pytest.raises(ConfigError, match=words) as caught:
        fw.distributed.shard(named(name))
    assert f"model={name}" in str(caught.value)


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ConfigError, match=r"kind='fsdp' is unknown.*Did you mean 'fsdp2'"):
        fw.distributed.shard(torch.nn.Linear(2, 2), "fsdp")
    assert KINDS == ("ddp", "fsdp2", "hsdp")
