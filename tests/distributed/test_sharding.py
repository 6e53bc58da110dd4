"""`shard` refuses what has no rows or is wrapped, with the way out."""

import pytest
import torch

import featherweight as fw
from featherweight.distributed.sharding import BASES, KINDS
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


@pytest.mark.parametrize("name", ["DeepSpeedEngine", "PipelineEngine", "DeepSpeedHybridEngine", "SomeLaterEngine"])
def test_every_engine_of_deepspeed_is_refused_by_its_package_and_its_parameters_by_their_marks(name):
    # Mutation: the name of one class. DeepSpeed itself is not installed here; these have its modules and attributes.
    engine = type(name, (torch.nn.Linear,), {"__module__": "deepspeed.runtime.engine"})(2, 2)
    with pytest.raises(ConfigError, match="which then have no rows \\(ZeRO\\).*does what ZeRO-3 does"):
        fw.distributed.shard(engine)
    plain = torch.nn.Linear(2, 2)
    optimizer = fw.optim.AdamW(plain.parameters())
    with pytest.raises(ConfigError, match=f"model={name} is an engine of DeepSpeed"):
        fw.optim.layerwise(engine, optimizer)
    for mark in ("ds_id", "ds_tensor"):  # what zero.Init leaves on the parameters of the bare model
        plain = torch.nn.Linear(2, 2)
        setattr(plain.weight, mark, 0)
        with pytest.raises(ConfigError, match="flattened shard of DeepSpeed ZeRO-3"):
            fw.distributed.shard(plain, "fsdp2")
        with pytest.raises(ConfigError, match="flattened shard of DeepSpeed ZeRO-3"):
            fw.optim.AdamW(plain.parameters())


def test_an_optimizer_whose_groups_an_engine_has_flattened_says_so():
    # ZeRO-1 and ZeRO-2 put flat partitions in the place of the parameters of the groups. Mutation: full-rank AdamW on
    # these, without a word.
    plain = torch.nn.Linear(4, 4)
    optimizer = fw.optim.GaLoreAdamW(plain.parameters(), rank=2)
    flat = torch.nn.Parameter(torch.zeros(10))
    optimizer.param_groups[0]["params"] = [flat]
    flat.grad = torch.ones(10)
    with pytest.raises(ConfigError, match=r"params hold \(10,\) and no matrix any more.*DeepSpeed.*fsdp2"):
        optimizer.step()


def test_bases_are_whole_or_shared_and_replicas_have_all():
    with pytest.raises(ConfigError, match="basis='half'"):
        fw.distributed.shard(torch.nn.Linear(2, 2), "fsdp2", basis="half")
    for given in ({"basis": "sharded"}, {"columns": ["weight"]}):
        with pytest.raises(ConfigError, match="under ddp, where every process has all"):
            fw.distributed.shard(torch.nn.Linear(2, 2), "ddp", **given)
    assert BASES == ("replicated", "sharded")


def test_an_unknown_kind_names_the_nearest():
    with pytest.raises(ConfigError, match=r"kind='fsdp' is unknown.*Did you mean 'fsdp2'"):
        fw.distributed.shard(torch.nn.Linear(2, 2), "fsdp")
    assert KINDS == ("ddp", "fsdp2", "hsdp")
