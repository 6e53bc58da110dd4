"""One of several processes that run recipes on shares of rows; argv: where to save what was found, folder of runs."""

import sys
from pathlib import Path
from typing import Any

import torch
from distributed_loop import GALORE, grow, recipe, refusal, resumed, trained
from ranks import COLLECTIVE_TIMEOUT_S

import featherweight as fw
from featherweight.training.loop import Loop

CORES = {"optimizer": {**GALORE, "layerwise": True}, "methods": [{"core_gradient": {"prefer": "memory"}}]}
VARIANTS: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "adamw": {"optimizer": {"name": "adamw", "layerwise": True, "lr": 1e-2}},
    "cores": CORES,
    "cores clipped": {**CORES, "max_grad_norm": 0.1},
    "clipped": {"max_grad_norm": 0.1},
}
"""Recipes that differ from `recipe()`."""
LEFT = {**GALORE, "proj_type": "left"}
PLACES: dict[str, dict[str, Any]] = {
    "columns": {"basis": "sharded"},
    "rows": {"placement": "rows", "basis": "sharded"},
    "columns, cores": {"basis": "sharded"},
}
"""Keys of `sharding` beside its kind."""
VARIANTS |= {
    "columns": {"optimizer": LEFT},
    "rows": {"optimizer": LEFT},
    "columns, cores": {**CORES, "optimizer": {**LEFT, "layerwise": True}},
}
TWINS = ("cores", "cores clipped", "columns, cores", "text")
TEXT: dict[str, Any] = {
    "task": {
        "name": "text",
        "model": "tiny",
        "corpus": "english",
        "seq_len": 32,
        "max_train_tokens": 20000,
        "max_held_out_tokens": 256,
    },
    "optimizer": {**CORES["optimizer"], "rank": 8, "lr": 1e-3, "update_proj_gap": 3, "basis_method": "random"},
    "methods": [{"core_gradient": {"prefer": "memory"}}, {"mst": {"chunk_size": 16}}],
    "activation_checkpointing": True,
    "micro_batch_size": 1,
}
"""A Llama with recomputed activations and chunks. Its bases are drawn from the seed: gradients that chunks
form whole are summed by rows, to which a first basis can be fitted, while replicas wait for their common sketch."""
VARIANTS["text"] = TEXT


def main() -> None:
    torch.set_num_threads(1)
    fw.distributed.start(timeout_s=COLLECTIVE_TIMEOUT_S)
    rank, folder, kind = fw.distributed.rank(), Path(sys.argv[2]), sys.argv[3]
    sharding: dict[str, Any] = {"kind": kind, "check_every": 2, **({"shard_size": 2} if kind == "hsdp" else {})}
    found: dict[str, Any] = {
        name: trained({**changes, "accumulation_steps": 5, "sharding": {**sharding, **PLACES.get(name, {})}})
        for name, changes in VARIANTS.items()
    }
    # A first basis of several processes is a random one, whatever they hold; so the twins are replicas.
    found["replicas"] = {
        name: trained({**VARIANTS[name], "accumulation_steps": 5, "sharding": "ddp"}) for name in TWINS
    }
    # What one process has begun goes on as the placement of the spot wants it, and in one again.
    grow(folder / "grown", 5, **CORES, accumulation_steps=5, sharding={**sharding, "basis": "sharded"})
    grow(folder / "left", 5, **VARIANTS["columns"], accumulation_steps=5, sharding={**sharding, "basis": "sharded"})
    if kind == "fsdp2":
        found["resumed"] = resumed(folder, **CORES, sharding=sharding)
        found["report"] = (folder / "whole" / "report.json").read_text()
        found["save_best"] = refusal(lambda: Loop(recipe(sharding=sharding, save_best=True, evaluate_every=1)))
    torch.save(found, f"{sys.argv[1]}-{rank}")
    fw.distributed.stop()


if __name__ == "__main__":
    main()
