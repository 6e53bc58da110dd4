"""Memory that runs out, in one sentence whatever form it takes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
        raise OutOfMemoryError(
            f"training: micro_batch_size={recipe.micro_batch_size} with optimizer={recipe.optimizer['name']} and "
            f"precision={recipe.precision} needs more memory than there is; expected a run that fits. Lower "
            "micro_batch_size and raise accumulation_steps instead, set activation_checkpointing: true, or choose "
            "galore_8bit."
        ) from error
