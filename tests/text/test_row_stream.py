"""Rows that are read while training goes on: all of them, in an order of chance that is found again."""

import gzip
import itertools
import json
import subprocess
import sys
import time

import pytest
import torch

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.text.chat_task import ChatConfig, ChatTask
from featherweight.training.events import Callback

SMALL = {"model": "tiny", "template": "chatml", "held_out": 0.3, "max_tokens": 200, "stream": True, "shuffle_rows": 8}


def write(folder, name, numbers, answer="answer"):
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": f"{name} {n}", "completion": f"{answer} {n} " + "x" * (n % 5)} for n in numbers]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    """Three files, one of them compressed."""
    for name, start in (("a", 0), ("b", 20), ("c", 40)):
        write(tmp_path / "chats", name, range(start, start + 20))
    text = (tmp_path / "chats/c.jsonl").read_bytes()
    (tmp_path / "chats/c.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "chats/c.jsonl").unlink()
    return str(tmp_path / "chats")


def build(data, **options):
    return ChatTask(ChatConfig.parse({**SMALL, "data": data, **options}), seed=0)


def said(task, batches, count):
    """Return the answers of the first micro-batches, row by row."""
    return [
        task.tokenizer.decode(labels[labels != -100]).removesuffix("<|im_end|>")
        for batch in itertools.islice(batches, count)
        for labels in batch["labels"]
    ]


def train(task, count=None, **options):
    return said(task, task.batches("train", **{"micro_batch_size": 3, "seed": 1, **options}), count)


def test_an_epoch_has_every_row_that_is_not_held_out_once(folder):
    streamed, whole = build(folder), build(folder, stream=False)
    held_out = said(streamed, streamed.batches("held_out", micro_batch_size=4, seed=0), None)
    assert sorted(held_out) == sorted(said(whole, whole.batches("held_out", micro_batch_size=4, seed=0), None))
    count = 60 - len(held_out)
    rows = train(streamed, 3 * count // 3)
    first, second = rows[:count], rows[count : 2 * count]
    assert sorted(first) == sorted(second) and len(set(first)) == count and not set(first) & set(held_out)
    assert first != second and first != sorted(first)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"group_by_length": True},
        {"pack": True},
        {"data": ["a", "b"]},
        {"data": [{"path": "a", "weight": 3}, {"path": "b", "weight": 1}], "group_by_length": True},
    ],
    ids=["plain", "grouped", "packed", "two sources", "mixed and grouped"],
)
def test_a_stream_that_goes_on_has_the_rows_of_one_that_was_not_stopped(folder, tmp_path, monkeypatch, options):
    write(tmp_path / "a", "d", range(30))
    write(tmp_path / "b", "e", range(9))
    monkeypatch.chdir(tmp_path)
    task = build(options.pop("data", folder), **options)
    arguments = {"micro_batch_size": 3, "seed": 1}
    through = list(itertools.islice(task.batches("train", **arguments), 40))
    later = build(task.config.data, **options).batches("train", **arguments, start=31)
    assert all(all(torch.equal(one[k], other[k]) for k in one) for one, other in zip(through[31:], later, strict=False))
    share = build(task.config.data, **options).batches("train", **arguments, process_rank=1, world_size=2, start=3)
    assert torch.equal(next(share)["input_ids"], through[7]["input_ids"])


def test_sources_are_mixed_by_their_weights(tmp_path):
    for name, count in (("a", 30), ("b", 7)):
        write(tmp_path / name, name, range(count), answer=name)
    data = [{"path": str(tmp_path / name), "weight": weight} for name, weight in (("a", 1), ("b", 3))]
    for streams in (True, False):
        rows = train(build(data, stream=streams), 40)
        assert abs(sum(row.startswith("b") for row in rows) - 90) <= 3, streams


def test_a_row_that_is_not_understood_is_named_when_it_is_read(tmp_path):
    write(tmp_path / "chats", "a", range(30))
    with (tmp_path / "chats/a.jsonl").open("a") as file:
        file.write('{"prompt": "q"}\n')
    with pytest.raises(ConfigError, match="a.jsonl, line 31: columns=prompt lack 'completion'"):
        train(build(str(tmp_path / "chats"), max_held_out_rows=2), 30)


def test_data_of_which_no_row_fits_are_refused(tmp_path):
    write(tmp_path / "chats", "a", range(30), answer="x" * 200)
    write(tmp_path / "short", "b", range(3))
    task = build(str(tmp_path / "chats"), held_out=str(tmp_path / "short"))
    with pytest.raises(ConfigError, match=r"no row that can be trained on, and 30 that are too long"):
        train(task, 1)


def mixed_recipe(folder, **more):
    for name, count in (("a", 30), ("b", 7)):
        write(folder / name, name, range(count), answer=name)
    data = [{"path": str(folder / "a"), "weight": 1}, {"path": str(folder / "b"), "weight": 3}]
    return {
        "task": {"name": "chat", **SMALL, "data": data, "group_by_length": True},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "steps": 5,
        "micro_batch_size": 2,
        "accumulation_steps": 2,
        "checkpoint_every": 2,
        "memory_steps": [],
        **more,
    }


def weights(run):
    return (run / "model/model.safetensors").read_bytes()


def test_a_run_on_a_mixed_stream_resumes_bit_by_bit(tmp_path):
    class Stop(Callback):
        def on_step(self, event):
            if event.step == 3:
                raise RuntimeError("the power is gone")

    recipe = mixed_recipe(tmp_path)
    fw.train(recipe, out=tmp_path / "through", callbacks=[])
    with pytest.raises(RuntimeError, match="the power is gone"):
        fw.train(recipe, out=tmp_path / "run", callbacks=[Stop()])
    fw.train(recipe, out=tmp_path / "run", resume=True, callbacks=[])
    assert weights(tmp_path / "run") == weights(tmp_path / "through")


@pytest.mark.slow
def test_a_run_on_a_mixed_stream_that_was_killed_resumes_bit_by_bit(tmp_path):
    recipe = mixed_recipe(tmp_path, steps=40, checkpoint_every=1)
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    fw.train(recipe, out=tmp_path / "through", callbacks=[])
    words = [sys.executable, "-m", "featherweight", "train", "r.json", "--out", "run"]
    started = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while started.poll() is None and not (tmp_path / "run/checkpoints/step-00000007").exists():
        time.sleep(0.01)
    started.kill()
    started.wait()
    assert not (tmp_path / "run/summary.json").exists()
    subprocess.run([*words, "--resume"], cwd=tmp_path, check=True, capture_output=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "through")


@pytest.mark.parametrize("name", ["text", "preference", "classification", "instructions"])
def test_tasks_that_read_all_rows_first_say_so_when_they_shall_stream(name):
    from featherweight.training.task import tasks

    with pytest.raises(ConfigError, match="stream=True is an option of the task chat alone; .*max_train_rows"):
        tasks.get(name).Config.parse({"data": "a.jsonl", "stream": True}, where=f"task {name}")
