"""A real pretrained model, layer by layer: its loss, its gradients, and less memory."""

import pydoc_data.topics

import pytest
import torch

import featherweight as fw
from featherweight.memory.tracker import StorageTracker
from featherweight.models import load_model, load_tokenizer
from featherweight.training import LayerMajor

LENGTH = 1024


@pytest.mark.slow
def test_smollm2_trains_layer_by_layer_with_the_gradients_of_the_whole_sequence_in_less_memory():
    model, tokenizer = load_model("smollm2").train(), load_tokenizer("smollm2")
    text = "\n".join(pydoc_data.topics.topics.values())
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :LENGTH]
    fw.apply(model, fw.MsT(checkpoint=True))
    with StorageTracker(model) as whole:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    fw.remove(model, fw.MsT())
    with StorageTracker(model) as streamed:
        found = LayerMajor(model, chunk_tokens=256).step({"input_ids": ids, "labels": ids})
    torch.testing.assert_close(found, loss.detach(), rtol=1e-5, atol=0)
    for name, parameter in model.named_parameters():
        error = float((parameter.grad - expected[name]).norm() / expected[name].norm())
        assert error < 2e-3, (name, error)  # float32, amplified by 30 layers
    # Logits of 1024 x 49,152 are chunks of 256 here; both hold 513 MiB of weights and as many of gradients.
    assert streamed.peak_bytes < 1.15 * whole.peak_bytes
