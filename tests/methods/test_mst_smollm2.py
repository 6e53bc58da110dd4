"""A real pretrained model: the same numbers with and without MsT."""

import copy
import pydoc_data.topics

import pytest
import torch
from torch.nn import functional as F

import featherweight as fw
from featherweight.models import load_model, load_tokenizer


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return loss.item(), gradients


def wide_norm(self, x):
    """LlamaRMSNorm without its cast to float32, which would turn float64 differences of 1e-16 into 1e-7."""
    return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"checkpoint": True}, {"tokenwise": True, "checkpoint": "offload"}], ids=str)
def test_smollm2_gives_the_same_logits_loss_and_gradients(options, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    model, tokenizer = load_model("smollm2").train(), load_tokenizer("smollm2")
    inputs = tokenizer(pydoc_data.topics.topics["assignment"], return_tensors="pt")["input_ids"][:, :100]
    labels = inputs.clone()
    labels[:, :10] = -100
    logits = model(inputs, use_cache=False).logits.detach()
    plain_loss, plain = gradients_of(model, model(inputs, labels=labels, use_cache=False).loss)
    changed = copy.deepcopy(model)
    fw.apply(changed, fw.MsT(chunk_size=32, head_chunk_size=16, **options))

    with torch.no_grad():
        torch.testing.assert_close(changed(inputs).logits, logits, rtol=1e-5, atol=1e-4)  # logits reach 30
    loss, gradients = gradients_of(changed, changed(inputs, labels=labels, use_cache=False).loss)

    assert loss == pytest.approx(plain_loss, abs=1e-5)
    monkeypatch.setattr(LlamaRMSNorm, "forward", wide_norm)
    stock = model.double()
    wide_logits = stock(inputs, use_cache=False).logits  # the model's own loss would go through float32
    exact_loss, exact = gradients_of(stock, F.cross_entropy(wide_logits[0, :-1], labels[0, 1:]))
    del stock, wide_logits
    changed.double()
    wide_loss, wide = gradients_of(changed, changed(inputs, labels=labels, use_cache=False).loss)
    assert wide_loss == pytest.approx(exact_loss, abs=1e-11)
    assert wide.keys() == exact.keys() and len(wide) == 272

    def error(one, name):
        return ((one[name] - exact[name]).norm() / exact[name].norm()).item()

    for name in exact:
        assert error(wide, name) <= 1e-10, name  # float64 rounding of 1e-16, amplified by 30 layers
        # In float32 the same amplification makes plain gradients differ from exact ones; ours may not be worse.
        assert error(gradients, name) <= max(2 * error(plain, name), 1e-5), name
