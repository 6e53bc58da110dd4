"""`--nproc`: a command that replaces itself by torchrun with the same command, and prints it."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence

from featherweight.errors import ConfigError


def torchrun_command(count: int, words: Sequence[str]) -> list[str]:
    """Return the command that runs `fw` with these words in several processes of this machine.

    Args:
        count: of processes.
        words: command and arguments.
    Raises:
        ConfigError: for a count below 1.
    Example:
        >>> torchrun_command(2, ["train", "recipe.yaml"])[1:]
        ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m', 'featherweight', 'train', 'recipe.yaml']
    """  # noqa: E501
    if count < 1:
        raise ConfigError(
            f"fw train: nproc={count} is out of range; expected at least 1. Give the number of processes, one for each "
            "GPU."
        )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return [sys.executable, *launcher, "-m", "featherweight", *words]


def words_of(options: Mapping[str, object]) -> list[str]:
    """Return options as they stand on a command line; those that were not given are left out.

    Example:
        >>> words_of({"--out": "runs/a", "--plan": None, "--resume": True, "--json": False})
        ['--out', 'runs/a', '--resume']
    """
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    return [word for name, value in given.items() for word in ((name,) if value is True else (name, str(value)))]


def become_processes(count: int, words: Sequence[str]) -> None:
    """Replace this process by torchrun; does nothing where a launcher has started this process already.

    Raises:
        ConfigError: for a count below 1.
    """
    command = torchrun_command(count, words)
    if "WORLD_SIZE" in os.environ:
        return
    shown = ["torchrun", *command[3:]]
    print(f"{shlex.join(shown)}", file=sys.stderr, flush=True)
    os.execv(command[0], command)
