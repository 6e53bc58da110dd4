"""Memory that runs out, in one sentence whatever form it takes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from featherweight.distributed.group import rank, world_size
from featherweight.errors import OutOfMemoryError
from featherweight.training.recipe import Recipe


@contextmanager
def explain_out_of_memory(recipe: Recipe) -> Iterator[None]:
    """Turn the many forms in which memory runs out inside the block into one sentence.

    Raises:
        OutOfMemoryError: if memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On the CPU torch raises a bare RuntimeError.
        is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not is_memory:
            raise
        place = f"rank {rank()} of {world_size()}: " if world_size() > 1 else ""
        restarts = " A restart will not get better." if place else ""
        raise OutOfMemoryError(
            f"training: {place}micro_batch_size={recipe.micro_batch_size} with optimizer={recipe.optimizer['name']} "
            f"and precision={recipe.precision} needs more memory than there is; expected a run that fits. Lower "
            "micro_batch_size and raise accumulation_steps instead, set activation_checkpointing: true, or choose "
            f"galore_8bit.{restarts}"
        ) from error
