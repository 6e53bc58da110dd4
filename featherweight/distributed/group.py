"""The group of processes: from the variables that torchrun sets to a `torch.distributed` group, and back.

Backends are PyTorch's: gloo on CPUs, NCCL beside it on GPUs. One process without these variables needs no group.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from featherweight.errors import ConfigError, DeviceError

logger = logging.getLogger(__name__)

TIMEOUT_S = 600.0
"""How long a collective waits for the slowest process."""
GRACE_S = 15.0
"""How long after its time-out a store may still say by itself what has kept it."""
_timeout_s = [TIMEOUT_S]  # that of the present group
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets; SLURM, Ray Train, SkyPilot and Kubernetes can."""


def world_size() -> int:
    """Return the number of processes of the group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_first() -> bool:
    """Say whether this is the process that writes files and speaks to the user."""
    return rank() == 0


def local_device() -> torch.device:
    """Return the device of this process: the accelerator of its number on this machine, else the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    index = int(os.environ.get("LOCAL_RANK", torch.accelerator.current_device_index()))
    return torch.device(accelerator.type, index)


def launched_processes() -> int:
    """Return how many processes a launcher has started, from its variables; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def refuse_several(what: str) -> None:
    """Refuse something that one process does, where a launcher has started several.

    Raises:
        ConfigError: if it has.
    """
    if (count := launched_processes()) > 1:
        raise ConfigError(
            f"{what}: WORLD_SIZE={count} processes were started; expected one. Start it without a launcher; fw train "
            "is what runs in several."
        )


def start(*, timeout_s: float = TIMEOUT_S) -> torch.device:
    """Join the group of processes that a launcher has started.

    Does nothing without a launcher, or if a group exists already.

    Args:
        timeout_s: how long to wait for the other processes, here and in every collective. Seconds.
    Returns:
        The device of this process, which is the current one from here on.
    Raises:
        ConfigError: if the launcher's variables are incomplete or contradict each other.
        DeviceError: if the group does not form, or there are more processes than accelerators on this machine.
    """
    device = local_device()
    if not dist.is_available() or dist.is_initialized() or "WORLD_SIZE" not in os.environ:
        return device
    count, number = _numbers()
    if device.type != "cpu":
        if device.index >= torch.accelerator.device_count():
            raise DeviceError(
                f"distributed: LOCAL_RANK={device.index} has no accelerator here, which has "
                f"{torch.accelerator.device_count()}; expected one for each process. Lower --nproc-per-node."
            )
        torch.accelerator.set_device_index(device.index)
    _timeout_s[0] = timeout_s
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    try:
        store = _meet(lambda: _store_of_attempt(count, number, timeout), timeout_s)
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
    except (RuntimeError, ValueError) as error:  # torch raises both, and its own kinds of the former
        reason = str(error).partition("\n")[0]
        raise DeviceError(
            f"distributed: group of {count} processes does not form at {address} ({reason}), this is rank {number}; "
            f"expected all of them within {timeout_s:g} s. See that every process is started with this address, that "
            "its port is free and that no firewall is in between."
        ) from error
    logger.info("rank %d of %d on %s of %s", number, count, device, os.uname().nodename)
    return device


def new_group(ranks: Sequence[Sequence[int]] | None = None, *, backend: str | None = None) -> dist.ProcessGroup:
    """Return a group of all processes, or that of this process among several; a collective.

    Groups beside the first one would have torch's own time-out, half an hour, whatever `start` was told.

    Args:
        ranks: of each group; None for one of all processes.
        backend: None for that of the first group.
    """
    timeout = timedelta(seconds=_timeout_s[0])
    if ranks is None:
        return dist.new_group(backend=backend, timeout=timeout)
    mine, _ = dist.new_subgroups_by_enumeration([list(one) for one in ranks], timeout=timeout, backend=backend)
    assert mine is not None, "every process is in one of the groups"
    return mine


def _meet(connect: Callable[[], dist.Store], timeout_s: float) -> dist.Store:
    """Return the store at which all processes meet.

    A connection to a port of somebody else is accepted and never answered, and in torch 2.13 a store waits for the
    answer for ever, whatever its time-out; so it waits beside.

    Raises:
        RuntimeError: if it cannot be reached, or does not answer in time.
    """
    made: list[dist.Store] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            made.append(connect())
        except (RuntimeError, ValueError) as error:
            failed.append(error)

    waiting = threading.Thread(target=run, daemon=True)
    waiting.start()
    waiting.join(timeout_s + GRACE_S)
    if failed:
        raise failed[0]
    if not made:
        raise RuntimeError("no answer: the port belongs to another program")
    return made[0]


def _store_of_attempt(count: int, number: int, timeout: timedelta) -> dist.Store:
    """Return the store of rank 0, or of torchrun's agent, with names of this attempt alone.

    The agent keeps one store over restarts. In torch 2.13 gloo then finds the addresses of the processes that were
    there before, and connects to none.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = dist.TCPStore(host, port, is_master=False, timeout=timeout)
    else:
        store = dist.TCPStore(host, port, count, is_master=number == 0, timeout=timeout, multi_tenant=True)
    return dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-of-{count}", store)


def _numbers() -> tuple[int, int]:
    """Return WORLD_SIZE and RANK after all variables were looked at."""
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        raise ConfigError(
            f"distributed: {missing[0]} is not set although WORLD_SIZE={os.environ['WORLD_SIZE']} is; expected "
            f"{', '.join(VARIABLES)}. Start with torchrun, or set all four."
        )
    try:
        count, number = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    except ValueError:
        count, number = 0, 0
    if not 0 <= number < count:
        raise ConfigError(
            f"distributed: RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']} do not fit; expected "
            "0 <= RANK < WORLD_SIZE. Start with torchrun, which sets both."
        )
    return count, number


def stop() -> None:
    """Leave the group; nothing happens without one. Call it once, at the end, so that no process waits for another."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Turn the many forms in which a collective reports that a process is gone into one sentence.

    Raises:
        DeviceError: if one is.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DeviceError) or not is_lost_process(error):
            raise
        raise DeviceError(
            f"distributed: a process of the group of {world_size()} is gone or does not answer, noticed by rank "
            f"{rank()} ({str(error).partition(chr(10))[0][:160]}); expected all of them to take part. Its own message "
            "says why it ended; start again with --resume, which goes on from the last checkpoint."
        ) from error


def is_lost_process(error: BaseException) -> bool:
    """Say whether an error of torch means that another process is gone."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError):
        return True
    words = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Socket Timeout", "gloo")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def node_size(count: int) -> int:
    """Return how many processes of all share a machine, as torchrun says; all of them if nobody does."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count))
