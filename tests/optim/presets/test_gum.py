"""GUM against a slow twin: its state, resume and layer-wise steps in its periods."""

import copy
import io

import pytest
import torch
from gum_periods import SHAPES, run, seed_with
from low_rank_twins import GUM as GUMTwin
from low_rank_twins import assert_follows, gradients, is_left
from torch import nn

import featherweight as fw
from featherweight.optim import GUM


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("proj_type", ["std", "reverse_std"])
@pytest.mark.parametrize(
    ("pattern", "policy"),
    [("ssss", "rotate"), ("ssss", "keep"), ("sffs", "keep"), ("fsfs", "keep")],
)
def test_steps_over_the_periods_equal_the_twin(shape, proj_type, pattern, policy):
    left, gap, probability = is_left(shape, proj_type), 3, 0.5
    start = torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    weight = nn.Parameter(start.clone())
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "scale": 0.5}
    optimizer = GUM(
        [{"params": [weight], "rank": 3, "proj_type": proj_type}], update_proj_gap=gap, basis_method="svd",
        moment_policy=policy, full_rank_probability=probability, seed=seed_with(pattern), **options,
    )  # fmt: skip
    twin = GUMTwin(
        start if left else start.T, 3, gap, probability=probability, rotates=policy == "rotate", **options
    )  # fmt: skip
    seen = []

    def take_period():
        twin.is_full = "exp_avg_full" in optimizer.state[weight]
        seen.append("f" if twin.is_full else "s")

    # Newton-Schulz steps amplify roundings of small singular values up to 3.4^5 = 480 times: 1e-13 at worst. Mutations:
    # momentum kept over a change of period, the subspace for its complement, momentum that averages (1 - b).
    grads = gradients(shape, 12, seed=1, sizes=(1.0, 2.0, 0.5))
    assert_follows(optimizer, weight, twin, grads, left, before_twin=take_period)
    assert "".join(seen[::gap]) == pattern


class TestState:
    def test_bytes_follow_the_periods(self):
        shape, gap = (12, 20), 3
        weight = nn.Parameter(torch.zeros(shape))
        optimizer = GUM(
            [{"params": [weight], "rank": 2}], full_rank_probability=0.5, update_proj_gap=gap, seed=seed_with("sfs")
        )
        small = 4 * 2 * 20 + 4 * 2 * 12 + 6 * 8  # one moment, the basis, the counters
        assert optimizer.state_bytes() == small
        for step, grad in enumerate(gradients(shape, 3 * gap)):
            run(optimizer, weight, [grad.float()])
            stored = sum(tensor.nbytes for tensor in optimizer.state[weight].values())
            assert stored == optimizer.state_bytes() == small + (4 * 12 * 20 if step // gap == 1 else 0)

    @pytest.mark.parametrize("at", [4, 5, 6, 7])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("method", ["auto", "random"])
    def test_resume_is_bitwise_identical_inside_a_full_period(self, at, dtype, method):
        seed = seed_with("sffs")  # steps 3 to 8 are full

        def build():
            weight = nn.Parameter(torch.full((12, 20), 0.5, dtype=dtype))
            optimizer = GUM(
                [{"params": [weight], "rank": 3}], full_rank_probability=0.5, update_proj_gap=3, seed=seed,
                basis_method=method, lr=0.02, weight_decay=0.1,
            )  # fmt: skip
            return weight, optimizer

        grads = [grad.to(dtype) for grad in gradients((12, 20), 12)]
        weight, optimizer = build()
        run(optimizer, weight, grads[:at])
        assert "exp_avg_full" in optimizer.state[weight]
        buffer = io.BytesIO()
        torch.save((optimizer.state_dict(), weight.detach()), buffer)
        run(optimizer, weight, grads[at:])

        buffer.seek(0)
        saved, values = torch.load(buffer, weights_only=True)
        resumed_weight, resumed = build()
        resumed_weight.data.copy_(values)
        resumed.load_state_dict(saved)
        run(resumed, resumed_weight, grads[at:])
        assert torch.equal(weight, resumed_weight)
        state, other = optimizer.state[weight], resumed.state[resumed_weight]
        assert state.keys() == other.keys()
        assert all(torch.equal(state[key], other[key]) for key in state)


class TestLayerwise:
    """Two micro-batches a step, whose gradients add up to that of an ordinary step."""

    @staticmethod
    def train(pattern, *, layerwise, windows=8, method="auto", accumulation_steps=2, clip="delayed"):
        generator = torch.Generator().manual_seed(0)
        model = nn.Linear(9, 6, bias=False).double()
        model.weight.data.copy_(torch.randn(6, 9, generator=generator, dtype=torch.float64))
        optimizer = GUM(
            [{"params": [model.weight], "rank": 2}], lr=0.02, update_proj_gap=3, full_rank_probability=0.5,
            seed=seed_with(pattern), basis_method=method,
        )  # fmt: skip
        handle = None
        if layerwise:
            handle = fw.optim.layerwise(model, optimizer, accumulation_steps=accumulation_steps, clip=clip)
        path = []
        for _ in range(windows):
            for _ in range(accumulation_steps):
                inputs = torch.randn(5, 9, generator=generator, dtype=torch.float64)
                model(inputs).square().sum().backward()
            if not layerwise:
                optimizer.step()
                optimizer.zero_grad()
            path.append((model.weight.detach().clone(), "exp_avg_full" in optimizer.state[model.weight]))
        if handle is not None:
            handle.remove()
        return path

    def test_a_full_period_accumulates_whole_gradients(self):
        # The step of a refresh still runs in the old period, because the new basis holds from the next step on.
        path = self.train("sff", layerwise=True)
        assert [full for _, full in path] == [False] * 3 + [True] * 5
        assert all(weight.isfinite().all() for weight, _ in path)
        assert torch.linalg.matrix_rank(path[5][0] - path[4][0], rtol=1e-10) > 2  # inside the subspace it would be 2
        assert torch.linalg.matrix_rank(path[2][0] - path[1][0], rtol=1e-10) == 2

    def test_windows_inside_full_periods_equal_ordinary_steps(self):
        generator = torch.Generator().manual_seed(0)
        model = nn.Linear(9, 6, bias=False).double()
        optimizer = GUM(
            [{"params": [model.weight], "rank": 2}], lr=0.02, update_proj_gap=3, full_rank_probability=0.5,
            seed=seed_with("sffs"),
        )  # fmt: skip
        run(optimizer, model.weight, gradients((6, 9), 4))
        optimizer.zero_grad()
        assert "exp_avg_full" in optimizer.state[model.weight]
        other, other_optimizer = copy.deepcopy((model, optimizer))
        with fw.optim.layerwise(model, optimizer, accumulation_steps=3):
            for _ in range(6):  # steps 4 to 9: into a second full period, and out of it
                for _ in range(3):
                    inputs = torch.randn(5, 9, generator=generator, dtype=torch.float64)
                    model(inputs).square().sum().backward()
                    other(inputs).square().sum().backward()
                other_optimizer.step()
                other_optimizer.zero_grad()
                torch.testing.assert_close(model.weight, other.weight, rtol=0, atol=1e-12)
        assert "exp_avg_full" not in optimizer.state[model.weight]

    @pytest.mark.parametrize(
        ("pattern", "method", "accumulation_steps", "clip"),
        [
            ("fs", "auto", 2, "delayed"),  # the first period is full
            ("sf", "random", 2, "delayed"),  # a random basis is redrawn at the begin of the sum
            ("sf", "auto", 1, "projected"),  # an only micro-batch refreshes at the begin of the sum, too
        ],
    )
    def test_a_full_period_that_begins_with_a_sum_equals_an_ordinary_step(
        self, pattern, method, accumulation_steps, clip
    ):
        results = [
            self.train(
                pattern, layerwise=layerwise, method=method, accumulation_steps=accumulation_steps, clip=clip, windows=4
            )
            for layerwise in (False, True)
        ]
        if method == "auto" and accumulation_steps > 1:
            # A first basis from the first micro-batch alone: only the periods agree.
            assert [full for _, full in results[0]] == [full for _, full in results[1]]
        else:
            for (ours, _), (theirs, _) in zip(*results, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
