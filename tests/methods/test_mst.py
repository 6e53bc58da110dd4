import copy

import causal_models as models
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import featherweight as fw

# Chunks that divide neither 3 rows of 19 tokens nor 57 tokens.
METHOD = {"chunk_size": 8, "head_chunk_size": 5}


@pytest.mark.parametrize("save", ["input", "products"])
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_loss_and_gradients_of_an_architecture_equal_the_stock_model(name, save):
    model, inputs = models.causal_model(name), models.batch()
    expected = models.loss_and_gradients(model, inputs)

    report = fw.apply(model, fw.MsT(**METHOD, save=save))

    rows = report.section("Modules").rows
    assert sum("in chunks" in str(row[2]) for row in rows) == len(rows) == 3, rows
    models.assert_same_step(models.loss_and_gradients(model, inputs), expected)
    assert model(**inputs).logits is None


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_a_loss_over_all_micro_batches_equals_the_stock_model(name):
    model = models.causal_model(name)
    ignores_three = {name: tensor.abs() % models.VOCABULARY for name, tensor in models.batch().items()}
    for inputs, options in (
        (models.batch(), {"num_items_in_batch": 40}),
        (models.batch(), {"num_items_in_batch": torch.tensor(40)}),
        (ignores_three, {"ignore_index": 3}),
    ):
        expected = models.loss_and_gradients(model, inputs, **options)
        fw.apply(model, fw.MsT(**METHOD))

        models.assert_same_step(models.loss_and_gradients(model, inputs, **options), expected)
        fw.remove(model, fw.MsT())


# Mutation: a head gradient that is also written into .grad by hand comes out 2 and 3 times too large.
@pytest.mark.parametrize("tokenwise", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_gradients_over_unequal_micro_batches_are_those_of_one_batch(micro_batches, tokenwise):
    stock = models.causal_model("smollm")
    parts = [models.batch(seed=2 * seed) for seed in range(micro_batches)]
    counts = [int((part["labels"][:, 1:] != -100).sum()) for part in parts]
    assert len(set(counts)) == micro_batches
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    _, expected = models.loss_and_gradients(stock, whole)
    model = copy.deepcopy(stock)
    fw.apply(model, fw.MsT(**METHOD, tokenwise=tokenwise))

    model.zero_grad()
    for part in parts:
        model(**part, use_cache=False, num_items_in_batch=torch.tensor(sum(counts))).loss.backward()

    for name, parameter in model.named_parameters():
        ratio = float((parameter.grad * expected[name]).sum() / expected[name].square().sum())
        assert ratio == pytest.approx(1, abs=1e-5), name  # float32 sums in another order: 1e-6
        error = (parameter.grad - expected[name]).norm()
        assert error <= 1e-5 * expected[name].norm(), name


# Mutation: a gradient that is off by a factor, or a token that is dropped, moves the curve within a few steps.
@pytest.mark.slow  # 30 s
@pytest.mark.parametrize("options", [{}, {"tokenwise": True, "checkpoint": "offload"}], ids=str)
def test_two_hundred_steps_have_the_same_losses(options):
    def curve(method):
        model = models.causal_model("llama")
        if method is not None:
            fw.apply(model, method)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for seed in range(200):
            inputs = models.batch(seed=seed % 5, length=64)
            loss = model(**inputs, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    stock = curve(None)
    assert stock[-1] < 0.5 * stock[0]
    assert curve(fw.MsT(**METHOD, **options)) == pytest.approx(stock, abs=1e-3)


class CountFeedForward(TorchDispatchMode):
    """Counts matrix products with the width of the feed-forward layers among their sizes."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func.overloadpacket) in ("aten.mm", "aten.addmm", "aten.addmm_", "aten.linear", "aten.bmm"):
            shapes = [tuple(arg.shape) for arg in args if isinstance(arg, torch.Tensor)]
            self.count += any(48 in shape for shape in shapes)
        return func(*args, **(kwargs or {}))


# 3 products forward, 2 repeated, 6 backward; a repetition of the whole layer makes it 14, and one more for whoever
# repeats it in chunks again 15. Regions repeat the last product too.
@pytest.mark.parametrize(("tokenwise", "products"), [(False, 11), (True, 12)])
@pytest.mark.parametrize("checkpoint", [True, "selective", "offload"])
def test_a_checkpointed_step_takes_so_many_products_per_feed_forward_layer(checkpoint, tokenwise, products):
    model = models.causal_model("llama", num_hidden_layers=3)
    fw.apply(model, fw.MsT(chunk_size=30, checkpoint=checkpoint, tokenwise=tokenwise))

    with CountFeedForward() as counter:
        models.loss_and_gradients(model, models.batch())

    assert counter.count == 3 * 2 * products  # layers, chunks: of 57 tokens, or of 3 rows of 19


@pytest.mark.parametrize("tokenwise", [False, True])
def test_the_sum_over_chunks_has_the_dtype_that_was_asked_for(tokenwise):
    inputs = models.batch(rows=4, length=120)
    _, reference = models.loss_and_gradients(models.causal_model("llama", torch.float64), inputs)

    def error(accum_dtype):
        model = models.causal_model("llama", torch.bfloat16)
        fw.apply(model, fw.MsT(chunk_size=4, head_chunk_size=2, accum_dtype=accum_dtype, tokenwise=tokenwise))
        _, gradients = models.loss_and_gradients(model, inputs)
        names = ["lm_head.weight", "model.layers.1.mlp.down_proj.weight"]
        return [float((gradients[n].double() - reference[n]).norm() / reference[n].norm()) for n in names]

    for one, other in zip(error("auto"), error("bfloat16"), strict=True):
        assert one < 0.95 * other  # measured: 0.84


def test_labels_that_are_shifted_already_are_used_as_they_are():
    model, inputs = models.causal_model("llama"), models.batch()
    shifted = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
    expected = models.loss_and_gradients(model, inputs)

    fw.apply(model, fw.MsT(**METHOD))

    models.assert_same_step(models.loss_and_gradients(model, inputs, shift_labels=shifted), expected)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "smollm"])
def test_generation_and_logits_without_labels_are_unchanged(name):
    model, inputs = models.causal_model(name).eval(), models.batch()
    prompt = inputs["input_ids"]

    def outputs():
        with torch.no_grad():
            generated = model.generate(prompt, max_new_tokens=6, do_sample=False, attention_mask=prompt.new_ones(3, 19))
            return [generated, model(prompt).logits, model(prompt, logits_to_keep=2).logits, model(**inputs).logits]

    expected = outputs()
    fw.apply(model, fw.MsT(chunk_size=1000))  # shorter inputs take the stock path: the same bits

    assert all(torch.equal(one, other) for one, other in zip(outputs(), expected, strict=True))
    model.train()
    assert torch.equal(model(prompt).logits, expected[1])
    assert model(prompt, return_dict=False)[0].shape == (3, 19, models.VOCABULARY)
    loss, *others = model(**inputs, return_dict=False, use_cache=False)
    assert loss.ndim == 0 and not others


def test_eval_mode_returns_logits_unless_asked_otherwise():
    model, inputs = models.causal_model("llama").eval(), models.batch()
    expected = model(**inputs)
    fw.apply(model, fw.MsT(**METHOD))
    assert torch.allclose(model(**inputs).logits, expected.logits, atol=1e-5)
    fw.remove(model, fw.MsT())

    fw.apply(model, fw.MsT(**METHOD, head_in_eval=True))

    output = model(**inputs)
    assert output.logits is None and torch.allclose(output.loss, expected.loss)


def test_state_dict_class_and_saved_model_are_unchanged(tmp_path):
    model, inputs = models.causal_model("smollm"), models.batch()
    keys, kind, expected = list(model.state_dict()), type(model), models.loss_and_gradients(model, inputs)
    fw.apply(model, fw.MsT(**METHOD))
    assert list(model.state_dict()) == keys and type(model) is kind

    model.save_pretrained(tmp_path)

    loaded = kind.from_pretrained(tmp_path).train()
    models.assert_same_step(models.loss_and_gradients(loaded, inputs), expected)
    fw.apply(loaded, fw.MsT(**METHOD))
    models.assert_same_step(models.loss_and_gradients(loaded, inputs), expected)


def test_labels_with_chosen_logits_take_the_stock_path():
    model, inputs = models.causal_model("llama"), models.batch()
    positions = torch.arange(19)
    expected = model(**inputs, logits_to_keep=positions)

    fw.apply(model, fw.MsT(head_chunk_size=5))

    output = model(**inputs, logits_to_keep=positions)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["gate_proj", "down_proj"], ["up_proj", "lm_head"]], ids=str)
@pytest.mark.parametrize("order", ["peft first", "mst first"])
def test_adapters_of_peft_train_as_in_the_stock_model(targets, order):
    from peft import LoraConfig, get_peft_model

    def adapted(model):
        torch.manual_seed(1)
        with torch.random.fork_rng():
            return get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))

    inputs = models.batch()
    expected = models.loss_and_gradients(adapted(models.causal_model("llama")), inputs)
    model = models.causal_model("llama")
    if order == "mst first":
        fw.apply(model, fw.MsT(**METHOD))
        model = adapted(model)
    else:
        model = adapted(model)
        fw.apply(model, fw.MsT(**METHOD))

    models.assert_same_step(models.loss_and_gradients(model, inputs), expected)
    assert all("lora" in name for name in expected[1])


@pytest.mark.parametrize("use_reentrant", [None, True, False], ids=["none", "reentrant", "not reentrant"])
def test_hooks_run_once_per_parameter_with_and_without_checkpointing(use_reentrant):
    model = models.causal_model("llama")
    fw.apply(model, fw.MsT(**METHOD))
    if use_reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: calls.append(name))

    models.loss_and_gradients(model, models.batch())

    assert sorted(calls) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_changes_no_number(use_reentrant):
    model, inputs = models.causal_model("llama"), models.batch()
    expected = models.loss_and_gradients(model, inputs)
    fw.apply(model, fw.MsT(**METHOD))

    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})

    models.assert_same_step(models.loss_and_gradients(model, inputs), expected)


@pytest.mark.parametrize("mode", [True, "selective", "offload"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_every_way_of_checkpointing_changes_no_number(name, mode):
    model, inputs = models.causal_model(name), models.batch()
    expected = models.loss_and_gradients(model, inputs)

    report = fw.apply(model, fw.MsT(**METHOD, checkpoint=mode))

    assert report.section("Modules").rows[-1][2] == f"2 checkpointed ({mode})"
    models.assert_same_step(models.loss_and_gradients(copy.deepcopy(model), inputs), expected)
    models.assert_same_step(models.loss_and_gradients(model, inputs), expected)
    fw.remove(model, fw.MsT())
    assert not model.is_activation_checkpointing
    models.assert_same_step(models.loss_and_gradients(model, inputs), expected, tolerance=0)


def test_removing_brings_back_the_checkpointing_of_before():
    model = models.causal_model("llama")
    model.activation_checkpointing_enable({"use_reentrant": True})
    before = model.model.layers[0]._gradient_checkpointing_func
    fw.apply(model, fw.MsT(checkpoint="offload"))

    fw.remove(model, fw.MsT())

    assert model.model.layers[0]._gradient_checkpointing_func is before and model.is_activation_checkpointing


def test_selective_checkpointing_computes_attention_once():
    class CountAttention(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += "scaled_dot_product" in str(func) and "backward" not in str(func)
            return func(*args, **(kwargs or {}))

    counts = {}
    for mode in (False, True, "selective"):
        model = models.causal_model("llama")
        fw.apply(model, fw.MsT(**METHOD, checkpoint=mode))
        with CountAttention() as counter:
            models.loss_and_gradients(model, models.batch())
        counts[mode] = counter.count

    assert counts == {False: 2, True: 4, "selective": 2}


def test_dropout_of_gpt2_and_phi3_draws_as_the_stock_model_does():
    for name, changes in (("gpt2", {"resid_pdrop": 0.5}), ("phi3", {"resid_pdrop": 0.5})):
        model, inputs = models.causal_model(name, **changes), models.batch()
        torch.manual_seed(5)
        expected = models.loss_and_gradients(model, inputs)
        fw.apply(model, fw.MsT(**METHOD))

        torch.manual_seed(5)
        models.assert_same_step(models.loss_and_gradients(model, inputs), expected)


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


@pytest.mark.parametrize("options", [METHOD, {**METHOD, "tokenwise": True, "checkpoint": "offload"}], ids=["", "all"])
def test_the_trainers_first_loss_and_gradients_equal_the_stock_model(options, tmp_path):
    """Ragged labels over four micro-batches: a mean of means would be wrong here."""
    from transformers import Trainer, TrainingArguments

    data = [
        {name: tensor[0] for name, tensor in models.batch(rows=1, seed=index).items()} for index in range(8)
    ]  # `seed` labels of each row are ignored at its start

    def train(method):
        model = models.causal_model("llama")
        if method is not None:
            fw.apply(model, method)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            max_steps=1,
            logging_steps=1,
            learning_rate=0.1,
            optim="sgd",
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
        )
        trainer = Trainer(model, arguments, train_dataset=data)
        trainer.train()
        return trainer.state.log_history[0]["loss"], {n: p.detach().clone() for n, p in model.named_parameters()}

    stock, ours = train(None), train(fw.MsT(**options))

    assert ours[0] == pytest.approx(stock[0], abs=1e-6)
    for name, weight in ours[1].items():
        torch.testing.assert_close(weight, stock[1][name], rtol=1e-6, atol=1e-6)  # lr 0.1 times gradients' 2e-6


def test_a_model_with_another_head_or_loss_keeps_its_own():
    model, inputs = models.causal_model("gemma2"), models.batch()
    model.loss_function = lambda logits, labels, *args, **kwargs: logits.sum() * 0

    report = fw.apply(model, fw.MsT(**METHOD))

    assert "left alone: its loss is <lambda>" in report.section("Modules").rows[-1][2]
    assert model(**inputs).loss == 0

    odd = models.causal_model("llama")
    plain_head = odd.lm_head.forward
    odd_forward = type(odd).forward

    class Odd(type(odd)):
        def forward(self, *args, **kwargs):
            output = odd_forward(self, *args, **{**kwargs, "labels": None})
            output.loss = self.loss_function(output.logits * 2, kwargs["labels"], self.config.vocab_size)
            return output

    odd.__class__ = Odd
    report = fw.apply(odd, fw.MsT(**METHOD))
    assert "left alone: its loss is" in report.section("Modules").rows[-1][2]
    assert odd.lm_head.forward == plain_head


def test_a_measurement_sees_the_same_computation():
    model, inputs = models.causal_model("llama"), models.batch()
    fw.apply(model, fw.MsT(**METHOD))
    loss, gradients = models.loss_and_gradients(model, inputs)
    gradients = {name: gradient.clone() for name, gradient in gradients.items()}

    with fw.measure_memory(model):
        measured_loss, measured = models.loss_and_gradients(model, inputs)

    assert torch.equal(loss, measured_loss)
    assert all(torch.equal(gradient, measured[name]) for name, gradient in gradients.items())


def test_a_model_on_the_meta_device_can_be_changed_and_filled_later():
    from transformers import AutoModelForCausalLM

    stock, inputs = models.causal_model("llama"), models.batch()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(stock.config)
    fw.apply(model, fw.MsT(**METHOD))

    model.load_state_dict(stock.state_dict(), assign=True)
    model.model.rotary_emb = stock.model.rotary_emb

    models.assert_same_step(models.loss_and_gradients(model.train(), inputs), models.loss_and_gradients(stock, inputs))


@pytest.mark.parametrize("tokenwise", [False, True])
def test_a_model_with_a_nan_in_it_can_be_changed_and_says_nan(tokenwise):
    model = models.causal_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")

    report = fw.apply(model, fw.MsT(**METHOD, tokenwise=tokenwise))

    assert sum("in chunks" in row[2] for row in report.section("Modules").rows) >= 3
    assert model(**models.batch()).loss.isnan()


def test_a_failing_forward_leaves_the_model_usable():
    model, inputs = models.causal_model("llama"), models.batch()
    fw.apply(model, fw.MsT(**METHOD))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=inputs["input_ids"], labels=inputs["labels"] + models.VOCABULARY)

    assert model(inputs["input_ids"]).logits.shape == (3, 19, models.VOCABULARY)
    assert model(**inputs).loss.isfinite()
