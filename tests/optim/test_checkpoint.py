"""Saving and loading: torch's own ways, accelerate, distributed checkpoints and the Trainer of transformers."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from featherweight.errors import CheckpointError
from featherweight.optim import AdamW, GaLoreAdamW, param_groups

OPTIONS = [{}, {"state_bits": 8, "basis_bits": 4}, {"state_bits": 16}, {"residual": "fira", "moment_policy": "reset"}]


class Experts(nn.Module):
    """A linear layer and stacked experts, the last of which is never used."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(90, 80)
        self.experts = nn.Parameter(torch.empty(3, 80, 70))
        for parameter in self.parameters():
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))

    def forward(self, inputs):
        hidden = self.linear(inputs)
        return sum((hidden @ expert).square().mean() for expert in self.experts[:2])


def build(options):
    model = Experts()
    groups = [{"params": list(model.named_parameters()), "rank": 6}]
    return model, GaLoreAdamW(groups, lr=0.01, update_proj_gap=4, **options)


def train(model, optimizer, start, stop):
    for step in range(start, stop):
        optimizer.zero_grad()
        model(torch.randn(4, 90, generator=torch.Generator().manual_seed(step))).backward()
        optimizer.step()


def assert_equal(model, optimizer, other_model, other_optimizer):
    for a, b in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert optimizer.state[a].keys() == other_optimizer.state[b].keys()
        for key, value in optimizer.state[a].items():
            assert value.dtype == other_optimizer.state[b][key].dtype
            assert torch.equal(value, other_optimizer.state[b][key])


@pytest.mark.parametrize("options", OPTIONS)
def test_distributed_checkpoint_functions_resume_bitwise(options):
    # They make the state of a fresh optimizer by a step with zero gradients and lr 0, and then load over it.
    model, optimizer = build(options)
    train(model, optimizer, 0, 6)
    saved, weights = copy.deepcopy(get_optimizer_state_dict(model, optimizer)), copy.deepcopy(model.state_dict())
    train(model, optimizer, 6, 11)
    again, resumed = build(options)
    again.load_state_dict(weights)
    set_optimizer_state_dict(again, resumed, saved)
    train(again, resumed, 6, 11)
    assert_equal(model, optimizer, again, resumed)


def test_accelerate_resumes_bitwise(tmp_path):
    from accelerate import Accelerator

    runs = []
    for resume in (False, True):
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(*build({"state_bits": 8}))
        if resume:
            accelerator.load_state(tmp_path)
        else:
            train(model, optimizer, 0, 6)
            accelerator.save_state(tmp_path)
        train(model, optimizer, 6, 11)
        runs += [model, optimizer.optimizer]
    assert_equal(*runs)


def test_the_trainer_of_transformers_resumes_bitwise_with_a_schedule_that_moves_beta1(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 97, (16,), generator=generator) for _ in range(16)]
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=97
    )
    results = []
    for resume in (None, tmp_path / "checkpoint-2"):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        optimizer = GaLoreAdamW(param_groups(model, rank=8, update_proj_gap=3), lr=1e-2, state_bits=8)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=4)
        arguments = TrainingArguments(
            str(tmp_path), max_steps=4, save_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
            report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        dataset = [{"input_ids": row, "labels": row} for row in rows]
        trainer = Trainer(model, arguments, train_dataset=dataset, optimizers=(optimizer, schedule))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the Trainer's own: pinned memory without a GPU, and the like
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        results.append((model, optimizer))
    (model, optimizer), (again, resumed) = results
    assert_equal(model, optimizer, again, resumed)


def stepped(optimizer_type=AdamW, **options):
    weight = nn.Parameter(torch.ones(100, 100))
    optimizer = optimizer_type([weight], **options)
    weight.grad = torch.ones(100, 100)
    optimizer.step()
    return weight, optimizer


def test_a_refused_state_leaves_the_optimizer_as_it_was():
    weight, optimizer = stepped(lr=0.5)
    saved = stepped(state_bits=8)[1].state_dict()
    saved["param_groups"][0]["state_bits"] = 32
    with pytest.raises(CheckpointError, match="has exp_avg=nothing"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.5
    optimizer.step()
    assert int(optimizer.state[weight]["step"]) == 2


def test_states_of_other_optimizers_are_refused_by_name():
    weight, optimizer = stepped()
    with pytest.raises(CheckpointError, match="expected a state_dict of AdamW"):
        optimizer.load_state_dict(torch.optim.AdamW([weight]).state_dict())


def test_load_hooks_see_and_may_replace_the_state():
    _, source = stepped()
    weight, optimizer = stepped()
    seen = []

    def replace(_, state_dict):
        state_dict = copy.deepcopy(state_dict)
        state_dict["state"][0]["exp_avg"].fill_(7)
        return state_dict

    optimizer.register_load_state_dict_pre_hook(replace)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.state[weight]["exp_avg"].mean().item()))
    optimizer.load_state_dict(source.state_dict())
    assert seen == [7] and optimizer.state[weight]["exp_avg"].mean() == 7


def test_trial_basis_of_min_memory_is_checked():
    weight = nn.Parameter(torch.ones(100, 80))
    source = GaLoreAdamW([weight], rank=4, proj_type="min_memory", basis_bits=8)
    weight.grad = torch.ones(100, 80)
    source.step()
    saved = source.state_dict()
    assert saved["state"][0]["trial_basis"].shape == (100, 4)
    saved["state"][0]["trial_basis"] = torch.zeros(80, 4)
    with pytest.raises(CheckpointError, match=r"trial_basis=\(80, 4\)"):
        GaLoreAdamW([weight], rank=4, proj_type="min_memory", basis_bits=8).load_state_dict(saved)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_counters_stay_on_the_cpu_when_a_state_was_mapped_to_the_gpu():
    weight = nn.Parameter(torch.ones(20, 30, device="cuda"))
    optimizer = GaLoreAdamW([weight], rank=4)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][0] = {key: value.cuda() for key, value in saved["state"][0].items()}
    optimizer.load_state_dict(saved)
    assert optimizer.state[weight]["step"].device.type == "cpu"
    assert optimizer.state[weight]["exp_avg"].device.type == "cuda"
