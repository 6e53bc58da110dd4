"""Whole tensors for files: tied weights stay one, and an ordinary model is read and written as it is."""

import torch

from featherweight.distributed.whole import WholeModel, is_sharded, whole_state, whole_tensor, whole_weights


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_are_one_tensor():
    weights = whole_weights(Tied())
    assert weights["embed.weight"] is weights["head.weight"] and not is_sharded(Tied())


def test_an_ordinary_model_is_written_in_place_and_says_what_is_missing():
    model, whole = Tied(), {"embed.weight": torch.ones(5, 3), "other": torch.ones(1)}
    missing, unexpected = WholeModel(model).load_state_dict(whole, strict=False)
    assert (missing, unexpected) == (["head.weight"], ["other"])
    assert torch.equal(model.head.weight, torch.ones(5, 3))
    assert set(WholeModel(model).state_dict()) == {"embed.weight", "head.weight"}


def test_nested_states_keep_their_form():
    state = {"a": [torch.ones(2), (1, "x")], "b": {"c": None}}
    found = whole_state(state)
    assert found["a"][1] == (1, "x") and found["b"] == {"c": None} and whole_tensor(3) == 3
