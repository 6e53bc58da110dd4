"""Layers in two regions of chunks: `MsT(tokenwise=True)`."""

import causal_models as models
import pytest
import torch

import featherweight as fw
from featherweight.methods.forward_patch import is_patched
from featherweight.nn import offload

# With 3 rows, chunks of 2 positions of 19.
METHOD = {"tokenwise": True, "chunk_size": 8, "head_chunk_size": 5}


# Mutation: a position embedding that is not cut with its tokens, or a residual that is added in the wrong region.
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_loss_and_gradients_of_an_architecture_equal_the_stock_model(name, attention):
    if name == "gemma2" and attention == "sdpa":
        pytest.skip("soft-capped attention has no sdpa form")
    model, inputs = models.causal_model(name, attn_implementation=attention), models.batch()
    expected = models.loss_and_gradients(model, inputs)

    report = fw.apply(model, fw.MsT(**METHOD))

    what = [row[2] for row in report.section("Modules").rows]
    assert sum("in two chunked regions" in one for one in what) == 2 and what[2] == "in chunks"
    models.assert_same_step(models.loss_and_gradients(model, inputs), expected)
    fw.remove(model, fw.MsT())
    assert not any(map(is_patched, model.modules()))
    models.assert_same_step(models.loss_and_gradients(model, inputs), expected, tolerance=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi"])
def test_no_part_of_a_layer_sees_all_tokens_at_once(name):
    model = models.causal_model(name)
    fw.apply(model, fw.MsT(**METHOD))
    lengths = {}
    for layer in (model.transformer.h if name == "gpt2" else model.model.layers)[:1]:
        for part, module in layer.named_modules():
            if not list(module.children()) and list(module.parameters()):
                module.register_forward_pre_hook(
                    lambda m, args, part=part: lengths.setdefault(part, set()).add(args[0].shape[1])
                )

    models.loss_and_gradients(model, models.batch())

    assert len(lengths) >= 6 and all(seen == {1, 2} for seen in lengths.values()), lengths


@pytest.mark.parametrize("use_reentrant", [None, True, False], ids=["none", "reentrant", "not reentrant"])
def test_hooks_run_once_per_parameter_also_with_the_models_own_checkpointing(use_reentrant):
    model, inputs = models.causal_model("llama"), models.batch()
    expected = models.loss_and_gradients(model, inputs)
    fw.apply(model, fw.MsT(**METHOD))
    if use_reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: calls.append(name))

    models.assert_same_step(models.loss_and_gradients(model, inputs), expected)

    assert sorted(calls) == sorted(name for name, _ in model.named_parameters())


# Mutation: if the feed-forward weights were among the parameters of the first region, their gradients would wait for
# it.
def test_gradients_of_the_second_region_do_not_wait_for_the_first():
    model = models.causal_model("llama")
    fw.apply(model, fw.MsT(**METHOD))
    order = []
    for name, parameter in model.model.layers[1].named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: order.append(name))

    models.loss_and_gradients(model, models.batch())

    late = [index for index, name in enumerate(order) if name.startswith(("self_attn.q", "self_attn.k", "self_attn.v"))]
    early = [index for index, name in enumerate(order) if name.startswith(("mlp", "self_attn.o_proj"))]
    assert max(early) < min(late), order


@pytest.mark.parametrize("targets", [["q_proj", "o_proj"], ["gate_proj", "down_proj"], "all-linear"], ids=str)
@pytest.mark.parametrize("order", ["peft first", "mst first"])
def test_adapters_of_peft_train_as_in_the_stock_model(targets, order):
    from peft import LoraConfig, get_peft_model

    def adapted(model):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))

    inputs = models.batch()
    expected = models.loss_and_gradients(adapted(models.causal_model("llama")), inputs)
    model = models.causal_model("llama")
    if order == "mst first":
        fw.apply(model, fw.MsT(**METHOD, checkpoint=True))
        model = adapted(model)
    else:
        model = adapted(model)
        fw.apply(model, fw.MsT(**METHOD, checkpoint=True))

    models.assert_same_step(models.loss_and_gradients(model, inputs), expected)
    assert all("lora" in name for name in expected[1])


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_generation_and_logits_are_unchanged(name):
    model, inputs = models.causal_model(name).eval(), models.batch()
    prompt = inputs["input_ids"]

    def outputs():
        with torch.no_grad():
            generated = model.generate(prompt, max_new_tokens=6, do_sample=False, attention_mask=prompt.new_ones(3, 19))
            return generated, model(prompt).logits, model(prompt, use_cache=False).logits

    expected = outputs()
    fw.apply(model, fw.MsT(**METHOD))

    found = outputs()
    assert torch.equal(found[0], expected[0])
    for one, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_cache_in_training_is_filled_as_in_the_stock_model():
    model, inputs = models.causal_model("llama"), models.batch()
    expected = model(inputs["input_ids"], use_cache=True)
    fw.apply(model, fw.MsT(**METHOD))
    lengths = []
    model.model.layers[1].self_attn.q_proj.register_forward_pre_hook(lambda m, args: lengths.append(args[0].shape[1]))

    found = model(inputs["input_ids"], use_cache=True)

    assert lengths == 9 * [2] + [1]  # the second layer too, whose cache is empty when the first one's is filled
    for layer, other in zip(found.past_key_values.layers, expected.past_key_values.layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys)
        torch.testing.assert_close(layer.values, other.values)
    token = inputs["input_ids"][:, :1]
    torch.testing.assert_close(
        model(token, past_key_values=found.past_key_values).logits,
        model(token, past_key_values=expected.past_key_values).logits,
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_rows_and_hidden_states_are_as_in_the_stock_model(attention):
    model, inputs = models.causal_model("llama", attn_implementation=attention), models.batch()
    padding = torch.ones_like(inputs["input_ids"])
    padding[1, :5] = padding[2, :9] = 0
    options = {"attention_mask": padding, "output_hidden_states": True, "use_cache": False}
    expected = model(inputs["input_ids"], **options).hidden_states
    fw.apply(model, fw.MsT(**METHOD))

    found = model(inputs["input_ids"], **options).hidden_states

    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_packed_rows_keep_their_documents_apart():
    model, inputs = models.causal_model("llama"), models.batch()
    packed = {**inputs, "position_ids": torch.cat([torch.arange(12), torch.arange(7)]).expand(3, -1)}
    expected = models.loss_and_gradients(model, packed)
    assert abs(float(models.loss_and_gradients(model, inputs)[0] - expected[0])) > 1e-3
    fw.apply(model, fw.MsT(**METHOD))

    models.assert_same_step(models.loss_and_gradients(model, packed), expected)


def test_weights_of_attention_come_when_they_are_asked_for():
    model, inputs = models.causal_model("llama", attn_implementation="eager"), models.batch()
    expected = model(inputs["input_ids"], output_attentions=True).attentions
    fw.apply(model, fw.MsT(**METHOD))

    found = model(inputs["input_ids"], output_attentions=True).attentions

    assert len(found) == 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_dropout_repeats_its_numbers_in_the_backward_pass():
    model, inputs = models.causal_model("gpt2", resid_pdrop=0.5), models.batch()
    fw.apply(model, fw.MsT(**METHOD))

    def loss_at(shift):
        torch.manual_seed(3)
        with torch.no_grad():
            weight = model.transformer.h[0].mlp.c_fc.weight
            weight.add_(direction, alpha=shift)
            loss = model(**inputs, use_cache=False).loss
            weight.add_(direction, alpha=-shift)
        return float(loss)

    model.double()
    direction = torch.randn(32, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    _, gradients = models.loss_and_gradients(model, inputs)

    slope = float((gradients["transformer.h.0.mlp.c_fc.weight"] * direction).sum())
    # Central differences of step 1e-4 err by some 1e-8, float32 parts of the loss by 1e-7 / 1e-4.
    assert (loss_at(1e-4) - loss_at(-1e-4)) / 2e-4 == pytest.approx(slope, rel=1e-2)


def test_bf16_and_autocast_stay_within_rounding_of_the_stock_model():
    for dtype, autocast in ((torch.bfloat16, False), (torch.float32, True)):
        model, inputs = models.causal_model("llama", dtype), models.batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            expected = models.loss_and_gradients(model, inputs)
        fw.apply(model, fw.MsT(**METHOD))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, gradients = models.loss_and_gradients(model, inputs)
        torch.testing.assert_close(loss, expected[0], rtol=1e-4, atol=1e-4)  # equal logits, float32 sums
        for name, gradient in gradients.items():
            # A handful of roundings to bfloat16 (2**-9 each) along the way back, in another place on either side.
            assert (gradient - expected[1][name]).norm() <= 2**-5 * expected[1][name].norm(), name


# Mutation: a saved tensor that holds its own node keeps the input of every layer until the process ends.
@pytest.mark.parametrize(("checkpoint", "kept"), [(True, 1), ("offload", 0)])
def test_memory_grows_with_depth_by_the_layers_inputs_alone(checkpoint, kept, monkeypatch):
    def peak(layers):
        model = models.causal_model("llama", num_hidden_layers=layers).requires_grad_(False)
        model.model.embed_tokens.weight.requires_grad_(True)
        fw.apply(model, fw.MsT(tokenwise=True, chunk_size=64, head_chunk_size=64, checkpoint=checkpoint))
        tokens = torch.arange(1024).view(1, -1) % models.VOCABULARY
        # Made before the measurement, host memory is not among what it counts.
        host = [torch.empty(1, 1024, 32) for _ in range(layers)]
        monkeypatch.setattr(offload, "_host_memory", lambda tensor: host.pop())
        with fw.measure_memory(model) as memory:
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        return memory.peak_bytes - memory.peak_by_category["weights"]

    assert peak(7) - peak(3) == pytest.approx(kept * 4 * 1024 * 32 * 4, abs=20_000)  # saved random states, 5 KB each
