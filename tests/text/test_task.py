import itertools
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from featherweight.errors import ConfigError
from featherweight.text.corpus import load_documents
from featherweight.text.packing import IGNORED_LABEL
from featherweight.text.task import TextConfig, TextTask
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe
from featherweight.training.task import tasks

SMALL = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "max_position_embeddings": 64}


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"{number:03d} " + "ab" * number}) + "\n" for number in range(40)))
    return str(path)


def make_task(corpus, *, seed=0, **options):
    return TextTask(
        TextConfig(**{"model": SMALL, "corpus": corpus, "seq_len": 16, "held_out": 0.2} | options), seed=seed
    )


def first_rows(task, count, **options):
    batches = task.batches("train", **{"micro_batch_size": 1, "seed": 3} | options)
    return [tuple(row) for batch in itertools.islice(batches, count) for row in batch["input_ids"].tolist()]


def all_rows(task):
    return {tuple(row) for row in task._train_rows.tolist()}


def test_task_is_registered_by_name():
    assert tasks.get("text") is TextTask
    assert TextTask.Config is TextConfig


def test_every_epoch_visits_each_row_once_in_an_order_of_its_own(corpus):
    task = make_task(corpus)
    count = task.describe()["train_rows"]
    rows = first_rows(task, 3 * count)
    epochs = [rows[start : start + count] for start in range(0, 3 * count, count)]
    assert all(sorted(epoch) == sorted(map(tuple, task._train_rows.tolist())) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert rows[:count] != first_rows(task, count, seed=4)
    assert rows == first_rows(make_task(corpus), 3 * count)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 7])
def test_start_continues_where_an_uninterrupted_run_would_be(corpus, micro_batch_size):
    task = make_task(corpus)
    options = {"micro_batch_size": micro_batch_size, "world_size": 2, "process_rank": 1}
    whole = first_rows(task, 200, **options)
    assert first_rows(task, 60, start=140, **options) == whole[140 * micro_batch_size :]


def test_start_far_ahead_costs_nothing(corpus):
    # A loop over the skipped micro-batches would take hours.
    assert len(first_rows(make_task(corpus), 1, start=10**12)) == 1


def test_processes_share_the_data_without_overlap_or_loss(corpus):
    task = make_task(corpus)
    alone = first_rows(task, 30, micro_batch_size=2)
    shares = [first_rows(task, 10, micro_batch_size=2, process_rank=rank, world_size=3) for rank in range(3)]
    dealt = [row for turn in range(10) for share in shares for row in share[2 * turn : 2 * turn + 2]]
    assert dealt == alone
    held_out = [
        list(task.batches("held_out", micro_batch_size=1, seed=0, process_rank=r, world_size=3)) for r in range(3)
    ]
    assert sum(map(len, held_out)) == len(task._held_out_rows)


def test_batches_have_equal_ids_and_labels_and_full_micro_batches(corpus):
    batch = next(make_task(corpus).batches("train", micro_batch_size=3, seed=0))
    assert batch["input_ids"].shape == batch["labels"].shape == (3, 16)
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert torch.equal(batch["input_ids"], batch["labels"])
    assert make_task(corpus).item_count(batch) == 3 * 15


@pytest.mark.parametrize("seq_len", [2, 7, 16, 64])
def test_held_out_tokens_are_all_but_the_first_whatever_the_sequence_length(corpus, seq_len):
    task = make_task(corpus, seq_len=seq_len)
    _, held_out = task._split_corpus()
    by_hand = sum(len(document.encode()) + 1 for document in held_out) - 1
    batches = list(task.batches("held_out", micro_batch_size=4, seed=0))
    assert sum(task.item_count(batch) for batch in batches) == by_hand == task.describe()["held_out_tokens"]
    assert task.evaluate(task.build_model(), micro_batch_size=4)["tokens"] == by_hand


def test_loss_is_the_fp32_sum_of_transformers_own_mean(corpus):
    task = make_task(corpus)
    model = task.build_model().double()
    batch = list(task.batches("held_out", micro_batch_size=100, seed=0))[0]
    assert (batch["labels"] == IGNORED_LABEL).any()
    loss, tokens = task.loss(model, batch)
    reference = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss * tokens
    assert loss.dtype == torch.float32
    # Both round logits to fp32 first and then add some hundred terms: 1e-5 is 100 times the unit roundoff of the sum.
    torch.testing.assert_close(loss.item(), reference.item(), rtol=1e-5, atol=0)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_padding_changes_no_loss(corpus):
    task = make_task(corpus)
    model = task.build_model()
    batch = list(task.batches("held_out", micro_batch_size=1, seed=0))[-1]
    length = int((batch["labels"][0] != IGNORED_LABEL).sum())
    assert length < 16, "the corpus was chosen so that the last row is padded"
    cut = {name: tensor[:, :length] for name, tensor in batch.items()}
    # Same sums, blocked differently by the attention kernel: a few roundings of fp32.
    torch.testing.assert_close(task.loss(model, batch)[0], task.loss(model, cut)[0], rtol=1e-6, atol=1e-5)


def test_evaluation_equals_one_pass_over_the_stream_by_hand(corpus):
    # Rows of 64 hold up to 63 tokens of context, so the reference scores each row for itself.
    task = make_task(corpus, seq_len=64)
    model = task.build_model().eval()
    total, tokens = 0.0, 0
    for row, length in zip(task._held_out_rows.tolist(), task._held_out_lengths.tolist(), strict=True):
        ids = torch.tensor([row[:length]])
        log_probabilities = F.log_softmax(model(ids).logits.double(), dim=-1)[0, :-1]
        total -= log_probabilities.gather(1, ids[0, 1:, None]).sum().item()
        tokens += length - 1
    metrics = task.evaluate(model, micro_batch_size=3)
    assert metrics["tokens"] == tokens
    # fp32 sums of some hundred terms near 5.5 against fp64 ones.
    assert metrics["held_out_loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)


class _Model(nn.Module):
    """Answers with given logits and remembers how it was called."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.calls = []

    def forward(self, input_ids, use_cache):
        self.calls.append((self.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        wrong = F.one_hot((input_ids.roll(-1, 1) + 1) % 257, 257)
        return SimpleNamespace(logits=self.scale * wrong)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_runs_in_eval_and_inference_mode_and_restores_the_mode(corpus, training):
    model = _Model(1.0).train(training)
    make_task(corpus).evaluate(model, micro_batch_size=4)
    assert set(model.calls) == {(False, False, True)}
    assert model.training is training


def test_mode_comes_back_when_evaluation_fails(corpus):
    class Broken(_Model):
        def forward(self, input_ids, use_cache):
            raise RuntimeError("out of memory")

    model = Broken(1.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        make_task(corpus).evaluate(model, micro_batch_size=4)
    assert model.training


def test_perplexity_of_a_hopeless_model_is_infinite_and_no_crash(corpus):
    metrics = make_task(corpus).evaluate(_Model(1e4), micro_batch_size=4)
    assert metrics["held_out_loss"] > 700
    assert metrics["perplexity"] == math.inf


def test_small_model_learns_the_corpus(corpus):
    # Mutation: labels shifted once too often, or logits of the wrong position, leave nothing to learn from "abab".
    torch.manual_seed(0)
    task = make_task(corpus)
    model = task.build_model()
    before = task.evaluate(model, micro_batch_size=8)["held_out_loss"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in itertools.islice(task.batches("train", micro_batch_size=8, seed=0), 60):
        loss, tokens = task.loss(model, batch)
        (loss / tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = task.evaluate(model, micro_batch_size=8)["held_out_loss"]
    assert before > 5  # ln 257 = 5.55
    assert after < 1.5


def test_model_follows_from_the_seed_and_the_split_does_not(corpus):
    first, same, other = make_task(corpus, seed=1), make_task(corpus, seed=1), make_task(corpus, seed=2)
    weights = [task.build_model().lm_head.weight for task in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert weights[0].dtype == torch.float32
    assert all_rows(first) == all_rows(other)


def test_token_limits_cut_each_split(corpus):
    facts = make_task(corpus, max_train_tokens=100, max_held_out_tokens=50).describe()
    assert (facts["train_tokens"], facts["train_rows"], facts["held_out_tokens"]) == (96, 6, 49)


def test_description_counts_exactly(corpus):
    task = make_task(corpus)
    training, held_out = task._split_corpus()
    facts = task.describe()
    assert facts["train_documents"] + facts["held_out_documents"] == 40
    assert (facts["train_documents"], facts["held_out_documents"]) == (len(training), len(held_out))
    stream_tokens = sum(len(document.encode()) + 1 for document in training)
    assert facts["train_tokens"] == stream_tokens // 16 * 16 == facts["train_rows"] * 16
    assert facts["parameters"] == sum(parameter.numel() for parameter in task.build_model().parameters())
    assert json.loads(json.dumps(facts)) == facts


def test_second_corpus_is_held_out_and_its_documents_are_not_trained_on(corpus, tmp_path):
    documents = load_documents(corpus)
    (tmp_path / "held_out.json").write_text(json.dumps([documents[30], "something new"]))
    task = make_task(corpus, held_out=str(tmp_path / "held_out.json"))
    training, held_out = task._split_corpus()
    assert held_out == [documents[30], "something new"]
    assert training == documents[:30] + documents[31:]
    with pytest.raises(ConfigError, match="holds no document that is not in held_out="):
        make_task(corpus, held_out=corpus)


def test_saved_model_opens_with_transformers_alone_and_gives_the_same_loss(corpus, tmp_path):
    task = make_task(corpus)
    model = task.build_model()
    task.save_model(model, tmp_path / "model")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").encode("ab") == [97, 98]
    assert task.evaluate(opened, micro_batch_size=4) == task.evaluate(model, micro_batch_size=4)
    again = make_task(corpus, model=str(tmp_path / "model"))
    assert again.evaluate(again.build_model(), micro_batch_size=4) == task.evaluate(model, micro_batch_size=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 65}, r"seq_len=65 is longer than max_position_embeddings=64 of model 'llama'"),
        ({"seq_len": 1}, r"seq_len=1 is out of range; expected >= 2"),
        ({"held_out": 0.0}, r"held_out=0.0 is out of range; expected 0 < held_out < 1"),
        ({"held_out": 1}, r"held_out=1 is out of range; expected 0 < held_out < 1"),
        ({"max_train_tokens": 10}, r"corpus=10 tokens in the training split .* at least seq_len=16"),
        ({"model": SMALL | {"vocab_size": 100}}, r"token id=256 .* outside the model's vocab_size=100"),
        ({"model": SMALL | {"vocab_size": 256}}, r"token id=256 .* outside the model's vocab_size=256"),
        ({"corpsu": "english"}, r"corpsu='english' is unknown; .*Did you mean 'corpus'\?"),
    ],
)
def test_options_that_do_not_fit_get_one_clear_sentence(corpus, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_task(corpus, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"micro_batch_size": 0}, {"process_rank": 1}, {"process_rank": -1}, {"world_size": 0}, {"start": -1}],
)
def test_batch_numbers_out_of_range_are_refused_at_once(corpus, options):
    (name,) = options
    with pytest.raises(ConfigError, match=f"{name}=.* is out of range"):
        make_task(corpus).batches("train", **{"micro_batch_size": 1, "seed": 0} | options)


def test_importing_the_text_package_loads_no_transformers_and_no_datasets():
    check = "import sys, featherweight.text; print({'transformers', 'datasets', 'pyarrow'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, env=os.environ)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_saved_model_gives_the_logits_of_the_trained_one(corpus, tmp_path, precision):
    # Mutation: casting the frequencies of the rotary embedding to bf16 as well moves the logits.
    task = {"name": "text", "model": SMALL, "corpus": corpus, "seq_len": 64}
    recipe = Recipe(task=task, steps=2, micro_batch_size=2, precision=precision, memory_steps=[])
    loop = Loop(recipe)
    loop.step()
    loop.task.save_model(loop.model, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    input_ids = tokenizer("ab" * 32, return_tensors="pt").input_ids
    assert loaded.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert torch.equal(loop.model.eval()(input_ids).logits, loaded.eval()(input_ids).logits)
