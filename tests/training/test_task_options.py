"""Options that are known without torch are those that the tasks and methods themselves have."""

import pytest

from featherweight.methods.named import method_options, methods
from featherweight.methods.options import Int8Options
from featherweight.quant.int8_weight import GROUP_SIZE
from featherweight.training.task import task_options, tasks

TASKS = ("text", "chat", "preference", "classification", "instructions", "pde", "bev", "robot", "robot_act")


@pytest.mark.parametrize("name", TASKS)
def test_those_of_a_task_are_the_ones_it_is_built_with(name):
    assert task_options(name) is tasks.get(name).Config


@pytest.mark.parametrize("name", method_options.names())
def test_those_of_a_method_are_all_that_it_has(name):
    method, options = methods.get(name), method_options.get(name)
    assert issubclass(method, options) and method.model_fields.keys() == options.model_fields.keys()
    assert options().title == method().title == method.__name__


def test_the_group_of_int8_weights_is_that_of_their_kernel():
    assert Int8Options().group_size == GROUP_SIZE
