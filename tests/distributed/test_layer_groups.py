"""Groups of layers that are gathered at once: repeated layers by themselves, the rest together."""

from torch import nn

from featherweight.distributed.layer_groups import layer_groups, repeated_layers


def model():
    layer = lambda: nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(2))})  # noqa: E731
    return nn.ModuleDict({"embed": nn.Embedding(4, 2), "layers": nn.ModuleList(layer() for _ in range(3))})


def test_layers_that_come_several_times_are_groups_and_what_repeats_inside_of_them_is_none():
    found = model()
    assert list(repeated_layers(found)) == list(found["layers"])
    assert [len(group) for group in layer_groups(found)] == [4, 4, 4, 1]


def test_a_tied_weight_counts_once_in_the_group_of_the_rest():
    found = model()
    found["head"] = nn.Linear(2, 4, bias=False)
    found["head"].weight = found["embed"].weight
    assert [len(group) for group in layer_groups(found)][-1] == 1
