"""Misspelt words of a recipe are told before torch is imported, by lists that cannot fall behind."""

import json
import os
import subprocess
import sys

from featherweight.cli.recipe_words import optimizer_keys, optimizer_names, task_keys
from featherweight.optim.build import optimizers
from featherweight.training.task import tasks

PROGRAM = """
import contextlib, io, json, sys, time
from featherweight.cli import run
answers = []
for arguments in json.load(sys.stdin):
    told, before = io.StringIO(), time.process_time()
    with contextlib.redirect_stderr(told):
        code = run(arguments)
    answers.append([code, told.getvalue(), time.process_time() - before, "torch" in sys.modules])
print(json.dumps(answers))
"""
MISSPELT = [
    (["train", "chat.json", "optimizer=galor"], "optimizer: name='galor' is unknown; expected one of"),
    (["train", "chat.json", "optimizer.wieght_decay=3"], "Did you mean 'weight_decay'?"),
    (["train", "chat.json", "task.name=chta"], "task: name='chta' is unknown; expected one of"),
    (["train", "chat.json", "task.max_tokns=8"], "recipe task: max_tokns=8 is unknown; expected a known key. Did"),
    (["train", "chat.json", "task.name=preference", "task.stream=true"], "stream=True is an option of the task chat"),
    (["train", "chat.json", "task.max_tokens=4096"], "max_tokens=4096 is longer than max_position_embeddings=1024"),
    (["train", "chat.json", "task.template=null"], "task chat: the tokenizer of tiny has no chat template"),
    (["train", "chat.json", "--resume", "--out", "nowhere"], "run: out=nowhere holds no run"),
    (["sweep", "chat.json", "optimizer.lrr=1,2"], "optimizer: lrr=1 is unknown"),
    (["sweep", "chat.json", "optimizer=adamw,nothing"], "optimizer: name='nothing' is unknown"),
    (["compare", "chat.json", "--optimizers", "adamw,galor"], "Did you mean 'galore'?"),
    (["measure", "chat.json", "optimizer.rnk=3"], "optimizer: rnk=3 is unknown"),
    (["export", "tiny", "--to", "adapter", "--out", "x"], "model=tiny is no adapter"),
    (["train", "chat.json", "micro_batch_size=4"], "micro_batch_size=4 is more than the data can fill"),
]


def test_the_names_are_those_of_the_registry():
    assert optimizer_names() == tuple(name for name in optimizers.names() if name in optimizer_names())
    assert {"adamw", "galore_8bit", "tensorgrad"} <= set(optimizer_names())
    own = {name for name in optimizers.names() if optimizers.get(name).build is None}
    assert own == set(optimizer_names())


# Mutation: options that are declared elsewhere would be refused though they are right.
def test_every_key_of_every_optimizer_and_of_every_task_on_text_is_known():
    for name in optimizer_names():
        assert set(optimizers.get(name).config.model_fields) <= optimizer_keys()
    for name in ("text", "chat", "preference", "classification", "instructions"):
        assert set(tasks.get(name).Config.model_fields) <= task_keys()
    assert "rnk" not in optimizer_keys() and "modle" not in task_keys()


def test_misspelt_words_are_one_sentence_each_within_a_second_of_processor_time(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in "abc"]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "chat", "model": "tiny", "template": "chatml", "data": "chats.jsonl", "max_tokens": 64}
    (tmp_path / "chat.json").write_text(json.dumps({"task": task, "steps": 1, "micro_batch_size": 1}))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "1000", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([arguments for arguments, _ in MISSPELT]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
    )
    for (arguments, sentence), answer in zip(MISSPELT, json.loads(done.stdout.splitlines()[-1]), strict=True):
        code, told, processor_s, has_torch = answer
        assert code in (1, 2) and sentence in told and told.count("\n") == 1, (arguments, told)
        # 0.3 s measured for the first one, which imports the recipe; torch alone takes more than a second.
        assert not has_torch and processor_s < 0.8, (arguments, processor_s)
