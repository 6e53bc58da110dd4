"""What `report()` says of an optimizer."""

import torch
from torch import nn

from featherweight.optim import GaLoreAdamW, TensorGaLoreAdamW


def rows(optimizer, section):
    return [list(row) for row in optimizer.report().section(section).rows]


def test_parameters_are_counted_by_kind_with_the_bytes_of_their_states():
    weights = [nn.Parameter(torch.ones(shape)) for shape in ((64, 32), (32, 64), (16, 40), (5,))]
    optimizer = GaLoreAdamW(weights, rank=4)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    found = {row[0]: row[1:] for row in rows(optimizer, "Parameters by kind")}
    assert {kind: row[:2] for kind, row in found.items()} == {
        "full rank": [1, 5],
        "rank 4, left": [2, 32 * 64 + 16 * 40],
        "rank 4, right": [1, 64 * 32],
    }
    assert sum(row[4] for row in found.values()) == optimizer.state_bytes()
    assert found["rank 4, right"][2:4] == [2 * 64 * 4 * 4, 32 * 4 * 4] and found["rank 4, left"][5] == 2


def test_projected_tensors_are_listed_with_their_ranks():
    optimizer = TensorGaLoreAdamW([{"params": [("kernel", nn.Parameter(torch.ones(8, 8, 4, 4)))], "rank": 0.5}])
    ((name, shape, ranks, share, size_bytes, refreshes),) = rows(optimizer, "Tensors")
    assert (name, shape, refreshes) == ("kernel", "8 x 8 x 4 x 4", 0)
    assert len(ranks.split(" x ")) == 4 and 0 < share < 1 and size_bytes == optimizer.state_bytes()


def test_what_a_process_holds_of_sharded_matrices_is_one_table_with_reasons():
    from featherweight.optim.sharding import ParameterShard, register_shard

    class Two:
        world_size, position = 2, 0

    weights = [nn.Parameter(torch.ones(shape)) for shape in ((64, 520), (64, 520), (64, 1024), (5,))]
    for weight in weights:
        register_shard(weight, ParameterShard(tuple(weight.shape), 0, -(-len(weight) // 2), Two()))
    found = rows(GaLoreAdamW(weights, rank=8, state_bits=8), "What a process holds of matrices")
    assert found == [
        ["left", "rows", "all: 4160 codes are no whole blocks of 256 on each of 2", "all", 2, "parameter 0"],
        ["left", "rows", "blocks of 256", "all", 1, "parameter 2"],
    ]
    assert "What a process holds" not in str(GaLoreAdamW([nn.Parameter(torch.ones(8, 4))], rank=2).report())
