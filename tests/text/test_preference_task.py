"""Preferences: losses are those of the papers and of TRL, margins grow, logits never exist."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers

from featherweight.errors import ConfigError
from featherweight.methods.fused_head import causal_logprobs
from featherweight.text.preference_task import PreferenceConfig, PreferenceTask, outcome

METHODS = ("dpo", "simpo", "orpo", "kto")
SMALL = {"model": "tiny", "template": "chatml", "held_out": 0.3, "max_tokens": 400}


@pytest.fixture
def pairs(tmp_path):
    rows = [{"prompt": f"question {n}", "chosen": f"yes {n}", "rejected": "no" * (1 + n % 3)} for n in range(12)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def build(path, **options):
    return PreferenceTask(PreferenceConfig.parse({**SMALL, "data": path, **options}), seed=0)


def plain_logprobs(model, ids, labels):
    """The slow way: all logits."""
    logits = model(input_ids=ids).logits.double().log_softmax(-1)[:, :-1]
    targets = labels[:, 1:]
    picked = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(targets != -100, picked, 0.0).sum(dim=1)


def test_log_probabilities_without_logits_equal_the_slow_way(pairs):
    task = build(pairs, method="orpo")
    model = task.build_model().double()
    batch = next(task.batches("train", micro_batch_size=3, seed=0))
    calls = []
    model.model.norm.register_forward_hook(lambda *_: calls.append(1))
    ids, labels = (batch[name].flatten(0, 1) for name in ("input_ids", "labels"))
    found = causal_logprobs(model, labels, input_ids=ids).sum(dim=1)
    assert len(calls) == 1
    # The head's chunks are summed in another order than one product: float64 rounding.
    assert torch.allclose(found, plain_logprobs(model, ids, labels), atol=1e-10)
    found.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    plain_logprobs(model, ids, labels).sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-9), name


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_those_written_out(pairs, method):
    task = build(pairs, method=method, gamma=0.7)
    model = task.build_model()
    batch = next(task.batches("train", micro_batch_size=3, seed=0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.01)
        model.double()
        ids, labels = (batch[name].transpose(0, 1).flatten(0, 1) for name in ("input_ids", "labels"))
        sums = plain_logprobs(model, ids, labels)
        found, items = task.loss(model, batch)
    counts = (labels[:, 1:] != -100).sum(dim=1)
    assert items == 3
    (c, r), (mean_c, mean_r) = sums.chunk(2), (sums / counts).chunk(2)
    sigmoid = torch.sigmoid
    if method == "dpo":
        c0, r0 = batch["reference"].double().unbind(dim=1)
        expected = -sigmoid(0.1 * ((c - c0) - (r - r0))).log()
    elif method == "simpo":
        expected = -sigmoid(2.0 * (mean_c - mean_r) - 0.7).log()
    elif method == "orpo":
        odds = [mean.exp() / (1 - mean.exp()) for mean in (mean_c, mean_r)]
        expected = -mean_c - 0.1 * sigmoid((odds[0] / odds[1]).log()).log()
    else:
        a0, other0 = batch["reference"].double().unbind(dim=1)
        kl = (r - other0).mean().clamp(min=0)
        sign = torch.where(batch["is_good"], 1.0, -1.0)
        expected = 1 - sigmoid(0.1 * sign * (c - a0 - kl))
    # References are kept in float32: 1e-7 of sums of some hundred nats.
    assert float(found) == pytest.approx(float(expected.sum()), rel=2e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL's own default
def test_dpo_equals_trl_on_the_same_batch(pairs, tmp_path):
    trl = pytest.importorskip("trl")
    import datasets

    task = build(pairs)
    model = task.build_model()
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.02)
    rows = [json.loads(line) for line in Path(pairs).read_text().splitlines()]
    data = datasets.Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": row["prompt"]}]}
            | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
            for row in rows
        ]
    )
    arguments = trl.DPOConfig(str(tmp_path / "trl"), report_to=[], use_cpu=True, beta=0.1, max_length=400, bf16=False)
    trainer = trl.DPOTrainer(
        model, ref_model=reference, args=arguments, train_dataset=data, processing_class=task.tokenizer
    )
    collated = trainer.data_collator([trainer.train_dataset[number] for number in range(4)])
    model.eval()
    with torch.no_grad():
        theirs = float(trainer.compute_loss(model, collated))
    ids = collated["input_ids"]
    marks = collated.get("completion_mask", collated.get("labels"))
    labels = torch.where(marks.bool(), ids, -100) if "completion_mask" in collated else marks
    with torch.no_grad():
        mask = collated["attention_mask"]
        sums = causal_logprobs(reference, labels, input_ids=ids, attention_mask=mask).sum(dim=1)
        rows = {"input_ids": ids, "labels": labels, "reference": sums}
        batch = {name: torch.stack(one.chunk(2), dim=1) for name, one in rows.items()}
        ours = float(outcome(model, batch, task.config).losses_P.mean())
    assert ours == pytest.approx(theirs, abs=1e-5)
    # And the tokens that count are the same, end mark included.
    ours_said = {
        tuple(label for label in row.labels if label != -100)
        for split in ("train", "held_out")
        for one in task._samples[split]
        for row in (one.first, one.second)
    }
    newline = tuple(task.tokenizer("\n")["input_ids"])
    for row in labels:
        said = tuple(int(label) for label in row if label != -100)
        assert said in ours_said or said[: -len(newline)] in ours_said


@pytest.mark.parametrize("method", METHODS)
def test_margins_grow_with_training(pairs, method):
    task = build(pairs, method=method)
    model = task.build_model()
    before = task.evaluate(model, micro_batch_size=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = task.batches("train", micro_batch_size=4, seed=0)
    for _ in range(8):
        loss, items = task.loss(model, next(batches))
        (loss / items).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = task.evaluate(model, micro_batch_size=4)
    assert after["reward_margin"] > before["reward_margin"] + 0.01
    assert after["reward_accuracy"] >= before["reward_accuracy"]
    assert after["held_out_loss"] < before["held_out_loss"]


def test_dpo_begins_at_log_two_without_a_margin(pairs):
    task = build(pairs)
    metrics = task.evaluate(task.build_model(), micro_batch_size=4)
    assert metrics["held_out_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert metrics["reward_margin"] == pytest.approx(0, abs=1e-5)


def test_judged_answers_are_learnt_by_kto_alone(tmp_path):
    rows = [{"prompt": f"q{n}", "completion": f"a{n}", "label": n % 2 == 0} for n in range(10)]
    path = tmp_path / "judged.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = build(str(path), method="kto")
    assert task.words.items == "answers"
    task.build_model()
    batch = next(task.batches("train", micro_batch_size=4, seed=0))
    assert set(batch["is_good"].tolist()) == {True, False}
    with pytest.raises(ConfigError, match="rows of the kind 'judgement'"):
        build(str(path))


def test_long_pairs_are_counted_or_refused(pairs):
    longest = max(len(row.ids) for one in build(pairs)._samples["train"] for row in (one.first, one.second))
    with pytest.raises(ConfigError, match=rf"pairs.jsonl, line \d+: {longest} tokens are more than max_tokens="):
        build(pairs, max_tokens=longest - 1, long_rows="refuse")
    task = build(pairs, max_tokens=longest - 1)
    assert task.describe()["train_left_out"] + task.describe()["held_out_left_out"] > 0


def test_a_whole_run_with_adapters_and_a_saved_template(pairs, tmp_path):
    from featherweight.training.recipe import Recipe
    from featherweight.training.run import train

    recipe = Recipe.parse(
        {
            "task": {"name": "preference", **SMALL, "data": pairs},
            "methods": [{"lora": {"r": 4}}],
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "steps": 2,
            "micro_batch_size": 2,
        }
    )
    train(recipe, out=tmp_path / "run")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/model")
    assert "<|im_start|>" in tokenizer.chat_template
