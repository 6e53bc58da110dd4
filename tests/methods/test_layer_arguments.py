"""What a decoder layer is called with, by name, and what of it is cut like the tokens."""

import torch

from featherweight.methods.layer_arguments import bound_arguments, per_token, rebuilt


def layer(hidden_states, attention_mask=None, position_ids=None, **kwargs):
    return hidden_states


def test_hidden_states_and_all_else_are_found_however_they_are_given():
    hidden, mask = torch.zeros(1, 3, 2), torch.ones(1)
    found, arguments = bound_arguments(layer, (hidden, mask), {"position_ids": None, "use_cache": False})
    assert found is hidden
    assert arguments == {"attention_mask": mask, "position_ids": None, "use_cache": False}
    found, arguments = bound_arguments(layer, (), {"hidden_states": hidden})
    assert found is hidden and arguments == {}


def test_what_holds_something_for_each_token_comes_back_in_the_form_that_it_had():
    cosine, sine, position = torch.ones(1, 4, 2), torch.zeros(1, 4, 2), torch.arange(4)[None]
    names, tensors = per_token({"position_embeddings": (cosine, sine), "position_ids": position, "use_cache": True})
    assert tensors == (cosine, sine, position)
    again = rebuilt(names, tuple(tensor[:, 1:3] for tensor in tensors))
    assert list(again) == ["position_embeddings", "position_ids"]
    assert torch.equal(again["position_ids"], torch.tensor([[1, 2]]))
    assert [tuple(one.shape) for one in again["position_embeddings"]] == [(1, 2, 2), (1, 2, 2)]
