"""Commands that write onto a disk of 2 MiB, in one process: what each says, and what it leaves there.

usage: full_disk.py DISK WORK    (DISK is small; WORK is another folder, with room)
Prints a JSON object: label -> [exit code, standard error, what is on the disk afterwards].
"""

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

from featherweight.cli import run
from featherweight.models import export
from featherweight.training import run as training

MINE = "mine.txt"


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with open(disk / "fill", "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def tell(disk: Path, arguments: list[str], typed: str | None = None) -> list[object]:
    """Run one command, and empty the disk again but for the user's own file."""
    sys.stdin = io.StringIO(typed)
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = run(arguments)
    left = sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.name != "fill")
    for path in disk.iterdir():
        if path.name != MINE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return [code, told.getvalue(), left]


def main(disk: Path, work: Path) -> None:
    """Run all commands."""
    (disk / MINE).write_text("mine" * 100)
    (work / "lines.txt").write_text("".join(f"hello world, this is line {n}.\n\n" for n in range(40)))
    recipe = {
        "task": {"name": "text", "model": "tiny", "corpus": str(work / "lines.txt"), "seq_len": 32},
        "steps": 1,
        "micro_batch_size": 1,
        "evaluate_at_start": False,
    }
    (work / "small.json").write_text(json.dumps(recipe))
    train = ["train", str(work / "small.json"), "--out", str(disk / "run")]
    sweep = ["sweep", str(work / "small.json"), "seed=0,1", "--out", str(disk / "sweep")]
    dense = ["export", "tiny", "--to", "hf:fp32", "--out", str(disk / "new" / "dense")]
    cut = ["compress", str(work / "model"), "--rank-reduction", "0.1", "min_dim=32", "--evaluate", "none"]
    cut += ["--out", str(disk / "new" / "small")]
    talk = ["chat", "tiny", "--template", "chatml", "--max-new-tokens", "2"]
    text = ["evaluate", "tiny", "--text", str(work / "lines.txt"), "--tokens", "64", "--out", str(disk / "measured")]
    run(["export", "tiny", "--to", "hf:fp32", "--out", str(work / "model")])
    found = {
        "export": tell(disk, dense),
        "compress": tell(disk, cut),
        "train": tell(disk, train),
        "sweep": tell(disk, sweep),
    }
    # Room that was there in the beginning may be gone later.
    export.require_room = training.require_room = lambda *_, **__: None
    found["export, later"] = tell(disk, dense)
    found["train, later"] = tell(disk, train)
    found["a checkpoint, later"] = tell(disk, [*train, "checkpoint_every=1"])
    for label, arguments, typed in (
        ("train, full", train, None),
        ("sweep, full", sweep, None),
        ("init, full", ["init", str(disk / "demo.yaml"), "--example", "demo"], None),
        ("evaluate, full", text, None),
        ("/save, full", talk, f"hi\n/save {disk / 'talk.jsonl'}\n"),
    ):
        fill(disk)
        found[label] = tell(disk, arguments, typed)
    assert (disk / MINE).read_text() == "mine" * 100
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
