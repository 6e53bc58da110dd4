import copy
from dataclasses import asdict

import pytest
import torch

from featherweight.errors import CheckpointError, ConfigError, DeviceError, NumericsError
from featherweight.training.checkpoint import Checkpoints
from featherweight.training.clipping import gradient_norm
from featherweight.training.interrupt import StopRequest
from featherweight.training.loop import Loop, Progress
from featherweight.training.out_of_memory import explain_out_of_memory


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}


def assert_bitwise_equal(first: Loop, second: Loop) -> None:
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    one, other = first.optimizer.state_dict()["state"], second.optimizer.state_dict()["state"]
    assert one.keys() == other.keys()
    for index, entries in one.items():
        for name, value in entries.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[index][name])), (index, name)


def train(loop: Loop, tmp_path, name: str = "checkpoints") -> None:
    loop.run([], Checkpoints(tmp_path / name, keep=100), StopRequest())


@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_four_micro_batches_with_unequal_token_counts_equal_one_large_batch(recipe, max_grad_norm):
    # AdamW, because the second layer's gradient has rank one here, and the rest of a larger basis is arbitrary.
    shared = {"task": {"name": "regression", "double": True}, "optimizer": "adamw", "max_grad_norm": max_grad_norm}
    small = Loop(recipe(micro_batch_size=3, accumulation_steps=4, **shared))
    large = Loop(recipe(micro_batch_size=12, accumulation_steps=1, **shared))
    counts = {small.task.item_count(small._next_batch()) for _ in range(4)}
    assert len(counts) > 1
    small._batches = None
    for _ in range(4):
        one, other = small.step(), large.step()
        # float64: sums in another order differ by some 1e-16 each; Adam's division by a small root enlarges that.
        # Mutation: averaging the means of the micro-batches differs in the second digit.
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-10)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-10)
        assert one["points"] == other["points"]
    for name, tensor in weights(small).items():
        torch.testing.assert_close(tensor, weights(large)[name], rtol=1e-8, atol=1e-10)


def test_the_reported_norm_is_that_before_clipping(recipe):
    free, clipped = Loop(recipe(max_grad_norm=None)), Loop(recipe(max_grad_norm=0.01))
    batch = free._next_batch()
    free._batches = None
    loss, tokens = free.task.loss(free.model, batch)
    gradients = torch.autograd.grad(loss / tokens, list(free.model.parameters()))
    expected = torch.cat([one.flatten() for one in gradients]).norm().item()
    # float32 sums in two orders.
    assert free.step()["grad_norm"] == pytest.approx(expected, rel=1e-5)
    assert clipped.step()["grad_norm"] == pytest.approx(expected, rel=1e-5)


def test_gradients_are_clipped_to_the_norm_before_the_update(recipe):
    loop = Loop(recipe(optimizer="adamw", max_grad_norm=0.01))
    seen = []
    loop.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: seen.append(float(gradient_norm([p.grad for p in loop.model.parameters()])))
    )
    loop.step()
    # torch divides by norm + 1e-6, which is a millionth of this norm, and rounds in float32.
    assert seen[0] == pytest.approx(0.01, rel=1e-4)


def test_the_schedule_scales_every_group_by_the_same_factor(recipe):
    optimizer = {"name": "galore", "rank": 4, "lr": 0.01}
    loop = Loop(
        recipe(optimizer=optimizer, schedule={"name": "linear", "warmup_steps": 2, "final_fraction": 0.0}, steps=6)
    )
    rates = [loop.step()["lr"] for _ in range(6)]
    # Warm-up 1/2, 1, then 1, 3/4, 1/2, 1/4 of the way down.
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025], rel=1e-12)
    assert loop.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_loss_that_is_not_finite_names_the_step_and_leaves_everything_as_it_was(recipe, tmp_path, layerwise):
    optimizer = {"name": "galore", "rank": 4, "lr": 1e-2, "layerwise": layerwise}
    loop = Loop(recipe(task={"name": "regression", "broken_at": 5}, checkpoint_every=2, optimizer=optimizer))
    steps = []

    class Watch:
        def __getattr__(self, name):
            return lambda event: steps.append((event.step, weights(loop))) if name == "on_step" else None

    with pytest.raises(NumericsError, match="loss=nan is not finite in step 6.*The last checkpoint is .*step-00000004"):
        loop.run([Watch()], Checkpoints(tmp_path), StopRequest())
    step, before = steps[-1]
    assert step == 5 == loop.progress.step
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(loop).items())
    assert all(parameter.grad is None for parameter in loop.model.parameters())


def test_a_step_without_items_is_refused(recipe):
    with pytest.raises(NumericsError, match="points=0 in step 1"):
        Loop(recipe(task={"name": "regression", "masked": True})).step()


def test_evaluations_and_checkpoints_change_no_number_of_the_training(recipe, tmp_path):
    task = {"name": "regression", "dropout": 0.3}
    # One after the other: dropout of both would draw from the same global generator.
    plain = Loop(recipe(task=task, evaluate_at_start=False))
    train(plain, tmp_path, "plain")
    busy = Loop(recipe(task=task, evaluate_every=1, checkpoint_every=1, memory_steps=[2, 3]))
    train(busy, tmp_path, "busy")
    assert_bitwise_equal(plain, busy)


def test_the_seed_decides_weights_data_and_dropout(recipe, tmp_path):
    task = {"name": "regression", "dropout": 0.3}
    loops = []
    for seed in (4, 4, 5):
        torch.rand(7)  # what else the process has drawn must not matter
        loops.append(Loop(recipe(task=task, seed=seed)))
        train(loops[-1], tmp_path, str(len(loops)))
    assert_bitwise_equal(loops[0], loops[1])
    assert not torch.equal(loops[0].model[0].weight, loops[2].model[0].weight)


@pytest.mark.parametrize("optimizer", ["adamw", "galore", "galore_8bit"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layerwise", [False, True])
def test_resume_is_bitwise_identical_in_the_middle_of_a_refresh_interval(
    recipe, tmp_path, optimizer, precision, layerwise
):
    options = {"name": optimizer, "lr": 1e-2, "layerwise": layerwise}
    options |= {"rank": 4, "update_proj_gap": 3} if optimizer != "adamw" else {}
    # hidden 80: a weight of 6400 elements, large enough for moments of 8 bits.
    one = recipe(
        task={"name": "regression", "dropout": 0.2, "hidden": 80},
        optimizer=options,
        accumulation_steps=2,
        checkpoint_every=1,
        precision=precision,
        memory_steps=[2],
    )
    through = Loop(one)
    train(through, tmp_path)
    torch.manual_seed(99)
    resumed = Loop(one)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for path in sorted(checkpoints.folder.iterdir())[5:]:
        path.rename(tmp_path / path.name)
    resumed.resume(checkpoints.latest())
    assert resumed.progress.step == 5
    assert resumed.footprint.peak_bytes == through.footprint.peak_bytes > 0
    train(resumed, tmp_path, "second")
    assert_bitwise_equal(through, resumed)
    assert through.progress.items == resumed.progress.items


def test_resume_with_another_recipe_names_what_differs(recipe, tmp_path):
    train(Loop(recipe(steps=2, checkpoint_every=2)), tmp_path)
    latest = Checkpoints(tmp_path / "checkpoints").latest()
    other = recipe(
        steps=3, checkpoint_every=1, optimizer={"name": "galore", "rank": 5, "lr": 1e-2, "update_proj_gap": 5}
    )
    with pytest.raises(CheckpointError, match="differs \\(optimizer.rank: 4 -> 5\\)"):
        Loop(other).resume(latest)


def test_layerwise_equals_ordinary_steps_bitwise_and_reports_the_same_norm(recipe, tmp_path):
    loops = []
    for layerwise in (False, True):
        optimizer = {"name": "galore", "rank": 4, "lr": 1e-2, "update_proj_gap": 3, "layerwise": layerwise}
        loops.append(Loop(recipe(optimizer=optimizer, max_grad_norm=None)))
        train(loops[-1], tmp_path, str(layerwise))
    assert_bitwise_equal(*loops)
    norms = [loop.step()["grad_norm"] for loop in loops]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_the_optimizer_may_have_a_limit_of_its_own_for_the_norm(recipe):
    for own, limit in ((None, 2.0), (0.5, 0.5)):
        optimizer = {"name": "apollo_mini", "layerwise": True, "clip": "per_tensor", "max_grad_norm": own}
        loop = Loop(recipe(optimizer=optimizer, max_grad_norm=2.0, accumulation_steps=3))
        assert loop.layerwise.max_grad_norm == loop.max_grad_norm == limit
        assert loop.layerwise.clip == "per_tensor" and loop.layerwise.accumulation_steps == 3


def test_speed_leaves_out_the_first_and_the_measured_steps(recipe):
    loop = Loop(recipe(memory_steps=[2], micro_batch_size=24))
    metrics = [loop.step() for _ in range(4)]
    per_step = metrics[0]["points"]
    assert "points_per_s" not in metrics[1]
    assert loop.progress.timed_items == 2 * per_step
    assert loop.progress.timed_seconds == metrics[2]["seconds"] + metrics[3]["seconds"]


def test_bf16_trains_bf16_weights_and_autocast_keeps_fp32_weights(recipe):
    for precision, dtype in (("bf16", torch.bfloat16), ("bf16_autocast", torch.float32)):
        loop = Loop(recipe(precision=precision))
        seen = []
        loop.model[0].register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.dtype))
        before = copy.deepcopy(weights(loop))
        loop.step()
        assert {tensor.dtype for tensor in weights(loop).values()} == {dtype}
        assert seen == [torch.bfloat16]
        assert not torch.equal(before["0.weight"], weights(loop)["0.weight"])


def test_activation_checkpointing_is_refused_for_a_model_that_has_none(recipe):
    with pytest.raises(ConfigError, match="activation_checkpointing=True is unknown to the model Sequential"):
        Loop(recipe(activation_checkpointing=True))


def test_activation_checkpointing_needs_less_memory_and_changes_no_number(recipe):
    text = {"name": "text", "model": "tiny", "seq_len": 64, "max_train_tokens": 2000, "max_held_out_tokens": 200}
    plain = Loop(recipe(task=text, memory_steps=[1], optimizer="adamw"))
    saving = Loop(recipe(task=text, memory_steps=[1], optimizer="adamw", activation_checkpointing=True))
    for loop in (plain, saving):
        loop.step()
    assert_bitwise_equal(plain, saving)
    # Four layers keep only their inputs; the logits and what the loss makes of them remain.
    assert saving.footprint.measured["activations"] < 0.5 * plain.footprint.measured["activations"]
    assert saving.footprint.peak_bytes < plain.footprint.peak_bytes


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_one_sentence_that_says_what_helps(recipe, error):
    with pytest.raises(
        DeviceError, match="micro_batch_size=4 .* needs more memory than there is.*Lower micro_batch_size"
    ):
        with explain_out_of_memory(recipe()):
            raise error
    with pytest.raises(RuntimeError, match="^another reason$"), explain_out_of_memory(recipe()):
        raise RuntimeError("another reason")


def test_memory_that_runs_out_in_several_processes_is_told_with_the_rank(recipe, monkeypatch):
    monkeypatch.setattr("featherweight.training.out_of_memory.world_size", lambda: 4)
    monkeypatch.setattr("featherweight.training.out_of_memory.rank", lambda: 2)
    with pytest.raises(DeviceError, match="training: rank 2 of 4: micro_batch_size=4 .*A restart will not get better"):
        with explain_out_of_memory(recipe()):
            raise MemoryError


def test_progress_of_older_checkpoints_which_say_tokens_is_read():
    new = Progress(step=3, items=12, skipped_steps=1, timed_items=8, timed_seconds=2.0)
    old = {"step": 3, "tokens": 12, "skipped_steps": 1, "timed_tokens": 8, "timed_seconds": 2.0}
    assert Progress.from_dict(old) == Progress.from_dict(asdict(new)) == new and new.items_per_s == 4
