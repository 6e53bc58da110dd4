"""The second budget of a step that goes layer by layer: host memory, and what crosses the link to the device.

All of it follows from shapes: layer inputs, weights and states that wait on the host are counted, not estimated. Times
are those of a link at its measured or stated rate, for comparison.
Shapes: L layers, D hidden, T tokens of a step.
"""

from dataclasses import dataclass

from featherweight.config import parse_bytes
from featherweight.errors import ConfigError
from featherweight.planner.target import Target
from featherweight.training.estimate import counted_over_layers
from featherweight.training.loop import Loop
from featherweight.training.passes import LayerByLayer
from featherweight.training.recipe import Recipe

PROCESS_BYTES = 4 * 2**30
"""Host memory of the process itself: Python, torch, CUDA's own buffers and the data of a run; measured runs stay
below."""


@dataclass(frozen=True)
class HostNeed:
    """Bytes of host memory that a step takes, and its traffic."""

    inputs_bytes: int
    """Inputs of the layers, the gradient of one boundary in their place, and what is kept of attention."""
    weights_bytes: int
    """Weights of the layers, embedding and head."""
    states_bytes: int
    """Optimizer states of the layers, embedding and head."""
    read_bytes: int
    """Copied to the device in a step."""
    written_bytes: int
    """Copied from it."""

    @property
    def total_bytes(self) -> int:
        """All of it, with the process."""
        return self.inputs_bytes + self.weights_bytes + self.states_bytes + PROCESS_BYTES

    def link_seconds(self, target: Target) -> float | None:
        """Return how long the copies of a step take; both directions run at once. None for a CPU, which has no link."""
        known = target.calibration
        if known is None:
            return None
        return max(self.read_bytes / known.h2d_bytes_per_s, self.written_bytes / known.d2h_bytes_per_s)


def host_need(recipe: Recipe) -> HostNeed:
    """Count what a recipe keeps on the host and moves.

    Args:
        recipe: of a task that can be simulated; without ``schedule.order=layer`` nothing waits on the host.
    Raises:
        ConfigError: as `fw.estimate_memory`.
    Cost: builds two and three layers by shape.
    """
    found = counted_over_layers(recipe, _count)
    return HostNeed(found["inputs"], found["weights"], found["states"], found["read"], found["written"])


def _count(loop: Loop) -> dict[str, int]:
    passes, recipe = loop.passes, loop.recipe
    found = dict.fromkeys(("inputs", "weights", "states", "read", "written"), 0)
    if not isinstance(passes, LayerByLayer):
        return found
    stream = passes.stream
    if stream.inputs == "host":
        length = next(iter(loop.task.batches("train", micro_batch_size=1, seed=0)))["input_ids"].shape[1]
        tokens = length * recipe.micro_batch_size * recipe.accumulation_steps
        boundary, layers = tokens * stream.boundary_bytes_per_token, len(stream.separate.layers)
        last = (length - 1) // stream.chunk_tokens * stream.chunk_tokens  # before the last chunk, whose keys need none
        found["inputs"] = (layers + 1) * boundary
        # In: forward, head, keys and values, backward, and the gradient. Out: each input and each gradient once.
        found["read"] = (3 * layers + 2) * boundary + layers * boundary * last // length
        found["written"] = 2 * (layers + 1) * boundary
        attention = layers * tokens * stream.attention_bytes_per_token  # once out and once in
        for name in ("inputs", "read", "written"):
            found[name] += attention
    if stream.layer_weights is not None:
        read, written = stream.layer_weights.traffic_bytes()
        found["weights"] = stream.layer_weights.host_bytes
        found["read"] += read
        found["written"] += written
    found["states"] = stream.layer_states.host_bytes
    found["read"] += found["states"]
    found["written"] += found["states"]
    return found


def require_host(recipe: Recipe, budget: str | int | None) -> HostNeed | None:
    """Return what a recipe needs of the host; None where nobody gives a budget.

    Raises:
        ConfigError: if it needs more than the budget; says which row would fit.
    """
    if budget is None:
        return None
    limit, need = host_limit(budget), host_need(recipe)
    if need.total_bytes <= limit:
        return need
    key = recipe.length_key()
    length = getattr(recipe.task_config(), key.removeprefix("task."))
    room = limit - need.weights_bytes - need.states_bytes - PROCESS_BYTES
    fits = max(0, int(length * room / need.inputs_bytes)) if need.inputs_bytes else 0
    what = f"{fits:,} tokens of a row fit" if fits >= 2 else "not even weights and states fit"
    raise ConfigError(
        f"plan: host-memory={limit / 2**30:.1f} GiB is less than the {need.total_bytes / 2**30:.1f} GiB that a step "
        f"keeps there (layer inputs {need.inputs_bytes / 2**30:.1f}, weights {need.weights_bytes / 2**30:.1f}, states "
        f"{need.states_bytes / 2**30:.1f}, the process {PROCESS_BYTES / 2**30:.0f}); expected at least that: {what}. "
        f"Lower {key} to {max(2, fits)}, use int8 weights, or allow more."
    )


def host_limit(budget: str | int) -> int:
    """Return a budget of host memory in bytes."""
    return parse_bytes(budget) if isinstance(budget, str) else budget


__all__ = ["PROCESS_BYTES", "HostNeed", "host_limit", "host_need", "require_host"]
