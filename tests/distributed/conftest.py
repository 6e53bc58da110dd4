"""What two processes find out, started once for all default tests that ask for two."""

import pytest
import ranks
from distributed_loop import grow


@pytest.fixture(scope="session")
def folder_of_two(tmp_path_factory):
    """Runs of the two processes, and checkpoints that one process has begun."""
    folder = tmp_path_factory.mktemp("two")
    grow(folder / "grown", 2)
    return folder


@pytest.fixture(scope="session")
def two(folder_of_two):
    """By rank what each has found."""
    return ranks.run("distributed_two.py", 2, folder_of_two, str(folder_of_two))
