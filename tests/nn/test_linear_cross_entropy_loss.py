import pytest
import torch

import featherweight as fw
from featherweight.errors import ConfigError


def test_the_module_gives_what_the_function_gives_with_its_options(generator):
    hidden, weight = torch.randn(20, 8, generator=generator), torch.randn(32, 8, generator=generator)
    bias, labels = torch.randn(32, generator=generator), torch.randint(32, (20,), generator=generator)
    options = {"label_smoothing": 0.1, "logit_softcap": 5.0, "z_loss": 0.01, "chunk_size": 7, "reduction": "mean"}

    loss = fw.LinearCrossEntropyLoss(**options)

    expected = fw.linear_cross_entropy(hidden, weight, labels, bias=bias, num_items_in_batch=11, **options)
    assert torch.equal(loss(hidden, weight, labels, bias=bias, num_items_in_batch=11), expected)
    assert not list(loss.parameters()) and not loss.state_dict()
    assert not torch.equal(loss(hidden, weight, labels, bias=bias), expected)


def test_an_unknown_option_is_named():
    with pytest.raises(ConfigError, match="Did you mean 'label_smoothing'"):
        fw.LinearCrossEntropyLoss(label_smoothin=0.1)
