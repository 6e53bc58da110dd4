"""Ways of checkpointing a layer."""

import copy

import causal_models as models
import pytest

import featherweight as fw
from featherweight.errors import ConfigError

# With 3 rows, chunks of 2 positions of 19.
METHOD = {"tokenwise": True, "chunk_size": 8, "head_chunk_size": 5}


@pytest.mark.parametrize("mode", [True, "selective", "offload"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_every_way_of_checkpointing_changes_no_number(name, mode):
    model, inputs = models.causal_model(name), models.batch()
    expected = models.loss_and_gradients(model, inputs)

    fw.apply(model, fw.MsT(**METHOD, checkpoint=mode))

    models.assert_same_step(models.loss_and_gradients(copy.deepcopy(model), inputs), expected)
    models.assert_same_step(models.loss_and_gradients(model, inputs), expected)
    fw.remove(model, fw.MsT())
    assert not model.is_activation_checkpointing


def test_products_cannot_be_kept_in_regions():
    with pytest.raises(ConfigError, match="save='products'"):
        fw.apply(models.causal_model("llama"), fw.MsT(tokenwise=True, save="products"))
