"""What is refused is refused by text and files alone: torch and transformers take seconds to import."""

import json
import os
import subprocess
import sys

import pytest
import yaml

PROGRAM = """
import contextlib, io, json, sys
from featherweight.cli import run
HEAVY = ("torch", "transformers", "accelerate", "peft", "datasets", "mujoco")
with contextlib.redirect_stdout(io.StringIO()):
    assert run(["train", "-h"]) == 0 and not set(HEAVY) & set(sys.modules)
for arguments in json.load(sys.stdin):
    told, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(said):
        code = run(arguments)
    print(json.dumps([code, told.getvalue(), said.getvalue(), [name for name in HEAVY if name in sys.modules]]))
"""
TRAIN, PDE = ["train", "text.yaml"], "task={name: pde, n_modes: [4, 4]"
REFUSED = [
    ([*TRAIN, "optimizer.lr=abc"], "optimizer: lr='abc' is not allowed; expected a number"),
    ([*TRAIN, "optimizer.rank=-1"], "optimizer: rank=-1 is out of range; expected > 0"),
    ([*TRAIN, "optimizer=galor"], "optimizer: name='galor' is unknown; expected one of"),
    ([*TRAIN, "optimizer.wieght_decay=3"], "Did you mean 'weight_decay'?"),
    ([*TRAIN, "optimizer=adamw", "optimizer.rank=4"], "optimizer: rank=4 is unknown"),
    ([*TRAIN, "schedule=bogus"], "schedule.name='bogus' is not allowed; expected 'cosine'"),
    ([*TRAIN, "trackers=[tensorbord]"], "trackers=tensorbord is unknown; expected names of accelerate's trackers"),
    ([*TRAIN, "methods=[{mst: {chunk_siz: 4}}]"], "Did you mean 'chunk_size'?"),
    ([*TRAIN, "methods=[mstt]"], "method: name='mstt' is unknown"),
    ([*TRAIN, "methods=[{mst: {tokenwise: true, save: products}}]"], "save='products' is given beside tokenwise"),
    ([*TRAIN, "methods=[{s2ft: {r_equivalent: 4, num_channels: 3}}]"], "say twice how much to train"),
    ([*TRAIN, "methods=[core_gradient]"], "core_gradient takes effect with layer-wise updates alone"),
    ([*TRAIN, "methods=[base4bit]"], "base4bit freezes every weight"),
    ([*TRAIN, "methods=[{welore: {method: whitened}}]"], "welore as it stands needs calibration data"),
    ([*TRAIN, "task.held_out=2"], "held_out=2 is out of range; expected 0 < held_out < 1"),
    ([*TRAIN, "task.max_tokns=8"], "recipe task: max_tokns=8 is unknown; expected a known key. Did"),
    ([*TRAIN, "task.name=chta"], "task: name='chta' is unknown"),
    ([*TRAIN, "task.weights=pretrained"], "model=tiny is a shape, of which there are no weights"),
    ([*TRAIN, "task.model=llama-60m", "methods=[lora]"], "model=llama-60m is a shape"),
    ([*TRAIN, PDE + ", data: nowhere}"], "data=nowhere holds none of the wanted training files"),
    ([*TRAIN, PDE + ", data: burgers}"], "n_modes=[4, 4] do not fit burgers"),
    ([*TRAIN, PDE + ", problem_options: {viscosty: 1}}"], "viscosty=1 is unknown"),
    ([*TRAIN, "task={name: bev, data: nowhere}"], "data='nowhere' is no folder"),
    ([*TRAIN, "task={name: robot_act, data: nowhere, dim_model: 9}"], "n_heads=4 does not divide dim_model=9"),
    ([*TRAIN, "task={name: robot, data: nowhere}"], "root=nowhere has no meta/info.json"),
    ([*TRAIN, "name=a/b"], "name='a/b' is no name for a folder everywhere"),
    ([*TRAIN, "task.corpus=empty.txt"], "corpus=empty.txt is empty"),
    ([*TRAIN, "task.corpus=noise.txt"], "corpus=noise.txt is no UTF-8 text at byte 0"),
    ([*TRAIN, "task.corpus=/dev/null"], "corpus=/dev/null has the unknown ending ''"),
    ([*TRAIN, "task.model=broken"], "source=broken has a config.json that cannot be read"),
    (["train", "deep.yaml"], "deep.yaml: content is nested too deeply"),
    ([*TRAIN, "--out", "/dev/null/x"], "out=/dev/null/x cannot be written (/dev/null is no folder)"),
    ([*TRAIN, "--resume", "--out", "nowhere"], "out=nowhere holds no run"),
    (["train", "chat.yaml", "micro_batch_size=4"], "micro_batch_size=4 is more than the data can fill"),
    (["train", "chat.yaml", "task.name=preference", "task.stream=true"], "stream=True is an option of the task chat"),
    (["train", "chat.yaml", "task.max_tokens=4096"], "max_tokens=4096 is longer than max_position_embeddings=1024"),
    (["train", "chat.yaml", "task.template=null"], "task chat: the tokenizer of tiny has no chat template"),
    (["compare", "text.yaml", "--optimizers", "adamw,galor"], "Did you mean 'galore'?"),
    (["compare", "text.yaml", "--optimizers", "galore", "compare.galore.rank=-1"], "rank=-1 is out of range"),
    (["compare", "text.yaml", "--resume", "--out", "nowhere"], "out=nowhere holds no comparison"),
    (["sweep", "text.yaml", "optimizer.lr=abc,1"], "lr='abc' is not allowed"),
    (["sweep", "text.yaml", "optimizer=adamw,nothing"], "optimizer: name='nothing' is unknown"),
    (["sweep", "text.yaml", "seed=0,1", "--resume", "--out", "nowhere"], "out=nowhere holds no sweep"),
    (["measure", "text.yaml", "optimizer.rnk=3"], "optimizer: rnk=3 is unknown"),
    (["plan", "wrong.yaml", "--budget", "16GB"], "optimizer: rank=-1 is out of range"),
    (["plan", "--model", "tiny", "--budget", "16"], "budget='16' has no unit"),
    (["chat", "tiny"], "model=tiny has no chat template"),
    (["generate", "./nowhere", "--prompt", "a"], "source=./nowhere does not exist"),
    (["export", "tiny", "--to", "gguf:q8_0", "--out", "x.gguf"], "tokenizer=tiny (bytes) is none that a GGUF file"),
    (
        ["export", "gpt", "--to", "gguf:q8_0", "--out", "x.gguf"],
        "model_type=gpt2 of gpt is none that is written",
    ),
    (["export", "pieces", "--to", "gguf:f16", "--out", "x.gguf"], "(Unigram, not byte-level) is none that a GGUF file"),
    (["export", "bare", "--to", "ollama", "--out", "x"], "model=bare has no chat template"),
    (["export", "tiny", "--to", "adapter", "--out", "x"], "model=tiny is no adapter"),
    (["compress", "tiny", "--method", "whitened"], "method=whitened needs data and calibration=None"),
    (["compress", "tiny", "--evaluate", "nowhere.txt"], "corpus=nowhere.txt does not exist"),
    (["export", "./nowhere", "--to", "hf:bf16", "--out", "x"], "source=./nowhere does not exist"),
    (["export", "tiny", "--to", "gguf:q8", "--out", "x"], "to=gguf:q8 is unknown; expected one of hf:fp32"),
    (["export", "tiny", "--to", "hf:bf16", "--base", "./nowhere", "--out", "x"], "source=./nowhere does not exist"),
    (["evaluate", "tiny", "--text", "nowhere.txt"], "corpus=nowhere.txt does not exist"),
    (["data", "inspect", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    (["guard", "score", "--guard", "nowhere", "--model", "tiny", "nowhere.txt"], "nowhere"),
    (["serve", "tiny"], "fw serve: model=tiny has no chat template"),
    (["adapter", "inspect", "nowhere"], "folder=nowhere is not there"),
    (["pde", "generate", "burger"], "Did you mean 'burgers'?"),
    (["bev", "info", "nowhere"], "checkpoint='nowhere' holds no trained network"),
    (["robot", "eval", "nowhere"], "folder=nowhere holds no policy.json"),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Return what one process answers to all of them, in turn."""
    folder = tmp_path_factory.mktemp("refused")
    rows = [{"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in "abc"]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = {"name": "chat", "model": "tiny", "template": "chatml", "data": "chats.jsonl", "max_tokens": 64}
    text = {"name": "text", "model": "tiny", "seq_len": 32}
    galore = {"name": "galore", "rank": 4}
    for name, task, optimizer in (
        ("chat", chat, galore),
        ("text", text, galore),
        ("wrong", text, {**galore, "rank": -1}),
    ):
        recipe = {"task": task, "optimizer": optimizer, "steps": 1, "micro_batch_size": 1}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "deep.yaml").write_text("a: " + "[" * 2000)
    (folder / "empty.txt").touch()
    (folder / "noise.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{no")
    for name, kind, tokenizer in (("gpt", "gpt2", "BPE"), ("pieces", "llama", "Unigram"), ("bare", "llama", "BPE")):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"model_type": kind}))
        (folder / name / "tokenizer.json").write_text(json.dumps({"model": {"type": tokenizer}}))
        (folder / name / "tokenizer_config.json").write_text("{}")
    given = {path.name for path in folder.iterdir()}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "1000", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([arguments for arguments, _ in REFUSED]),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == given
    return [json.loads(line) for line in done.stdout.splitlines()]


# Mutation: an import of torch at the head of a module that declares options, or a check that stands behind one.
@pytest.mark.parametrize("number", range(len(REFUSED)), ids=lambda number: " ".join(REFUSED[number][0])[:60])
def test_it_is_one_sentence_before_torch_is_imported(answers, number):
    code, told, said, heavy = answers[number]
    assert code in (1, 2) and REFUSED[number][1] in told and not said, told
    assert told.count("\n") == 1 and told.startswith("error: ")
    assert not heavy
