import itertools
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.methods.method import apply
from featherweight.models import load_model
from featherweight.text.instruction_task import InstructionConfig, InstructionTask
from featherweight.text.packing import IGNORED_LABEL
from featherweight.training.estimate import estimate_memory
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe
from featherweight.training.run import train
from featherweight.training.task import tasks

COLOURS = ("red", "green", "blue", "a dark and stormy grey")


def question(number, *, answer=None):
    texts = f"Answer1: {COLOURS[number % 4]} Answer2: {COLOURS[(number + 1) % 4]}"
    answer = answer or f"answer{1 + number % 2}"
    return {
        "instruction": f"Choose: What is thing {number}? {texts}\n\nAnswer format: answer1/answer2",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


def write(path, rows):
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "questions.json", [question(number) for number in range(40)])


def options(data, **others):
    return {"model": "tiny", "data": data, "held_out": 0.2, "max_tokens": 320, "max_questions": 3} | others


def make_task(data, *, seed=0, **others):
    return InstructionTask(InstructionConfig(**options(data, **others)), seed=seed)


def responses(task, batch):
    """Return the text that the loss counts in each row."""
    return [task.tokenizer.decode([one for one in row.tolist() if one != IGNORED_LABEL]) for row in batch["labels"]]


def recipe(data, *, task=None, **others):
    values = {
        "task": {"name": "instructions", **options(data, **(task or {}))},
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "steps": 4,
        "micro_batch_size": 2,
        "memory_steps": [],
    }
    return Recipe.parse(values | others, where="recipe")


def test_task_is_registered_by_name():
    assert tasks.get("instructions") is InstructionTask


@pytest.mark.parametrize("prompt", ["alpaca", "official", "cloze"])
def test_response_and_end_of_text_are_all_that_counts(data, prompt):
    task = make_task(data, prompt=prompt)
    batch = next(task.batches("train", micro_batch_size=8, seed=0))
    found = responses(task, batch)
    wanted = {
        "alpaca": {f"the correct answer is answer{one}<|endoftext|>" for one in (1, 2)},
        "official": {f"the correct answer is answer{one} <|endoftext|>" for one in (1, 2)},
        "cloze": {f"{colour}<|endoftext|>" for colour in COLOURS},
    }[prompt]
    assert set(found) <= wanted
    assert task.item_count(batch) == sum(len(text.replace("<|endoftext|>", "E")) for text in found)


def test_a_micro_batch_is_as_long_as_its_longest_row_and_padding_changes_no_loss(data):
    # Mutation: padding with labels, or in front of a row, changes the sum.
    task = make_task(data, prompt="cloze")
    model = task.build_model()
    alone = list(task.batches("held_out", micro_batch_size=1, seed=0))
    (joined,) = task.batches("held_out", micro_batch_size=100, seed=0)
    lengths = [batch["input_ids"].shape[1] for batch in alone]
    assert len(set(lengths)) > 1 and joined["input_ids"].shape == (len(alone), max(lengths))
    losses = [task.loss(model, batch) for batch in alone]
    total, tokens = task.loss(model, joined)
    assert tokens == sum(count for _, count in losses)
    # Some hundred terms near 5.5, summed in another order in float32.
    assert total.item() == pytest.approx(sum(loss.item() for loss, _ in losses), rel=1e-5)


def test_loss_is_that_of_the_response_by_hand(data):
    task = make_task(data)
    model = task.build_model().double()
    batch = next(task.batches("train", micro_batch_size=1, seed=0))
    (text,) = responses(task, batch)
    count = len(text.replace("<|endoftext|>", "E"))
    with torch.no_grad():
        log_probabilities = F.log_softmax(model(batch["input_ids"]).logits, dim=-1)[0, -count - 1 : -1]
    by_hand = -log_probabilities.gather(1, batch["input_ids"][0, -count:, None]).sum().item()
    # The task rounds float64 logits to float32 and adds some thirty terms.
    assert task.loss(model, batch)[0].item() == pytest.approx(by_hand, rel=1e-5)


def test_an_epoch_visits_each_row_once_and_a_start_continues_there(data):
    task = make_task(data)
    count = task.describe()["train_rows"]

    def rows(number, **others):
        found = task.batches("train", **{"micro_batch_size": 1, "seed": 3} | others)
        return [tuple(batch["input_ids"][0].tolist()) for batch in itertools.islice(found, number)]

    whole = rows(2 * count)
    assert sorted(whole[:count]) == sorted(whole[count:]) and len(set(whole[:count])) == count
    assert whole[:count] != whole[count:] and whole[:count] != rows(count, seed=4)
    assert rows(5, start=count - 2) == whole[count - 2 : count + 3]
    assert rows(3, world_size=2, process_rank=1) == whole[1:6:2]


def test_copies_of_a_question_stand_on_one_side_and_questions_of_a_held_out_file_are_not_trained_on(data, tmp_path):
    doubled = write(tmp_path / "doubled.json", [question(number % 10) for number in range(30)])
    task = make_task(doubled)
    training, held_out = ({row.question for row in rows} for rows in task._split())
    assert training and held_out and not training & held_out
    other = write(tmp_path / "other.json", [question(number) for number in (0, 1, 100)])
    facts = make_task(data, held_out=other).describe()
    assert (facts["train_rows"], facts["held_out_rows"]) == (38, 3)


def test_the_model_seed_moves_no_question_to_the_other_side(data):
    assert make_task(data, seed=0)._split() == make_task(data, seed=1)._split()
    assert make_task(data)._split() != make_task(data, held_out_seed=1)._split()


def test_accuracy_counts_at_most_the_questions_that_are_asked_for(data, tmp_path):
    task = make_task(data)
    metrics = task.evaluate(task.build_model(), micro_batch_size=4)
    assert metrics["questions"] == 3 and metrics["chance"] == 0.5 and 0 <= metrics["accuracy"] <= 1
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["held_out_loss"]))
    assert metrics["tokens"] == task.describe()["held_out_tokens"]
    assert task.words.metrics == ("perplexity", "accuracy")
    plain = write(tmp_path / "plain.json", [{"question": f"{one}+1?", "answer": f"{one + 1}"} for one in range(9)])
    for other in (make_task(plain), make_task(data, max_questions=0)):
        assert "accuracy" not in other.evaluate(other.build_model(), micro_batch_size=4)
        assert other.words.metrics == ("perplexity",)


def test_long_rows_are_cut_or_left_out_and_counted(data, tmp_path):
    rows = [question(number) for number in range(20)]
    for row in rows[::2]:
        row["output"] += " for many a reason" * 6
    path = write(tmp_path / "long.json", rows)
    whole, cut, left_out = (
        make_task(path, **one).describe()
        for one in ({"max_tokens": 500}, {"max_tokens": 340}, {"max_tokens": 340, "leave_out_long": True})
    )
    assert whole["train_cut_rows"] + whole["held_out_cut_rows"] == 0
    assert cut["train_cut_rows"] + cut["held_out_cut_rows"] == 10
    assert left_out["train_rows"] + left_out["held_out_rows"] == 10
    batch = next(make_task(path, max_tokens=340).batches("train", micro_batch_size=16, seed=0))
    assert batch["input_ids"].shape[1] == 340


@pytest.mark.parametrize(
    ("rows", "others", "message"),
    [
        ([question(0), {"question": "x"}], {}, r"row=2 of .*questions.json has the keys .* no response"),
        ([question(0), "text"], {}, r"row=2 of .*questions.json is a str"),
        ([], {}, r"questions.json is empty"),
        ([question(0)] * 2, {}, r"data=.*questions.json holds one question alone"),
        ([question(0), question(1, answer="answer7")], {"prompt": "cloze"}, r"row 2 of .*questions.json.*set prompt"),
        ([question(0), question(1)], {"max_tokens": 100}, r"max_tokens=100 is filled by .* row \d of .*leave_out_long"),
        ([question(0), question(1)], {"max_tokens": 100, "leave_out_long": True}, r"leaves out all 1 rows"),
        ([question(0), question(1)], {"max_tokens": 2000}, r"max_tokens=2000 is longer than max_position_embeddings"),
        ([question(0), question(1)], {"held_out": 1.0}, r"held_out=1.0 is out of range"),
        ([question(0), question(1)], {"held_out": "questions.json"}, r"holds no question that is not in held_out="),
        ([question(0), question(1)], {"held_out": "absent.json"}, r"path=absent.json cannot be read"),
    ],
)
def test_what_is_wrong_is_one_sentence_that_names_the_file_and_the_row(rows, others, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "questions.json", rows)
    with pytest.raises(ConfigError, match=message) as caught:
        make_task("questions.json", **others)
    assert "expected" in str(caught.value)


def test_a_wrong_line_of_json_lines_is_named(tmp_path):
    (tmp_path / "questions.jsonl").write_text(json.dumps(question(0)) + "\n{\n")
    with pytest.raises(ConfigError, match=r"questions.jsonl is no JSON at line 2"):
        make_task(str(tmp_path / "questions.jsonl"))


@pytest.mark.parametrize(
    "methods", [[], [{"s2ft": {"r_equivalent": 2, "multiple_of": 1}}], [{"lora": {"r": 2}}], ["mst"]]
)
def test_accumulated_micro_batches_weigh_their_tokens_as_one_large_batch_does(data, methods):
    # Mutation: a mean over the means of micro-batches, whose responses differ in length, gives another loss.
    steps = []
    for size, count in ((4, 1), (1, 4)):
        loop = Loop(
            recipe(
                data,
                task={"prompt": "cloze"},
                methods=methods,
                micro_batch_size=size,
                accumulation_steps=count,
                steps=2,
            )
        )
        steps.append([loop.step() for _ in range(2)])
    for one, other in zip(*steps, strict=True):
        assert one["tokens"] == other["tokens"]
        # Float32 sums of the same terms in another order, and one update made of them.
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_without_logits_the_loss_is_the_same(data):
    task = make_task(data)
    model = task.build_model()
    batch = next(task.batches("train", micro_batch_size=3, seed=0))
    plain = task.loss(model, batch)[0].item()
    apply(model, fw.MsT())
    # The same float32 sum over some hundred tokens, in chunks.
    assert task.loss(model, batch)[0].item() == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    "methods", [pytest.param([], marks=pytest.mark.slow), [{"s2ft": {"r_equivalent": 4, "multiple_of": 1}}]]
)
def test_a_run_learns_and_resumes_bit_by_bit(data, methods, tmp_path):
    one = recipe(data, methods=methods, steps=30, checkpoint_every=20)
    whole = train(one, out=tmp_path / "whole", callbacks=[])
    assert (
        whole.summary.held_out["held_out_loss"]
        < (0.8 if methods else 0.5) * whole.summary.before_training["held_out_loss"]
    )
    assert "accuracy" in whole.summary.held_out

    class Stop:
        def __getattr__(self, name):
            return self.stop if name == "on_checkpoint" else lambda event: None

        def stop(self, event):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(one, out=tmp_path / "cut", callbacks=[Stop()])
    resumed = train(one, out=tmp_path / "cut", resume=True, callbacks=[])
    assert resumed.summary.held_out == whole.summary.held_out
    models = [AutoModelForCausalLM.from_pretrained(run.folder / "model") for run in (whole, resumed)]
    assert all(torch.equal(first, second) for first, second in zip(*(m.parameters() for m in models), strict=True))
    assert (whole.folder / "adapter").exists() == bool(methods)


def test_the_example_recipe_runs_on_the_data_of_a_user(data):
    path = Path(__file__).parents[2] / "examples" / "recipes" / "s2ft_instructions.yaml"
    few = ["task.model=tiny", "task.max_tokens=320", f"task.data={data}", "methods=[{s2ft: {num_channels: 2}}]"]
    loop = Loop(Recipe.from_file(path).override(few))
    before = loop.evaluate()["held_out_loss"]
    for _ in range(5):
        loop.step()
    assert loop.evaluate()["held_out_loss"] < before


def test_the_planner_simulates_rows_of_the_longest_length_without_the_data():
    few, many = (
        estimate_memory(None, recipe("absent.json", task={"max_tokens": length}), device="cpu", whole=True)
        for length in (128, 256)
    )
    assert (few.tokens_per_step, many.tokens_per_step) == (2 * 127, 2 * 255)
    assert few.predicted == many.predicted and few.peak_bytes < many.peak_bytes
    parameters = sum(one.numel() for one in load_model("tiny").parameters())
    assert many.predicted["weights"] == 4 * parameters
    with pytest.raises(ConfigError, match=r"max_tokens=5000 is longer than max_position_embeddings=1024"):
        estimate_memory(None, recipe("absent.json", task={"max_tokens": 5000}), device="cpu")
