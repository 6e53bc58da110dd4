"""One of several processes that train layer by layer on rows of their own; argv: where to save what was found."""

import sys
from typing import Any

import torch
from causal_models import causal_model
from ranks import COLLECTIVE_TIMEOUT_S
from torch import Tensor, nn

import featherweight as fw
from featherweight.distributed.ddp import bit_sum
from featherweight.errors import ConfigError
from featherweight.optim import AdamW, GaLoreAdamW, layerwise, param_groups
from featherweight.optim.reduce import attached_reducer
from featherweight.training import LayerMajor

CASES = {
    "adamw": {},
    "galore": {},
    "galore, refreshes": {},
    "galore, refreshes, host": {"weights": "host", "slots": 2},
    "smollm": {},
}
STEPS = 4


def batch(step: int) -> dict[str, Tensor]:
    """Return four rows; in step 1 the last one, and in step 2 the first chunk of all, has no labels."""
    ids = torch.randint(1, 60, (4, 19), generator=torch.Generator().manual_seed(step))
    labels = ids.clone()
    if step == 1:
        labels[3:] = -100
    if step == 2:
        labels[:, :8] = -100
    return {"input_ids": ids, "labels": labels}


def begun(case: str) -> tuple[nn.Module, Any]:
    """Return model and optimizer after an ordinary step that is the same everywhere, so that there are bases."""
    model = causal_model("smollm" if case == "smollm" else "llama", torch.float64)
    groups = param_groups(model, rank=6, update_proj_gap=2 if "refreshes" in case else 100)
    kind = AdamW if case in ("adamw", "smollm") else GaLoreAdamW
    optimizer = kind(model.parameters() if kind is AdamW else groups, lr=1e-2)
    model(**batch(9)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def train(case: str, mine: slice) -> dict[str, Any]:
    """Train on some rows of each batch: all of them in one process, else three and one."""
    model, optimizer = begun(case)
    if torch.distributed.is_initialized():
        fw.distributed.shard(model, "ddp")
        attached_reducer(model).traffic.forget()
    losses, hashes = [], []
    with layerwise(model, optimizer, max_grad_norm=1.0) as handle:
        stream = LayerMajor(model, handle, chunk_tokens=8, **CASES[case])
        for step in range(STEPS):
            losses.append(float(stream.step({name: one[mine] for name, one in batch(step).items()})))
            hashes.append([bit_sum(one) for one in model.state_dict().values()])
    reducer = attached_reducer(model)
    return {
        "losses": losses,
        "hashes": hashes,
        "weights": {name: one.clone() for name, one in model.state_dict().items()},
        "norm": handle.grad_norm,
        "shapes": set() if reducer is None else set(reducer.traffic.shapes),
    }


def refused() -> str:
    """Return what a step without labels in any process says."""
    model, optimizer = begun("adamw")
    fw.distributed.shard(model, "ddp")
    with layerwise(model, optimizer) as handle:
        ids = batch(0)["input_ids"]
        try:
            LayerMajor(model, handle, chunk_tokens=8).step({"input_ids": ids, "labels": torch.full_like(ids, -100)})
        except ConfigError as error:
            return str(error)
    return "no error"


def main() -> None:
    torch.set_num_threads(1)
    fw.distributed.start(timeout_s=COLLECTIVE_TIMEOUT_S)
    mine = slice(0, 3) if fw.distributed.rank() == 0 else slice(3, 4)
    found: dict[str, Any] = {case: train(case, mine) for case in CASES}
    found["refused"] = refused()
    torch.save(found, f"{sys.argv[1]}-{fw.distributed.rank()}")
    fw.distributed.stop()


if __name__ == "__main__":
    main()
