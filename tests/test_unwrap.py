import pytest
import torch
from torch import nn

from featherweight.unwrap import is_deepspeed, unwrap_model, unwrap_optimizer


# torch.compile imports parts of torch that warn of themselves.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_the_model_inside_compile_and_data_parallel_is_found_in_any_order():
    inner = nn.Linear(2, 2)
    assert unwrap_model(inner) is inner
    assert unwrap_model(torch.compile(nn.DataParallel(torch.compile(inner)))) is inner


def test_a_module_of_the_user_that_has_a_module_inside_is_no_wrapper():
    class DataParallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    model = DataParallel()
    assert unwrap_model(model) is model


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_the_base_comes_out_of_a_peft_model_only_when_asked():
    import peft

    base = nn.Sequential(nn.Linear(2, 2))
    model = peft.get_peft_model(base, peft.LoraConfig(r=1, target_modules=["0"]))
    assert unwrap_model(model) is model
    assert unwrap_model(torch.compile(model), peft=True) is model.get_base_model()


def test_the_optimizer_inside_accelerate_is_found():
    from accelerate import Accelerator

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    assert unwrap_optimizer(Accelerator(cpu=True).prepare(optimizer)) is optimizer
    assert unwrap_optimizer(optimizer) is optimizer
    assert unwrap_optimizer(None) is None


def test_objects_of_deepspeed_are_known_by_their_package_or_by_what_they_can_be_asked():
    # Stand-ins of its layout: deepspeed/runtime/engine.py, runtime/pipe/engine.py, and a wrapper of somebody else.
    engine = type("DeepSpeedEngine", (nn.Linear,), {"__module__": "deepspeed.runtime.engine"})
    later = type("ZenEngine", (nn.Linear,), {"__module__": "deepspeed.compile.engine"})
    wrapped = type("Wrapped", (nn.Linear,), {"zero_optimization_stage": lambda self: 2})
    assert all(is_deepspeed(one(2, 2)) for one in (engine, later, wrapped, type("Mine", (engine,), {})))
    named = type("DeepSpeedEngine", (nn.Linear,), {"__module__": "deepspeed_like.engine"})
    assert not is_deepspeed(named(2, 2)) and not is_deepspeed(nn.Linear(2, 2))
