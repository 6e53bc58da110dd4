"""Parts of cores and of bases: every part of every process together is the whole, whatever its number."""

import math

import pytest
import torch

from featherweight.optim.sharding import ParameterShard, share_of
from featherweight.optim.step.spread import CoreShare, own_parts, shared_bytes, spread_of, whole_parts
from featherweight.quant.storage import basis_storage_for, storage_for


class All:
    """Processes of which this is one; a gather finds the parts of the others where the test has left them."""

    def __init__(self, count, position):
        self.world_size, self.position, self.parts = count, position, []

    def gather_rows(self, rows, total):
        return torch.cat(self.parts.pop(0))[:total]


def shards(count, shape=(7, 12)):
    return [
        ParameterShard(shape, *share_of(shape[0], count, position), All(count, position)) for position in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_columns_and_blocks_of_a_core_are_parts_of_it_and_come_together_again(count):
    core = torch.arange(48.0).view(4, 12)
    for block, total in ((None, 12), (8, 6)):
        bounds = [share_of(total, count, position) for position in range(count)]
        shares = [CoreShare((4, 12), *one, block) for one in bounds]
        parts = [share.part(core) for share in shares]
        assert [tuple(part.shape) for part in parts] == [share.shape for share in shares]
        (shard, *_) = shards(count)
        rows = [share.as_rows(part) if block is None else part for share, part in zip(shares, parts, strict=True)]
        shard.collectives.parts = [rows]
        assert torch.equal(shares[0].whole(parts[0], shard), core)
    assert shares[0].words == "blocks of 8" and CoreShare((4, 12), 0, 12).words == "columns"


@pytest.mark.parametrize("count", [2, 3, 64])
@pytest.mark.parametrize(("bits", "renorm"), [(32, False), (16, False), (4, True), (8, False)])
def test_a_basis_of_any_storage_is_shared_by_any_number_of_processes_and_read_as_it_was(count, bits, renorm):
    # Mutation: shares of whole blocks, which 300 elements on 64 processes do not have.
    storage, shape = basis_storage_for(bits, renorm), (100, 3)
    whole = storage.zeros(shape, device="cpu")
    storage.write_(whole, torch.linalg.qr(torch.randn(shape, generator=torch.Generator().manual_seed(0)))[0])
    everyone = shards(count)
    kept = [own_parts(whole, shard) for shard in everyone]
    sizes = [sum(part.nbytes for part in one.values()) for one in kept]
    assert sizes == [shared_bytes(storage, shape, torch.float32, shard) for shard in everyone]
    assert sum(sizes) == storage.nbytes(shape)
    everyone[0].collectives.parts = [[one[suffix] for one in kept] for suffix in whole]
    found = whole_parts(kept[0], storage, shape, torch.float32, everyone[0])
    assert all(torch.equal(found[suffix], part) for suffix, part in whole.items())


def test_what_is_split_of_a_state_follows_from_its_storage():
    assert spread_of("exp_avg", storage_for(32, signed=True, numel=1), (4, 12), torch.float32, 1) == {
        "exp_avg": (1, 12)
    }
    codes = storage_for(8, signed=True, numel=8192)
    assert spread_of("exp_avg", codes, (8, 1024), torch.float32, 1) == {
        "exp_avg_codes": (0, 8192),
        "exp_avg_block_scale": (0, math.ceil(8192 / 256)),
    }
