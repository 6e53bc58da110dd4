"""The global random generators of a process: seeding, saving, restoring.

New weights and dropout draw from them; data order and rounding have generators of their own.
"""

import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_of_rank(seed: int, rank: int, step: int = 0) -> int:
    """Return the seed of what processes draw each for itself, such as dropout; rank 0 begins with that of the run.

    Example:
        >>> seed_of_rank(7, 0), seed_of_rank(7, 1) != seed_of_rank(7, 0)
        (7, True)
    """
    return (seed + rank * 1_000_003 + step * 7_919) % 2**32


def rng_state() -> dict[str, Any]:
    """Return the state of all global generators in types that `torch.load(weights_only=True)` reads."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore what `rng_state` returned; generators of devices that this machine lacks are left out."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    if torch.backends.mps.is_available() and state.get("mps"):
        torch.mps.set_rng_state(state["mps"][0].cpu())


def continue_rng(state: Mapping[str, Any], rank: int, world_size: int, *, seed: int, step: int) -> None:
    """Go on with the random numbers of a process, or, in another number of processes, begin new ones and say so.

    Args:
        state: of a checkpoint: "rng" of one process, or "rng_of_ranks" of several.
        rank: which process this is.
        world_size: of how many.
        seed: of the run.
        step: optimizer steps that are done.
    """
    of_ranks = state.get("rng_of_ranks") or [state["rng"]]
    if len(of_ranks) == world_size:
        set_rng_state(of_ranks[rank])
        return
    seed_everything(seed_of_rank(seed, rank, step))
    logger.warning(
        "training: %d processes continue what %d have begun, so dropout draws other numbers from here on.",
        world_size,
        len(of_ranks),
    )


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Give the generators back as they were, whatever the body draws: an evaluation must not change the training."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
