"""What is not there is told before torch and transformers are imported."""

import json
import os
import re
import subprocess
import sys

from featherweight.cli.given import PLAN_TAGS, PLAN_UNKNOWNS
from featherweight.planner import TAGS
from featherweight.planner.solve import UNKNOWNS

COMMANDS = {
    "compress nothing": "source=nothing cannot be loaded .no such folder here.*Did you mean 'tiny'",
    "compress ./nothing": "source=./nothing does not exist",
    "compress {folder}": "is a folder without config.json",
    "adapter inspect {folder}/nothing": "nothing is not there; expected adapter_config.json",
    "adapter inspect {folder}": "holds no adapter_config.json",
    "adapter merge {folder}/nothing --out x": "nothing is not there",
    "adapter merge {folder}/adapter --base ./nothing --out x": "source=./nothing does not exist",
    "adapter fuse {folder}/adapter {folder}/adaptor --out x": "adaptor is not there",
    "adapter diff ./before ./after --out x": "source=./before does not exist",
    "adapter export {folder}/nothing --out x": "nothing is not there",
    "adapter bench {folder}/nothing": "nothing is not there",
    "plan": "model=None and recipe=None",
    "plan --model llama-7b --seq-len -1": "--seq-len=-1 is out of range; expected at least 2",
    "plan --model llama-7b --seq-len 1": "--seq-len=1 is out of range",
    "plan --model llama-7b --tokens-per-step 0": "--tokens-per-step=0 is out of range; expected at least 1",
    "plan --model llama-7b --exclude low-rnak": "exclude='low-rnak' is no tag; .*Did you mean 'low-rank'",
    "plan --model llama-7b --solve seq_len": "unknown='seq_len' cannot be solved for; .*Did you mean 'max_seq_len'",
    "plan --model lama-7b": "source=lama-7b cannot be loaded .*Did you mean 'llama-7b'",
    "plan --model {folder}/adaptr": "source={folder}/adaptr does not exist; .* Did you mean 'adapter'",
    "plan nothing.yaml": "file=nothing.yaml does not exist",
    "train nothing.yaml": "file=nothing.yaml does not exist",
    "compare nothing.yaml": "file=nothing.yaml does not exist",
    "measure nothing.yaml": "file=nothing.yaml does not exist",
}
RUN_ALL = """
import contextlib, io, json, sys
from featherweight.cli import main
answers = []
for command in json.load(sys.stdin):
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        try:
            main(command)
        except SystemExit as leaving:
            code = leaving.code
    heavy = [name for name in ("torch", "transformers", "numpy", "matplotlib") if name in sys.modules]
    answers.append([code, told.getvalue(), heavy])
print(json.dumps(answers))
"""


# Mutation: an option that is judged by the planner, or an adapter that is looked for by its reader, has torch imported.
def test_what_is_not_there_is_told_before_any_heavy_import(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    commands = [command.format(folder=tmp_path).split() for command in COMMANDS]

    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "1000", "HF_HUB_OFFLINE": "1"},
    )

    assert done.returncode == 0, done.stderr[-2000:]
    for (command, expected), (code, told, heavy) in zip(COMMANDS.items(), json.loads(done.stdout), strict=True):
        assert code in (1, 2) and not heavy, (command, code, heavy)
        assert told.count("\n") == 1, (command, told)
        assert re.search(expected.format(folder=tmp_path), told), (command, told)


def test_the_words_of_a_plan_are_those_of_the_planner():
    assert tuple(TAGS) == PLAN_TAGS and UNKNOWNS == PLAN_UNKNOWNS
