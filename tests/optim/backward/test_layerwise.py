"""Layer-wise updates: the same numbers as ordinary steps, in every situation in which others get them wrong."""

import io
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from layerwise_llama import (
    GAP,
    assert_same_run,
    batches,
    build,
    llama,
    loss_of,
    stagger_free,
    train_ordinary,
)
from torch import nn

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.optim import (
    AdamW,
    GaLoreAdamW,
    layerwise,
    optimizers,
)
from featherweight.optim.backward.sketch import NORM_COLUMNS

SCRIPT = Path(__file__).parents[2] / "reference" / "layerwise_windows.py"


@pytest.mark.parametrize("name", optimizers.names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layerwise_equals_ordinary_steps_bitwise(name, dtype):
    # Mutation: another order of random numbers, another kernel for full-rank parameters, a step per contribution of the
    # tied weight, or autograd's own dtype in the update.
    runs = []
    for is_layerwise in (False, True):
        model = llama(dtype)
        optimizer = build(name, model)
        data = batches(2 * GAP + 2)
        if is_layerwise:
            with layerwise(model, optimizer) as handle:
                for tokens in data:
                    (loss_of(model, tokens) / tokens[:, 1:].numel()).backward()
                    assert all(p.grad is None for p in model.parameters())
            assert handle.steps == len(data)
        else:
            train_ordinary(model, optimizer, data)
        runs.append((model, optimizer))
    assert_same_run(*runs)


@pytest.mark.parametrize("name", [name for name in optimizers.names() if "bit" not in name])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_accumulation_equals_one_step_on_the_joined_batch_between_refreshes(name, dtype, tolerance):
    # Micro-batches of unequal token counts: rows 1, 4, 2. Sums of three cores round differently from the core of a sum;
    # float64 with 1e-9 shows that it is only rounding. One step before makes the same bases for both.
    # Mutation: a mean instead of a sum, a lost micro-batch, a step per micro-batch.
    sizes = (1, 4, 2)
    runs = []
    for is_layerwise in (False, True):
        model = llama(dtype)
        optimizer = build(name, model, **({} if name.startswith(("adamw", "scale")) else {"update_proj_gap": 1000}))
        train_ordinary(model, optimizer, batches(1))
        stagger_free(optimizer)
        for step in range(3):
            (tokens,) = batches(1, rows=sum(sizes), seed=10 + step)
            count = tokens[:, 1:].numel()
            if not is_layerwise:
                train_ordinary(model, optimizer, [tokens])
                continue
            with layerwise(model, optimizer, accumulation_steps=len(sizes)) as handle:
                for part in tokens.split(sizes):
                    (loss_of(model, part) / count).backward()
            assert handle.steps == 1
        runs.append((model, optimizer))
    assert_same_run(*runs, rtol=tolerance, atol=tolerance)


class TestRefresh:
    def run(self, steps, gap=2, **options):
        """Train a linear layer with two micro-batches a step; return the energy of each next gradient in the basis."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 60, bias=False))
        target = torch.randn(60, 40)
        scales = torch.arange(1, 41) ** -0.8
        groups = [{"params": model.parameters(), "rank": 5, "update_proj_gap": gap}]
        optimizer = GaLoreAdamW(groups, lr=1e-3, stagger=False, **options)
        generator = torch.Generator().manual_seed(1)
        energies = []
        with layerwise(model, optimizer, accumulation_steps=2):
            for _ in range(steps):
                x = torch.randn(64, 40, generator=generator) * scales
                grad = (x @ model[0].weight.detach().T - x @ target.T).T @ x * 2 / 64
                for part in x.chunk(2):
                    ((model(part) - part @ target.T).square().sum() / 64).backward()
                weight = model[0].weight
                (matrix,) = optimizer.step_of(weight).matrices(optimizer.member(weight, optimizer.param_groups[0]))
                best = torch.linalg.svdvals(grad)[:5].square().sum() / grad.square().sum()
                energies.append(float(matrix.subspace().energy(grad) / best))
        return energies, optimizer.state[model[0].weight]

    @pytest.mark.parametrize("proj_type", ["left", "right", "full"])
    def test_a_sketch_finds_the_subspace_of_a_sum_that_never_exists(self, proj_type):
        # Measured: 0.97 and more of the energy of the exact SVD of the same sum after some warm refreshes; a random
        # basis of rank 5 of 40 holds 0.2 of it. Two-sided bases lose on both sides.
        energies, state = self.run(12, proj_type=proj_type)
        assert min(energies[4:]) > (0.85 if proj_type == "full" else 0.93)
        assert int(state["refresh_count"]) == 6  # at the steps 0, 2, 4, 6, 8, 10
        assert int(state["next_refresh"]) == 12

    def test_a_refresh_at_every_step_happens_at_every_step(self):
        _, state = self.run(5, gap=1)
        assert int(state["refresh_count"]) == 5

    def test_the_new_basis_holds_from_the_next_step_on_and_carries_the_moments(self):
        weight = nn.Parameter(torch.zeros(12, 20, dtype=torch.float64))
        model = nn.ParameterList([weight])
        groups = [{"params": [weight], "rank": 3, "update_proj_gap": 2}]
        optimizer = GaLoreAdamW(groups, lr=0.1, scale=1.0, stagger=False)
        generator = torch.Generator().manual_seed(0)

        def window():
            for _ in range(2):
                (weight * torch.randn(12, 20, generator=generator, dtype=torch.float64)).sum().backward()

        with layerwise(model, optimizer, accumulation_steps=2):
            window()
            window()
            state = optimizer.state[weight]
            before = {key: value.clone() for key, value in state.items()}
            start = weight.detach().clone()
            position = generator.get_state()
            window()  # step 2: a refresh is due
            generator.set_state(position)
            grad = sum(torch.randn(12, 20, generator=generator, dtype=torch.float64) for _ in range(2))
        moved = weight.detach() - start
        inside = before["basis_left"] @ (before["basis_left"].T @ moved)
        torch.testing.assert_close(inside, moved, rtol=1e-10, atol=1e-12)  # the step itself used the old basis
        assert not torch.allclose(state["basis_left"], before["basis_left"], atol=1e-3)
        # The step updated the first moment in the old basis; then it was rotated into the new one.
        overlap = state["basis_left"].T @ before["basis_left"]
        expected = overlap @ (0.9 * before["exp_avg"] + 0.1 * before["basis_left"].T @ grad)
        torch.testing.assert_close(state["exp_avg"], expected, rtol=1e-10, atol=1e-12)
        assert (overlap - torch.eye(3)).abs().max() > 1e-2


class TestLoops:
    def test_step_zero_grad_closures_and_schedulers_are_harmless(self):
        runs = []
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for is_layerwise in (False, True):
                model = llama()
                optimizer = build("galore", model)
                schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
                handle = layerwise(model, optimizer) if is_layerwise else None
                for number, tokens in enumerate(batches(6)):

                    def closure(tokens=tokens, model=model, optimizer=optimizer):
                        optimizer.zero_grad(set_to_none=False)
                        loss = loss_of(model, tokens) / tokens[:, 1:].numel()
                        loss.backward()
                        return loss

                    if number % 2:
                        assert optimizer.step(closure) > 0
                    else:
                        closure()
                        optimizer.step()
                    schedule.step()
                if handle:
                    assert handle.steps == 6
                    handle.remove()
                runs.append((model, optimizer))
        assert_same_run(*runs)

    def test_schedulers_need_no_call_of_step(self):
        model = llama()
        optimizer = build("adamw", model)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        with warnings.catch_warnings(), layerwise(model, optimizer):
            warnings.simplefilter("error")
            loss_of(model, *batches(1)).backward()
            schedule.step()

    def test_step_in_the_middle_of_a_window_ends_it(self):
        # Mutation: the last, shorter window of an epoch is lost or runs into the next epoch.
        data = batches(5)
        runs = []
        for is_layerwise in (False, True):
            model = llama(torch.float64)
            optimizer = build("adamw", model)
            handle = layerwise(model, optimizer, accumulation_steps=3) if is_layerwise else None
            for window in (data[:3], data[3:]):
                for tokens in window:
                    loss_of(model, tokens).div(100).backward()
                optimizer.step()
                optimizer.zero_grad()
            if handle:
                assert handle.steps == 2
                handle.remove()
            runs.append((model, optimizer))
        assert_same_run(*runs, rtol=1e-12, atol=1e-12)

    def test_zero_grad_in_the_middle_of_a_window_loses_nothing(self):
        results = []
        for zero in (False, True):
            model = llama()
            optimizer = build("galore", model)
            with layerwise(model, optimizer, accumulation_steps=2):
                for tokens in batches(4):
                    loss_of(model, tokens).div(100).backward()
                    if zero:
                        model.zero_grad()
                        optimizer.zero_grad()
            results.append((model, optimizer))
        assert_same_run(*results)

    def test_options_that_change_after_a_state_was_loaded_count(self):
        # accelerate loads a state in prepare, which puts new group dicts into the optimizer: a stale one keeps its lr.
        model = llama()
        optimizer = build("adamw", model)
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        with layerwise(model, optimizer):
            optimizer.load_state_dict(optimizer.state_dict())
            for group in optimizer.param_groups:
                group["lr"] = 0.0
            loss_of(model, *batches(1)).backward()
        assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())


class TestBadInput:
    def test_wrong_arguments_name_themselves(self):
        model = llama()
        optimizer = build("galore", model)
        for options, message in (
            ({"accumulation_steps": 0}, "accumulation_steps=0"),
            ({"clip": "late"}, "clip='late' is unknown; expected one of delayed"),
            ({"max_grad_norm": 0.0}, "max_grad_norm=0.0"),
        ):
            with pytest.raises(ConfigError, match=message):
                layerwise(model, optimizer, **options)
        with pytest.raises(ConfigError, match="optimizer=SGD cannot update single parameters"):
            layerwise(model, torch.optim.SGD(model.parameters()))
        with pytest.raises(ConfigError, match="lacks 20 of 20 trainable parameters of this optimizer"):
            layerwise(llama(), optimizer)
        with pytest.raises(ConfigError, match="max_grad_norm='1' is not allowed"):
            layerwise(model, optimizer, max_grad_norm="1")
        with layerwise(model, optimizer):
            with pytest.raises(ConfigError, match="layer-wise already"):
                layerwise(model, optimizer)
            with pytest.raises(ConfigError, match="another optimizer updates"):
                layerwise(model, build("adamw", model))
            with pytest.raises(ConfigError, match="add_param_group is not possible"):
                optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})

    def test_a_sparse_gradient_is_refused_by_name(self):
        embedding = nn.Embedding(10, 4, sparse=True)
        optimizer = AdamW(embedding.named_parameters())
        with (
            layerwise(embedding, optimizer),
            pytest.raises(ConfigError, match="'weight' has a gradient of layout=sparse"),
        ):
            embedding(torch.tensor([1, 2])).sum().backward()


class TestMemory:
    def measure(self, accumulation_steps, name="galore", **options):
        model = llama(tie_word_embeddings=False)
        optimizer = build(name, model, update_proj_gap=1000)
        (first,) = batches(1)
        train_ordinary(model, optimizer, [first])
        stagger_free(optimizer)
        with layerwise(model, optimizer, accumulation_steps=accumulation_steps, **options) as handle:
            with fw.measure_memory(model, optimizer) as memory:
                for _ in range(2):
                    for tokens in batches(accumulation_steps):
                        loss_of(model, tokens).div(100).backward()
            return memory.max_by_category["gradients"], handle, model, optimizer

    def test_without_accumulation_one_gradient_exists_at_a_time(self):
        measured, handle, model, _ = self.measure(1)
        assert measured == max(p.nbytes for p in model.parameters()) == handle.gradient_bytes()

    @pytest.mark.parametrize("max_grad_norm", [None, 1.0])
    def test_accumulation_adds_one_float32_core_for_each_matrix_and_one_gradient_for_the_rest(self, max_grad_norm):
        measured, handle, model, optimizer = self.measure(3, max_grad_norm=max_grad_norm)
        kept = 0
        for p, layout in optimizer.layouts.items():
            probe = 0 if max_grad_norm is None or not layout.rank else layout.rows * NORM_COLUMNS
            core = math.prod(layout.core_shape) + probe if layout.rank else p.numel()
            kept += 4 * core
        assert measured == max(p.nbytes for p in model.parameters()) + kept == handle.gradient_bytes()
        assert measured < 0.8 * sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("name", optimizers.names())
@pytest.mark.parametrize(("dtype", "accumulation_steps"), [(torch.float32, 1), (torch.bfloat16, 2)])
def test_resume_is_bitwise_identical_between_two_windows_of_a_refresh_interval(name, dtype, accumulation_steps):
    data = batches(8 * accumulation_steps)
    runs = []
    for stop in (None, 4 * accumulation_steps):
        model = llama(dtype)
        optimizer = build(name, model)
        for part in (data,) if stop is None else (data[:stop], data[stop:]):
            with layerwise(model, optimizer, accumulation_steps=accumulation_steps, max_grad_norm=1.0):
                for tokens in part:
                    loss_of(model, tokens).div(50).backward()
            if stop is not None and part is not data[stop:]:
                buffer = io.BytesIO()
                torch.save([model.state_dict(), optimizer.state_dict()], buffer)
                buffer.seek(0)
                weights, state = torch.load(buffer, weights_only=True)
                model = llama(dtype, seed=1)
                model.load_state_dict(weights)
                optimizer = build(name, model)
                optimizer.load_state_dict(state)
        runs.append((model, optimizer))
    assert_same_run(*runs)


@pytest.mark.slow
def test_resume_in_a_fresh_process_is_bitwise_identical(tmp_path):
    # bf16 weights with stochastic rounding, 8-bit states, clipping, two micro-batches; stopped within a gap of 4.
    def run(start, stop, name):
        command = [sys.executable, str(SCRIPT), str(start), str(stop), str(tmp_path / name)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]

    through = run(0, 9, "through.pt")
    assert run(0, 6, "parts.pt") != through
    assert run(6, 9, "parts.pt") == through
