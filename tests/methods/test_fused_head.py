"""The loss without logits: router losses, image models, and what is put on the head after the method was applied."""

import copy
from contextlib import contextmanager

import causal_models as models
import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_hooks

import featherweight as fw
from featherweight.errors import ConfigError

HEAD = {"mlp": False, "head_chunk_size": 5}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {**MOE, "head_dim": 8},
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 16},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
}


def model_of(kind, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = AutoConfig.for_model(kind, **{**models.LLAMA, **changes})
        config._experts_implementation = "eager"  # grouped products know no float64
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.double().train()


def exact_step(model, inputs, router_loss=0.0, **options):
    """Return the plain loss and its gradients; the models' own loss rounds float64 logits to float32."""
    model.zero_grad()
    given = {name: value for name, value in inputs.items() if name != "labels"}
    output = model(**given, use_cache=False, **options)
    labels = inputs["labels"][:, 1:].reshape(-1)
    loss = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels)
    if router_loss:
        loss = loss + router_loss * output.aux_loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# Mutation: a router loss that is dropped is 2 % of the loss here; all else is float64 in another order.
@pytest.mark.parametrize("asked", ["by the configuration", "in the call"])
@pytest.mark.parametrize("kind", ROUTED)
def test_the_loss_of_experts_has_their_router_loss_in_float64(kind, asked):
    in_call = {"output_router_logits": True} if asked == "in the call" else {}
    model = model_of(kind, output_router_logits=not in_call, router_aux_loss_coef=0.1, **ROUTED[kind])
    inputs = models.batch()
    expected = exact_step(model, inputs, 0.1, **in_call)
    assert model(**inputs, output_router_logits=False).loss < 0.99 * expected[0]

    report = fw.apply(model, fw.MsT(**HEAD))

    assert report.section("Modules").rows[-1][2] == "loss in chunks"
    models.assert_same_step(models.loss_and_gradients(model, inputs, **in_call), expected, tolerance=1e-12)
    output = model(**inputs, **in_call)
    assert output.logits is None and output.aux_loss > 0 and len(output.router_logits) == 2


def llava():
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaConfig(
        text_config={"model_type": "llama", **models.LLAMA},
        vision_config={"model_type": "clip_vision_model", **vision, "image_size": 8, "patch_size": 4},
        image_token_id=7,
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlavaForConditionalGeneration(config).double().train()


def test_a_model_that_reads_images_computes_the_same_loss_without_logits():
    model, inputs = llava(), models.batch(rows=2)
    inputs["input_ids"][inputs["input_ids"] == 7] = 8
    inputs["input_ids"][:, :4] = 7  # four patches an image
    inputs["labels"][:, :4] = -100
    inputs["pixel_values"] = torch.linspace(-1, 1, 2 * 3 * 64, dtype=torch.float64).view(2, 3, 8, 8)
    expected = exact_step(model, inputs)

    report = fw.apply(model, fw.MsT(**HEAD))

    assert report.section("Modules").rows[-1][2] == "loss in chunks"
    models.assert_same_step(models.loss_and_gradients(model, inputs), expected, tolerance=1e-12)
    output = model(**inputs)
    assert output.logits is None and output.image_hidden_states is not None


def test_a_model_whose_base_stands_under_another_name_is_changed():
    model = model_of(
        "llama4_text", head_dim=8, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=32
    ).float()
    inputs = models.batch()
    expected = models.loss_and_gradients(model, inputs)

    fw.apply(model, fw.MsT(**HEAD))

    models.assert_same_step(models.loss_and_gradients(model, inputs), expected)
    assert model(**inputs).logits is None


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    return T5ForConditionalGeneration(T5Config(vocab_size=models.VOCABULARY, **sizes, decoder_start_token_id=0)).train()


def test_a_model_that_computes_its_loss_by_itself_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="it does not ask its loss_function for the loss"):
        fw.apply(t5(), fw.MsT())

    with torch.device("meta"):
        model = t5()  # nothing to try it on: refused at its first loss
    fw.apply(model, fw.MsT(mlp=False))
    model = model.to_empty(device="cpu")
    with pytest.raises(ConfigError, match=r"does not ask its loss_function.*MsT\(head=False\)"):
        model(**models.batch())


def test_applying_draws_no_number_and_leaves_the_modes():
    model = models.causal_model("gpt2", attn_pdrop=0.5, embd_pdrop=0.5)
    model.transformer.h[0].eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()

    fw.apply(model, fw.MsT(**HEAD))

    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def scaled(module, args, output):
    return output * 2


def turned(module, args):
    return (args[0].flip(-1),)


def centred(module, args, output):
    return output - output.mean(1, keepdim=True)  # over the tokens: a chunk has others


HOOKS = {
    "forward": lambda head: head.register_forward_hook(scaled),
    "before": lambda head: head.register_forward_pre_hook(turned),
    "over all tokens": lambda head: head.register_forward_hook(centred),
    "backward": lambda head: head.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 3,)),
    "weight norm of old": lambda head: torch.nn.utils.weight_norm(head),
    "spectral norm": lambda head: torch.nn.utils.parametrizations.spectral_norm(head),
}


# Mutation: a head whose weight is taken and whose call is not made has the loss of a model without the hook.
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_on_the_head_count_whenever_they_are_registered(name, order):
    stock, inputs = models.causal_model("llama", torch.float64), models.batch()
    model = copy.deepcopy(stock)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        HOOKS[name](stock.lm_head)
    expected = models.loss_and_gradients(stock, inputs)
    if order == "after":
        fw.apply(model, fw.MsT(**HEAD))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        HOOKS[name](model.lm_head)

    if order == "before":
        with pytest.raises(ConfigError, match="left alone: its head has "):
            fw.apply(model, fw.MsT(**HEAD))
        found = models.loss_and_gradients(model, inputs)
    else:
        with pytest.warns(UserWarning, match="output head of LlamaForCausalLM has .* computed with all logits"):
            found = models.loss_and_gradients(model, inputs)

    models.assert_same_step(found, expected, tolerance=1e-12)


@contextmanager
def of_all_modules(register, head, hook):
    """A hook of torch for all modules, which acts on the head alone."""

    def on_head(module, *args):
        return hook(module, *args) if module is head else None

    handle = register(on_head)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore:For backward hooks to be called, module output should be a Tensor")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing when gradients are computed")  # of modules below
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(
    ("register", "hook"),
    [
        (torch_hooks.register_module_forward_hook, scaled),
        (torch_hooks.register_module_forward_pre_hook, turned),
        (torch_hooks.register_module_full_backward_hook, lambda module, inputs, outputs: (inputs[0] * 3,)),
    ],
)
def test_hooks_of_all_modules_count_too(register, hook, order):
    stock, inputs = models.causal_model("llama", torch.float64), models.batch()
    model = copy.deepcopy(stock)
    with of_all_modules(register, stock.lm_head, hook):
        expected = models.loss_and_gradients(stock, inputs)
    if order == "after":
        fw.apply(model, fw.MsT(**HEAD))
    with of_all_modules(register, model.lm_head, hook):
        if order == "before":
            with pytest.raises(ConfigError, match="left alone: its head has hooks"):
                fw.apply(model, fw.MsT(**HEAD))
            found = models.loss_and_gradients(model, inputs)
        else:
            with pytest.warns(UserWarning, match="has hooks, so the loss is computed with all logits"):
                found = models.loss_and_gradients(model, inputs)
    models.assert_same_step(found, expected, tolerance=1e-12)


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(model):
    torch.nn.utils.parametrize.register_parametrization(model.lm_head, "weight", Twice())
    return model


def replaced(model):
    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 0.5

    head = Scaled(32, models.VOCABULARY, bias=False, dtype=torch.float64)
    head.weight = model.lm_head.weight
    model.set_output_embeddings(head)
    return model


def wrapped(model):
    plain = model.lm_head.forward
    model.lm_head.forward = lambda x: plain(x) * 0.5
    return model


def with_cap(model):
    model.config.final_logit_softcapping = 0.5
    return model


def with_peft(**options):
    def change(model):
        from peft import LoraConfig, get_peft_model

        with torch.random.fork_rng():
            torch.manual_seed(1)
            found = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **options))
        return found.double()

    return change


CHANGES = {
    "parametrization": ("llama", parametrized),
    "another layer": ("llama", replaced),
    "another forward": ("llama", wrapped),
    "a soft cap in the configuration": ("gemma2", with_cap),
    "LoRA": ("llama", with_peft(target_modules=["lm_head"])),
    "LoRA beside a trained head": ("llama", with_peft(target_modules=["q_proj"], modules_to_save=["lm_head"])),
    "trained rows of a tied head": ("smollm", with_peft(target_modules=["q_proj"], trainable_token_indices=[1, 2])),
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_put_on_the_head_counts_in_chunks_whenever_it_is_put_there(name, order):
    kind, change = CHANGES[name]
    inputs = models.batch()
    expected = exact_step(change(models.causal_model(kind, torch.float64)), inputs)
    plain = exact_step(models.causal_model(kind, torch.float64), inputs)[0]
    if "trained" not in name:
        assert abs(plain - expected[0]) > 1e-3  # else nothing could be ignored
    model = models.causal_model(kind, torch.float64)
    if order == "after":
        fw.apply(model, fw.MsT(head_chunk_size=5, chunk_size=8))
        model = change(model)
    else:
        model = change(model)
        fw.apply(model, fw.MsT(head_chunk_size=5, chunk_size=8))

    models.assert_same_step(models.loss_and_gradients(model, inputs), expected, tolerance=1e-12)
    assert model(**inputs).logits is None


def test_a_loss_of_other_logits_is_the_models_own():
    """A second head, as for several tokens ahead, is called after the first one and has real logits."""
    model, inputs = models.causal_model("llama"), models.batch()
    forward = type(model).forward

    class Twofold(type(model)):
        def forward(self, *args, **kwargs):
            output = forward(self, *args, **kwargs)
            logits = self.lm_head(self.model.embed_tokens(kwargs["input_ids"]))
            output.loss = output.loss + self.loss_function(logits, kwargs["labels"], self.config.vocab_size)
            return output

    model.__class__ = Twofold
    expected = models.loss_and_gradients(model, inputs)

    fw.apply(model, fw.MsT(**HEAD))

    models.assert_same_step(models.loss_and_gradients(model, inputs), expected)


def test_a_chunked_loss_calls_a_head_with_hooks():
    head, hidden, labels = nn.Linear(8, 11), torch.randn(7, 8), torch.arange(7)
    head.register_forward_hook(scaled)
    expected = torch.nn.functional.cross_entropy(head(hidden), labels)

    loss = fw.linear_cross_entropy(hidden, head, labels, chunk_size=3)

    torch.testing.assert_close(loss, expected)
