"""What several processes are told about bad input, by the command line: exit codes, and who speaks.

Lines of notices are left out: that a run is finished, and how matrices are treated.
"""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from distributed_ddp import refusal

import featherweight as fw
from featherweight.cli import run


def told(*words: str) -> tuple[int, str]:
    """Run a command of `fw` in this process, one of several; return its exit code and what it says."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = run(words)
    return code, "".join(line for line in said.getvalue().splitlines(True) if line.startswith("error:"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refusals(folder: Path) -> dict[str, Any]:
    """Each kind of bad input, one after the other, beside a run that is to stay as it is.

    Args:
        folder: that all processes see, with a run of two processes.
    """
    rank = fw.distributed.rank()
    path, out = folder / "whole" / "recipe.yaml", folder / "whole"
    before = bytes_of(out)
    train = ("train", str(path), "--out", str(out))
    found: dict[str, Any] = {
        "no sharding": told(*train, "sharding=none"),
        "few micro-batches": told(*train, "accumulation_steps=1"),
        "another recipe": told(*train, f"seed={rank}", "--resume"),  # that of the run on rank 0 alone
        "used folder": told(*train),
        "no cores": told(*train, "sharding={kind: fsdp2, cores: true}"),
        "no gradients": told(*train, "sharding={kind: ddp, cores: false}", "optimizer.layerwise=true"),
        "fewer steps": told(*train, "steps=3", "--resume"),
        "shared bases": told(*train, "sharding={kind: ddp, basis: sharded}"),
    }
    version = fw.__version__
    fw.__version__ = f"{version}.{rank}"
    found["another version"] = told(*train, "--resume")
    fw.__version__ = version
    found["kept"] = before == bytes_of(out)
    # A relative path, and another working folder for each process: what a disk is that not all of them share.
    home, own = Path.cwd(), folder / f"own-{rank}"
    own.mkdir()
    os.chdir(own)
    try:
        model = torch.nn.Linear(4, 4)
        found["unseen save"] = (1, refusal(lambda: fw.distributed.save("once", model)))
        fw.train(path, overrides=["steps=2"], out="run", callbacks=[])
        found["unseen folder"] = told("train", str(path), "--out", "run", "--resume")
        own_files = bytes_of(folder / "own-0")
        found["unseen kept"] = "run/summary.json" in own_files and bytes_of(own) == (own_files if rank == 0 else {})
    finally:
        os.chdir(home)
    mixed = torch.nn.Linear(4, 4, device="meta" if rank else "cpu")
    found["mixed devices"] = (1, refusal(lambda: fw.distributed.shard(mixed, "ddp")))
    return found
