import causal_models as models
import pytest
import torch

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.forward_patch import is_patched

METHOD = fw.MsT(chunk_size=8, head_chunk_size=5)


def is_changed(model):
    return any(map(is_patched, model.modules()))


def test_models_built_inside_the_block_compute_the_same_in_chunks():
    inputs = models.batch()
    stock = models.causal_model("llama")
    expected_loss, expected = models.loss_and_gradients(stock, inputs)

    with fw.apply_to_new_models(METHOD) as handle:
        model = models.causal_model("llama")

    loss, gradients = models.loss_and_gradients(model, inputs)
    assert model(**inputs).logits is None and len(handle.reports) == 1
    torch.testing.assert_close(loss, expected_loss)
    assert list(model.state_dict()) == list(stock.state_dict()) and type(model) is type(stock)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5)
    fw.remove(model, fw.MsT())
    assert not is_changed(model)


@pytest.mark.parametrize("tokenwise", [False, True])
def test_loading_finds_the_change_made_and_the_weights_in_place(tmp_path, tokenwise):
    from transformers import AutoModelForCausalLM

    inputs = models.batch()
    stock = models.causal_model("smollm")
    expected_loss, _ = models.loss_and_gradients(stock, inputs)
    stock.save_pretrained(tmp_path)

    with fw.apply_to_new_models(fw.MsT(chunk_size=8, head_chunk_size=5, tokenwise=tokenwise, checkpoint="offload")):
        model = AutoModelForCausalLM.from_pretrained(tmp_path).train()

    loss, _ = models.loss_and_gradients(model, inputs)
    torch.testing.assert_close(loss, expected_loss)
    assert model(**inputs).logits is None
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").train()
    assert not is_changed(again)
    torch.testing.assert_close(models.loss_and_gradients(again, inputs)[0], expected_loss)


def test_models_built_after_the_end_are_left_alone_whatever_ended_it():
    from transformers import PreTrainedModel

    plain = PreTrainedModel.post_init
    handle = fw.apply_to_new_models(METHOD)
    assert is_changed(models.causal_model("llama"))
    handle.remove()
    handle.remove()
    assert not is_changed(models.causal_model("llama"))
    with pytest.raises(ZeroDivisionError), fw.apply_to_new_models(METHOD):
        raise ZeroDivisionError
    assert not is_changed(models.causal_model("llama"))
    assert PreTrainedModel.post_init is plain


def test_models_without_an_output_head_are_left_alone():
    from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel

    with fw.apply_to_new_models(METHOD) as handle:
        for kind in (LlamaModel, LlamaForSequenceClassification):
            assert not is_changed(kind(LlamaConfig(**models.LLAMA)))
    assert handle.reports == []


def test_a_model_that_cannot_be_changed_says_so_when_it_is_built():
    from transformers import AutoConfig, AutoModelForCausalLM

    with fw.apply_to_new_models(fw.MsT(tokenwise=True)), pytest.raises(ConfigError, match="router_logits"):
        AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **models.LLAMA, num_local_experts=2))


def test_one_method_of_a_kind_waits_at_a_time():
    with fw.apply_to_new_models(METHOD), pytest.raises(ConfigError, match="waiting for new models already"):
        fw.apply_to_new_models(fw.MsT(head=False))
    with pytest.raises(ConfigError, match="is no method"):
        fw.apply_to_new_models(fw.MsT)
    with fw.apply_to_new_models(fw.MsT(head=False)):
        pass
