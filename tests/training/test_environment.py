"""Machine and versions of a run."""

import json
import os
from pathlib import Path

import torch

from featherweight.training.environment import describe_environment, machine_name


def test_versions_and_machine_are_plain_values_without_names_of_folders():
    environment = describe_environment()
    text = json.dumps(environment)
    assert environment["packages"]["torch"] == torch.__version__ and environment["threads"] == torch.get_num_threads()
    assert environment["cpu_cores"] == os.cpu_count() and environment["memory_bytes"] > 2**28
    assert str(Path.cwd()) not in text


def test_a_machine_is_named_by_its_gpus_or_else_by_its_processor():
    cpu = {"gpus": [], "processor": "Some CPU", "threads": 2, "cpu_cores": 8}
    assert machine_name(cpu) == "Some CPU, 2 of 8 cores used"
    assert machine_name({**cpu, "gpus": ["A", "B"]}) == "A, B"
