"""What holds on a trained model: a byte-level Llama, 1300 steps on English, one seed of those in docs/welore.md."""

import copy
import itertools

import pytest
import torch

import featherweight as fw
from featherweight.methods.welore import WeLore
from featherweight.text.task import TextConfig, TextTask


def fit(model, task, parameters, *, steps, lr, weight_decay, seed):
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    for step, batch in enumerate(itertools.islice(task.batches("train", micro_batch_size=8, seed=seed), steps)):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20)
        total, items = task.loss(model, batch)
        (total / items).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def trained():
    task = TextTask(TextConfig(model="tiny", corpus="english", seq_len=128, max_held_out_tokens=8192), seed=0)
    model = task.build_model()
    fit(model, task, list(model.parameters()), steps=1300, lr=4e-3, weight_decay=0.1, seed=0)
    return task, model


def loss_of(task, model):
    return task.evaluate(model, micro_batch_size=16)["held_out_loss"]


@pytest.mark.slow  # five minutes of training
def test_ranks_of_their_own_lose_less_than_the_same_share_everywhere(trained):
    task, model = trained
    dense = loss_of(task, model)
    assert dense < 1.75
    data = [b["input_ids"] for b in itertools.islice(task.batches("train", micro_batch_size=16, seed=9), 16)]

    def lost(**options):
        changed = copy.deepcopy(model)
        fw.apply(changed, WeLore(rank_reduction=0.8, **options), data)
        return loss_of(task, changed) - dense

    uniform = lost(allocation="uniform")
    # Measured with this seed: 0.52, 0.39 and 0.24 of the loss of a common share; docs/welore.md has three seeds.
    assert lost(allocation="threshold") <= 0.8 * uniform
    assert lost(allocation="energy") <= 0.65 * uniform
    assert lost(allocation="energy", method="whitened") <= 0.5 * uniform


@pytest.mark.slow  # a minute on top
def test_tuning_the_low_rank_components_gets_most_of_what_tuning_everything_gets(trained):
    task, model = trained
    losses = {}
    for train in ("lrc", "all"):
        changed = copy.deepcopy(model)
        fw.apply(changed, WeLore(rank_reduction=0.7, scope="lrc", train=train))
        before = loss_of(task, changed)
        tunable = [p for p in changed.parameters() if p.requires_grad]
        fit(changed, task, tunable, steps=120, lr=1e-3, weight_decay=0.0, seed=100)
        losses[train] = before - loss_of(task, changed)
    assert losses["all"] > 0.02 and losses["lrc"] >= 0.75 * losses["all"]
