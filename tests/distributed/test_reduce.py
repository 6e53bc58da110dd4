"""Traffic is counted, tensors of one kind travel together."""

import torch

from featherweight.distributed.reduce import Traffic, _by_kind


def test_traffic_adds_up_and_a_ring_sends_two_shares_of_an_all_reduce():
    traffic = Traffic()
    traffic.count("all_reduce", [torch.zeros(3, 2), torch.zeros(2)], 32)
    traffic.count("all_reduce", [torch.zeros(3, 2)], 24)
    assert traffic.calls == 2 and traffic.payload_bytes["all_reduce"] == 56 and traffic.shapes[3, 2] == 2
    assert traffic.wire_bytes(4) == 2 * 3 / 4 * 56 and traffic.wire_bytes(1) == 0


def test_tensors_of_one_dtype_travel_together_in_the_order_in_which_they_came():
    one, two, three = torch.zeros(1), torch.zeros(2, dtype=torch.float64), torch.zeros(3)
    assert [[len(each) for each in kind] for kind in _by_kind([one, two, three])] == [[1, 3], [2]]
