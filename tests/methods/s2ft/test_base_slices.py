"""Changes that are written into a weight and taken out again."""

import pytest
import torch

from featherweight.methods.s2ft.base_slices import ChannelChange, restore_, sum_changes, write_


def change(axis, indices, other, generator, dtype=torch.float32, scaling=1.0):
    delta = torch.randn(len(indices), other, generator=generator).to(dtype)
    return ChannelChange(axis, torch.tensor(indices), delta, scaling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_the_weights_own_bytes_come_back_where_rows_and_columns_meet(dtype, is_transposed, generator):
    weight = torch.randn(9, 7, generator=generator).to(dtype)
    weight = weight.T.contiguous().T if is_transposed else weight
    before = weight.clone()
    changes = [
        change("input", [1, 4], 9, generator),
        change("output", [0, 4, 8], 7, generator),
        change("input", [4, 6], 9, generator, scaling=-0.5),
    ]
    slices = write_(weight, changes)
    expected = before.float()
    summed = torch.zeros(9, 7)
    for one in (changes[0], changes[2]):
        summed[:, one.indices] += one.scaling * one.delta.T
    expected = (expected + summed).to(dtype).float()
    expected[changes[1].indices] += changes[1].delta
    torch.testing.assert_close(weight, expected.to(dtype))
    untouched = torch.ones(9, 7, dtype=torch.bool)
    untouched[:, [1, 4, 6]] = untouched[[0, 4, 8]] = False
    assert torch.equal(weight[untouched], before[untouched])
    restore_(weight, slices)
    assert torch.equal(weight, before)


def test_no_change_writes_nothing(generator):
    weight = torch.randn(3, 3, generator=generator)
    assert write_(weight, []) == write_(weight, [change("input", [], 3, generator)]) == []


def test_a_sum_stands_on_the_union_in_the_widest_type(generator):
    one = change("input", [5, 1], 3, generator, torch.bfloat16, scaling=2.0)
    two = change("input", [1, 7], 3, generator, torch.float64)
    union, summed = sum_changes([one, two])
    assert union.tolist() == [1, 5, 7] and summed.dtype == torch.float64
    torch.testing.assert_close(summed[0], 2 * one.delta[1].double() + two.delta[0])
    torch.testing.assert_close(summed[1:], torch.stack([2 * one.delta[0].double(), two.delta[1]]))
    assert sum_changes([one])[1].dtype == torch.float32
