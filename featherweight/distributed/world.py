"""What a training loop asks of the processes that run it: who am I, whose turn is it, what do we know together.

Every decision that steers the run (stop, refuse, evaluate, write) is taken from numbers that all processes have, so
that none waits for a collective that another one left out.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from featherweight.distributed.group import local_device, new_group, rank, world_size
from featherweight.errors import ConfigError, DeviceError, FeatherweightError

Result = TypeVar("Result")


class World:
    """The processes of one run; in one process all of this is the identity.

    Build it after `start`; building one is a collective.

    Args:
        is_alone: this process is all there is, whatever group it is in; for a simulation.
    """

    def __init__(self, *, is_alone: bool = False) -> None:
        self.rank, self.size = (0, 1) if is_alone else (rank(), world_size())
        self.device = torch.device("cpu") if is_alone else local_device()
        self._group = _group_on_cpus() if self.size > 1 else None

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    # ---- numbers

    def sums(self, *values: float) -> list[float]:
        """Return sums over the processes, the same bits on all; whole numbers up to 2^53 are exact."""
        if self.size == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._group)
        return list(tensor.tolist())

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every process, by rank."""
        if self.size == 1:
            return [value]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value, group=self._group)
        return everyone

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier(group=self._group)

    # ---- decisions

    def on_first(self, make: Callable[[], Result]) -> Result:
        """Let the first process do something, and give its result, or its error, to all.

        Args:
            make: called on rank 0 alone; its result must be picklable.
        Raises:
            FeatherweightError: what `make` raised there, on every process.
        """
        made: list[Any] = [None]
        with self.together():
            if self.is_first:
                made[0] = make()
        if self.size > 1:
            dist.broadcast_object_list(made, src=0, group=self._group)
        result: Result = made[0]
        return result

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let all processes do something of their own without collectives; if one fails, all raise its error.

        Raises:
            FeatherweightError: of the first process that failed. Another exception goes on where it arose, and is a
                DeviceError elsewhere.
        """
        if self.size == 1:
            yield
            return
        failed: BaseException | None = None
        try:
            yield
        except Exception as error:
            failed = error
        outcomes = self.gather(None if failed is None else (type(failed), str(failed)))
        found = next((number for number, one in enumerate(outcomes) if one is not None), None)
        if found is None:
            return
        kind, message = outcomes[found]
        if failed is not None and not isinstance(failed, FeatherweightError):
            raise failed
        if not issubclass(kind, FeatherweightError):
            raise DeviceError(
                f"distributed: rank {found} failed with {kind.__name__}: {message.partition(chr(10))[0]}; expected all "
                f"{self.size} processes to go on. Its own output says where."
            ) from failed
        everywhere = all(one == outcomes[0] for one in outcomes)
        raise common(kind(message if everywhere else f"rank {found}: {message}")) from failed

    def require_same(self, what: Mapping[str, str]) -> None:
        """Refuse to train together what is not the same.

        Args:
            what: words for a thing -> its description, such as the recipe as text.
        Raises:
            ConfigError: names the first thing that differs, and where, on every process.
        """
        if self.size == 1:
            return
        digests = {words: hashlib.sha256(text.encode()).hexdigest()[:16] for words, text in what.items()}
        everyone = self.gather(digests)
        for words in digests:
            others = [number for number, one in enumerate(everyone) if one.get(words) != everyone[0].get(words)]
            if others:
                raise common(
                    ConfigError(
                        f"distributed: {words} differs between rank 0 and rank {others[0]}; expected the same in all "
                        f"{self.size} processes. Start every process with the same program, recipe and files."
                    )
                )

    # ---- data

    def share(self, accumulation_steps: int, step: int) -> tuple[int, int, int]:
        """Say which micro-batches of an optimizer step are those of this process.

        Micro-batch n of the run, counted over all processes, goes to process ``n % W``.

        Args:
            accumulation_steps: micro-batches of one optimizer step, over all processes.
            step: optimizer steps that are done.
        Returns:
            How many of its own micro-batches the process has had in all steps before; how many it has in this one; and
            how many backward passes every process makes, so that the numbers of collectives agree.
        Example:
            >>> world = World()
            >>> world.rank, world.size = 1, 3
            >>> [world.share(4, step) for step in range(3)]
            [(0, 1, 2), (1, 2, 2), (3, 1, 2)]
        """
        before, after = (_numbers_below(end, self.rank, self.size) for end in self._ends(accumulation_steps, step))
        return before, after - before, -(-accumulation_steps // self.size)

    @staticmethod
    def _ends(accumulation_steps: int, step: int) -> tuple[int, int]:
        return step * accumulation_steps, (step + 1) * accumulation_steps

    def require_enough(self, accumulation_steps: int) -> None:
        """Refuse an optimizer step that has no micro-batch for some of the processes.

        Raises:
            ConfigError: says the number to set.
        """
        if accumulation_steps < self.size:
            raise common(
                ConfigError(
                    f"recipe: accumulation_steps={accumulation_steps} is below the {self.size} processes, and counts "
                    f"the micro-batches of one optimizer step over all of them; expected at least {self.size}. Set "
                    f"accumulation_steps={self.size} (and micro_batch_size as much lower), or start fewer processes."
                )
            )


_made: list[Any] = []  # the default group, and the one on CPUs that was made beside it


def _group_on_cpus() -> Any:
    """Return one group for what is agreed, a few numbers and texts, whatever the accelerator; made once, together."""
    if not _made or _made[0] is not dist.group.WORLD:
        _made[:] = [dist.group.WORLD, new_group(backend="gloo")]
    return _made[1]


def _numbers_below(end: int, rank: int, size: int) -> int:
    """Return how many n with ``0 <= n < end`` and ``n % size == rank`` there are."""
    return max(0, -(-(end - rank) // size))


Failure = TypeVar("Failure", bound=FeatherweightError)


def device_name(device: torch.device) -> str:
    """Return which kind of device this is; products of two kinds may differ in the last digits."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def common(error: Failure) -> Failure:
    """Mark an error that every process raises alike, so that only the first one tells it."""
    error.is_common = True
    return error


def is_told_elsewhere(error: BaseException) -> bool:
    """Say whether another process tells the user of an error, so that this one may stay silent.

    Before a group exists the processes of one machine see the same files: its first one speaks.
    """
    if bool(getattr(error, "is_common", False)) and world_size() > 1:
        return rank() != 0
    return world_size() == 1 and os.environ.get("LOCAL_RANK", "0") != "0"
