import pytest
import torch
from torch import nn

from featherweight.bev.average import average_of, averaged, keep_average
from featherweight.bev.model.configuration_focusbev import FocusBEVConfig
from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation
from featherweight.bev.options import BEVConfig
from featherweight.bev.task import BEVTask


def test_the_average_is_that_of_all_steps_with_a_warm_up():
    model = nn.Linear(2, 1, bias=False).double()
    keep_average(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(30):
        nn.init.normal_(model.weight)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        average_of(model).update_(model)
    with averaged(model):
        torch.testing.assert_close(model.weight, expected, rtol=1e-12, atol=0)


def test_the_weights_come_back_to_the_bit_also_after_an_error():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False))
    keep_average(model, 0.5)
    nn.init.ones_(model[0].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError), averaged(model):
        assert not torch.equal(model[0].weight, before["0.weight"]) and average_of(model) is None
        raise RuntimeError
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert "weight_average.0-weight" in after and "weight_average.1-weight" not in after


def test_what_is_judged_and_saved_is_the_average_and_training_goes_on_with_the_weights(world, cache, tmp_path):
    task = BEVTask(BEVConfig(data=str(world), limit_sequences=1, ema=0.5), seed=0)
    task.samples["val"].frames = task.samples["val"].frames[:1]
    model = task.build_model()
    assert task.evaluate(model, micro_batch_size=1) == task.evaluate(model, micro_batch_size=1)
    task.prepare(model)
    first = task.evaluate(model, micro_batch_size=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    assert task.evaluate(model, micro_batch_size=1) == first, "before a step is taken in, the average is the start"
    task.after_step(model)
    task.save_model(model, tmp_path)
    saved = FocusBEVForSegmentation.from_pretrained(tmp_path)
    assert saved.state_dict().keys() == FocusBEVForSegmentation(FocusBEVConfig.preset("tiny")).state_dict().keys()
    with averaged(model):
        assert all(map(torch.equal, saved.parameters(), model.parameters()))
    assert not torch.equal(next(saved.parameters()), next(model.parameters()))
