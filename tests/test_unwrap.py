import pytest
import torch
from torch import nn

from featherweight.unwrap import unwrap_model, unwrap_optimizer


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
