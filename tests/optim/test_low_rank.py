"""The claims of the one step: exactness, edge cases, and torch.optim's behaviour."""

import copy
import io
import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from featherweight.errors import CheckpointError, ConfigError, ShapeError
from featherweight.optim import AdamW, GaLoreAdamW, param_groups

FP32_EPS = torch.finfo(torch.float32).eps


def matrix(rows, columns, seed=0, dtype=torch.float32):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameter(rows, columns, seed=0, dtype=torch.float32):
    return nn.Parameter(matrix(rows, columns, seed, dtype))


def gradients(shape, steps, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(steps)]


def run(optimizer, weight, grads):
    for grad in grads:
        weight.grad = grad.to(weight.dtype).clone()
        optimizer.step()
    return weight.detach().clone()


def project_fully(optimizer):
    """Force R = min(M, N), which the optimizer itself would treat as full rank because it saves nothing."""
    for p, layout in optimizer.layouts.items():
        smaller = min(layout.rows, layout.columns)
        twin = GaLoreAdamW([{"params": [p], "rank": 1}])
        low = replace(twin.layouts[p], rank=smaller, index=layout.index, rule=layout.rule)
        optimizer.layouts[p] = low.on_side(low.side, optimizer.param_groups[0])
    return optimizer


class TestExactness:
    @pytest.mark.parametrize("shape", [(12, 20), (20, 12), (9, 9)])
    @pytest.mark.parametrize("proj_type", ["std", "full"])
    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_full_rank_subspace_with_sgd_equals_plain_sgd(self, shape, proj_type, momentum):
        # Mutation: a basis that is not orthonormal, a scale applied twice, or a wrong side breaks the equality.
        ours, theirs = parameter(*shape), parameter(*shape)
        optimizer = project_fully(
            GaLoreAdamW(
                [{"params": [ours], "rank": 1, "proj_type": proj_type}],
                lr=0.1, betas=(momentum, 0.0), scale=1.0, rule="sgd", basis_method="svd", update_proj_gap=1000,
            )
        )  # fmt: skip
        reference = torch.optim.SGD([theirs], lr=0.1, momentum=momentum)
        grads = gradients(shape, 20)
        # 20 steps, each within a few roundings of a product of 20 terms: 1e-5 relative is 80 units in the last place.
        torch.testing.assert_close(run(optimizer, ours, grads), run(reference, theirs, grads), rtol=1e-5, atol=1e-5)

    def test_identity_basis_equals_torch_adamw(self):
        ours, theirs = parameter(10, 16), parameter(10, 16)
        optimizer = project_fully(
            GaLoreAdamW([{"params": [ours], "rank": 1}], lr=0.01, weight_decay=0.1, scale=1.0, update_proj_gap=1000)
        )
        optimizer.create_state(ours)
        state = optimizer.state[ours]
        state["basis_left"].copy_(torch.eye(10))
        state["next_refresh"].fill_(1000)
        # A step count of 0 would ask for the first refresh: start both at step 1 with the same moments.
        first, *rest = gradients((10, 16), 11)
        reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
        run(reference, theirs, [first])
        ours.data.copy_(theirs.data)
        state["exp_avg"].copy_(reference.state[theirs]["exp_avg"])
        state["exp_avg_sq"].copy_(reference.state[theirs]["exp_avg_sq"])
        state["step"].fill_(1)
        state["moment_step"].fill_(1)
        torch.testing.assert_close(run(optimizer, ours, rest), run(reference, theirs, rest), rtol=1e-6, atol=1e-6)

    def test_full_rank_svd_basis_differs_from_adam_which_is_not_rotation_invariant(self):
        ours, theirs = parameter(10, 16), parameter(10, 16)
        optimizer = project_fully(GaLoreAdamW([{"params": [ours], "rank": 1}], lr=0.01, scale=1.0, basis_method="svd"))
        grads = gradients((10, 16), 5)
        difference = run(optimizer, ours, grads) - run(torch.optim.AdamW([theirs], lr=0.01), theirs, grads)
        assert difference.abs().max() > 1e-3  # a tenth of one step's length

    def test_sign_of_basis_columns_does_not_matter(self):
        grads = gradients((24, 16), 12)
        results = []
        for flip in (False, True):
            weight = parameter(24, 16)
            optimizer = GaLoreAdamW([{"params": [weight], "rank": 4}], lr=0.01, update_proj_gap=100)
            run(optimizer, weight, grads[:6])
            if flip:
                signs = torch.tensor([1.0, -1.0, -1.0, 1.0])
                optimizer.state[weight]["basis_right"].mul_(signs)
                optimizer.state[weight]["exp_avg"].mul_(signs)
            results.append(run(optimizer, weight, grads[6:]))
        torch.testing.assert_close(*results, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("proj_type", ["std", "reverse_std", "full"])
    def test_training_the_transpose_gives_the_transpose(self, proj_type):
        wide, tall = parameter(12, 30), nn.Parameter(parameter(12, 30).detach().T.contiguous())
        grads = gradients((12, 30), 15)
        results = []
        for weight, sequence in ((wide, grads), (tall, [g.T.contiguous() for g in grads])):
            optimizer = GaLoreAdamW(
                [{"params": [weight], "rank": 5, "proj_type": proj_type}],
                lr=0.01, update_proj_gap=4, basis_method="svd", weight_decay=0.1,
            )  # fmt: skip
            results.append(run(optimizer, weight, sequence))
        torch.testing.assert_close(results[0], results[1].T, rtol=1e-4, atol=1e-5)

    def test_lr_and_scale_act_as_a_product_without_decay(self):
        grads = gradients((24, 16), 12)
        results = []
        for lr, scale in ((0.04, 0.25), (0.01, 1.0)):
            weight = parameter(24, 16)
            optimizer = GaLoreAdamW([{"params": [weight], "rank": 4, "scale": scale}], lr=lr, update_proj_gap=5)
            results.append(run(optimizer, weight, grads))
        torch.testing.assert_close(*results, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("shape", [(12, 30), (30, 12), (12, 12)])
    @pytest.mark.parametrize("proj_type", ["std", "reverse_std", "left", "right", "full"])
    def test_every_side_at_every_shape_moves_the_weight_inside_the_subspace_only(self, shape, proj_type):
        weight = parameter(*shape, dtype=torch.float64)
        before = weight.detach().clone()
        optimizer = GaLoreAdamW([{"params": [weight], "rank": 3, "proj_type": proj_type}], lr=0.01)
        change = run(optimizer, weight, gradients(shape, 5, dtype=torch.float64)) - before
        assert torch.linalg.matrix_rank(change, rtol=1e-10) == 3

    def test_official_rank_above_the_small_side_with_reverse_std_works(self):
        # galore-torch infers the side from the shape of the core and fails here.
        weight = parameter(64, 256)
        optimizer = GaLoreAdamW([{"params": [weight], "rank": 48, "proj_type": "reverse_std"}], lr=0.01)
        assert run(optimizer, weight, gradients((64, 256), 2)).isfinite().all()


class TestAdamWTwin:
    def test_float32_equals_torch_adamw(self):
        ours, theirs = parameter(33, 7), parameter(33, 7)
        grads = gradients((33, 7), 20)
        result = run(AdamW([ours], lr=0.01, weight_decay=0.1), ours, grads)
        torch.testing.assert_close(
            result, run(torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1), theirs, grads), rtol=1e-6, atol=1e-6
        )

    def test_the_sliced_path_equals_the_fused_kernel(self, monkeypatch):
        monkeypatch.setattr("featherweight.optim.low_rank.fits_torch_kernel", lambda *_: False)
        monkeypatch.setattr("featherweight.optim.step.weight_update.SLICE_ELEMENTS_CPU", 100)
        ours, theirs = parameter(33, 7, dtype=torch.float64), parameter(33, 7, dtype=torch.float64)
        grads = gradients((33, 7), 20, dtype=torch.float64)
        result = run(AdamW([ours], lr=0.01, weight_decay=0.1), ours, grads)
        expected = run(torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1), theirs, grads)
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)

    def test_official_eps_and_decay_order_follow_their_formula(self):
        ours = parameter(6, 5, dtype=torch.float64)
        weight = ours.detach().clone()
        lr, eps, decay, (beta1, beta2) = 0.01, 1e-3, 0.1, (0.9, 0.99)
        exp_avg = torch.zeros_like(weight)
        exp_avg_sq = torch.zeros_like(weight)
        grads = gradients((6, 5), 4, dtype=torch.float64)
        for t, grad in enumerate(grads, 1):
            exp_avg = beta1 * exp_avg + (1 - beta1) * grad
            exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
            weight = weight - lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) * exp_avg / (exp_avg_sq.sqrt() + eps)
            weight = weight - lr * decay * weight
        optimizer = AdamW(
            [ours], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay, eps_mode="official", decay_order="after"
        )
        torch.testing.assert_close(run(optimizer, ours, grads), weight, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize(("bits", "share"), [(16, 0.01), (8, 0.05), (4, 0.30)])
    def test_low_bit_moments_follow_the_float32_path(self, bits, share):
        # The share of the path length that rounding may add: measured 0.002, 0.018, 0.13.
        full, low = parameter(64, 128), parameter(64, 128)
        start = full.detach().clone()
        grads = [g + 0.5 for g in gradients((64, 128), 20)]
        path = run(AdamW([full], lr=0.01), full, grads) - start
        error = run(AdamW([low], lr=0.01, state_bits=bits), low, grads) - start - path
        assert 0 < error.norm() / path.norm() < share


class TestStorage:
    @pytest.mark.parametrize("state_bits", [32, 16, 8, 4])
    @pytest.mark.parametrize("basis_bits", [None, 32, 16, 8, 4])
    @pytest.mark.parametrize("proj_type", ["std", "reverse_std", "left", "right", "full"])
    def test_state_bytes_equal_the_stored_tensors_and_the_formula_known_before(self, state_bits, basis_bits, proj_type):
        weights = [
            parameter(127, 33),
            parameter(96, 200),
            nn.Parameter(torch.randn(3, 20, 30)),
            nn.Parameter(torch.ones(7)),
        ]
        optimizer = GaLoreAdamW(
            [{"params": weights, "rank": 9, "proj_type": proj_type}], state_bits=state_bits, basis_bits=basis_bits
        )
        predicted = optimizer.state_bytes()
        for w in weights:
            w.grad = torch.randn(w.shape)
        optimizer.step()
        stored = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
        assert predicted == stored == optimizer.state_bytes()

    def test_bytes_of_a_llama_7b_match_the_published_table(self):
        transformers = pytest.importorskip("transformers")
        config = transformers.LlamaConfig(
            hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
        )
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
        assert sum(p.numel() for p in model.parameters()) == 6_738_415_616

        def gigabytes(optimizer):
            return round(optimizer.state_bytes() / 1e9, 2)

        assert gigabytes(AdamW(model.parameters(), state_bits=16)) == 26.95
        assert gigabytes(AdamW(model.parameters(), state_bits=8)) == 13.69
        groups = param_groups(model, rank=1024)
        assert gigabytes(GaLoreAdamW(groups, state_bits=16)) == 9.40
        assert gigabytes(GaLoreAdamW(groups, state_bits=8)) == 5.70
        assert gigabytes(GaLoreAdamW(param_groups(model, rank=256), state_bits=8)) == 1.82
        moments, basis = 2 * 1_619_001_344 + 2 * 262_410_240, 939_524_096
        counters = 8 * (224 * 5 + (len(list(model.parameters())) - 224))
        assert GaLoreAdamW(groups, state_bits=16).state_bytes() == 2 * moments + 2 * basis + counters

    def test_5461_x_2048_of_the_1b_model_is_counted_to_the_byte(self):
        with torch.device("meta"):
            weight = nn.Parameter(torch.empty(5461, 2048, dtype=torch.bfloat16))
        optimizer = GaLoreAdamW([{"params": [weight], "rank": 512}], state_bits=8)
        core = 5461 * 512
        assert optimizer.state_bytes() == 2 * (core + 4 * math.ceil(core / 256)) + 2 * 2048 * 512 + 5 * 8

    def test_reverse_std_needs_fewer_bytes_when_the_basis_is_cheaper_than_two_moments(self):
        sizes = {
            kind: GaLoreAdamW(
                [{"params": [parameter(300, 100)], "rank": 64, "proj_type": kind}], state_bits=8, basis_bits=4
            ).state_bytes()
            for kind in ("std", "reverse_std")
        }
        assert sizes["reverse_std"] < 0.75 * sizes["std"]

    @pytest.mark.parametrize("keeps", [True, False])
    def test_min_memory_flips_only_when_the_next_batch_keeps_its_energy(self, keeps):
        # Columns of the gradient keep their directions (right side predicts the next batch), rows do not, or both do.
        generator = torch.Generator().manual_seed(0)
        rows, columns, rank = 60, 40, 4
        q, _ = torch.linalg.qr(torch.randn(columns, rank, generator=generator))
        p, _ = torch.linalg.qr(torch.randn(rows, rank, generator=generator))
        weight = parameter(rows, columns)
        optimizer = GaLoreAdamW(
            [{"params": [weight], "rank": rank, "proj_type": "min_memory"}], state_bits=32, basis_bits=8, lr=0.01
        )
        sizes = [optimizer.layouts[weight].on_side(s, optimizer.param_groups[0]).nbytes() for s in ("right", "left")]
        assert sizes[1] < sizes[0]
        for _ in range(3):
            left = p if keeps else torch.randn(rows, rank, generator=generator)
            weight.grad = left @ torch.randn(rank, rank, generator=generator) @ q.T
            optimizer.step()
        assert ("basis_left_codes" in optimizer.state[weight]) is keeps
        assert optimizer.state_bytes() == sizes[1 if keeps else 0]


class TestEdges:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("at_step", [0, 3, 5])
    def test_non_finite_gradient_is_skipped_and_counted(self, bad, at_step):
        weight, other = parameter(20, 30), nn.Parameter(torch.ones(5))
        optimizer = GaLoreAdamW([{"params": [weight], "rank": 4}, {"params": [other]}], lr=0.01, update_proj_gap=5)
        for step, grad in enumerate(gradients((20, 30), 8)):
            before = weight.detach().clone()
            weight.grad, other.grad = grad, torch.ones(5)
            if step == at_step:
                weight.grad[3, 4] = bad
            optimizer.step()
            assert torch.equal(before, weight.detach()) is (step == at_step)
        assert optimizer.skipped_steps == 1
        assert weight.isfinite().all()
        assert int(optimizer.state[weight]["step"]) == 7
        assert int(optimizer.state[other]["step"]) == 8

    @pytest.mark.parametrize(("size", "is_skipped"), [(1e16, False), (1e30, True)])
    def test_huge_gradients_are_skipped_once_their_squares_leave_float32(self, size, is_skipped):
        # With a second moment of infinity a weight would never move again.
        weight = parameter(20, 30)
        optimizer = GaLoreAdamW([{"params": [weight], "rank": 4}], lr=0.01)
        run(optimizer, weight, [g * size for g in gradients((20, 30), 3)])
        assert optimizer.skipped_steps == (3 if is_skipped else 0)
        start = run(optimizer, weight, gradients((20, 30), 1))
        assert not torch.equal(run(optimizer, weight, gradients((20, 30), 1, seed=2)), start)
        assert weight.isfinite().all()

    def test_a_refresh_missed_by_a_nan_is_made_up_at_the_next_finite_step(self):
        weight = parameter(20, 30)
        optimizer = GaLoreAdamW([{"params": [weight], "rank": 4}], update_proj_gap=5, stagger=False)
        grads = gradients((20, 30), 7)
        grads[5][0, 0] = math.nan
        run(optimizer, weight, grads[:5])
        assert int(optimizer.state[weight]["refresh_count"]) == 1
        run(optimizer, weight, grads[5:6])
        assert int(optimizer.state[weight]["refresh_count"]) == 1
        run(optimizer, weight, grads[6:])
        assert int(optimizer.state[weight]["refresh_count"]) == 2

    def test_zero_gradient_gives_a_random_basis_first_and_keeps_the_basis_later(self):
        weight = parameter(20, 30)
        optimizer = GaLoreAdamW([{"params": [weight], "rank": 4}], lr=0.01, update_proj_gap=2, stagger=False)
        before = weight.detach().clone()
        zero = torch.zeros(20, 30)
        assert torch.equal(run(optimizer, weight, [zero]), before)
        basis = optimizer.state[weight]["basis_left"].clone()
        torch.testing.assert_close(basis.T @ basis, torch.eye(4), rtol=0, atol=1e-5)
        run(optimizer, weight, [zero] * 5)
        assert torch.equal(optimizer.state[weight]["basis_left"], basis)
        run(optimizer, weight, gradients((20, 30), 1))
        assert not torch.equal(optimizer.state[weight]["basis_left"], basis)

    def test_a_zero_first_gradient_does_not_hold_a_random_basis_for_a_whole_gap(self):
        # Layers behind an output projection of zeros have no gradient at the first step.
        directions, _ = torch.linalg.qr(matrix(20, 4, seed=5))
        weight = parameter(20, 30)
        optimizer = GaLoreAdamW([{"params": [weight], "rank": 4}], update_proj_gap=200)
        run(optimizer, weight, [torch.zeros(20, 30), directions @ matrix(4, 30, seed=6)])
        shared = (optimizer.state[weight]["basis_left"].T @ directions).square().sum() / 4
        assert shared > 0.999  # 1 up to rounding; a random basis shares 0.2
        assert int(optimizer.state[weight]["refresh_count"]) == 1

    @pytest.mark.parametrize("policy", ["rotate", "keep", "reset"])
    def test_a_refresh_without_gradient_leaves_the_moments_alone(self, policy):
        # Mutation: rotation from a 4-bit basis into itself, which is not the identity, made them grow at every step.
        weight = parameter(100, 200)
        optimizer = GaLoreAdamW(
            [{"params": [weight], "rank": 16}], update_proj_gap=3, stagger=False, basis_bits=4, moment_policy=policy
        )
        run(optimizer, weight, gradients((100, 200), 3))
        before = optimizer.state[weight]["exp_avg"].clone()
        run(optimizer, weight, [torch.zeros(100, 200)] * 5)
        # Five decays with 0.9, each rounded once.
        torch.testing.assert_close(optimizer.state[weight]["exp_avg"], before * 0.9**5, rtol=1e-5, atol=1e-9)
        assert int(optimizer.state[weight]["moment_step"]) == 8

    @pytest.mark.parametrize("zero_at", [0, 1])
    def test_min_memory_does_not_judge_a_side_by_a_zero_gradient(self, zero_at):
        columns, _ = torch.linalg.qr(matrix(40, 4, seed=1))
        weight = parameter(60, 40)
        optimizer = GaLoreAdamW([{"params": [weight], "rank": 4, "proj_type": "min_memory"}], basis_bits=8)
        grads = [matrix(60, 4, seed) @ columns.T for seed in range(3)]  # only the right side predicts the next one
        grads.insert(zero_at, torch.zeros(60, 40))
        run(optimizer, weight, grads)
        assert "basis_right_codes" in optimizer.state[weight]
        assert "trial_basis" not in optimizer.state[weight]

    @pytest.mark.parametrize("state_bits", [32, 16, 8, 4])
    @pytest.mark.parametrize("basis_bits", [32, 16, 8, 4])
    def test_float64_weights_work_with_every_storage(self, state_bits, basis_bits):
        paths = {}
        for dtype in (torch.float64, torch.float32):
            weight, vector = parameter(90, 200, dtype=dtype), nn.Parameter(torch.ones(5000, dtype=dtype))
            start = weight.detach().clone()
            vector.grad = torch.ones(5000, dtype=dtype)
            optimizer = GaLoreAdamW(
                [{"params": [weight], "rank": 30}, {"params": [vector]}],
                lr=0.01, state_bits=state_bits, basis_bits=basis_bits, basis_method="svd",
                update_proj_gap=2, residual="fira",
            )  # fmt: skip
            paths[dtype] = (run(optimizer, weight, gradients((90, 200), 3)) - start).float()
        # They differ where a rounding to a code goes the other way: measured up to 0.6 %.
        assert (paths[torch.float64] - paths[torch.float32]).norm() < 0.02 * paths[torch.float64].norm()

    def test_a_large_float64_gradient_is_finite(self):
        weight = nn.Parameter(torch.ones(4, 6, dtype=torch.float64))
        optimizer = AdamW([weight])
        run(optimizer, weight, [torch.full((4, 6), 1e100, dtype=torch.float64)])  # infinite in float32
        assert optimizer.skipped_steps == 0

    def test_rank_that_saves_nothing_and_vectors_run_plain_adamw(self):
        matrices = [(parameter(6, 40), parameter(6, 40)), (nn.Parameter(torch.ones(9)), nn.Parameter(torch.ones(9)))]
        for ours, theirs in matrices:
            grads = gradients(ours.shape, 5)
            optimizer = GaLoreAdamW([{"params": [ours], "rank": 6}], lr=0.01, weight_decay=0.1)
            reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
            torch.testing.assert_close(run(optimizer, ours, grads), run(reference, theirs, grads), rtol=1e-6, atol=1e-6)

    def test_matrices_that_a_rank_cannot_help_are_named_once(self, caplog):
        groups = [{"params": [("a.weight", parameter(6, 40)), ("b.weight", parameter(20, 40))], "rank": 8}]
        optimizer = GaLoreAdamW(groups)
        assert "1 of 2 matrices keep full-rank moments" in caplog.text and "'a.weight' (6, 40)" in caplog.text
        caplog.clear()
        optimizer.state_bytes()
        GaLoreAdamW([{"params": [parameter(20, 40)], "rank": 8}])
        assert not caplog.text

    def test_unused_experts_are_left_alone_and_used_ones_equal_separate_matrices(self):
        experts = nn.Parameter(torch.randn(3, 12, 20, generator=torch.Generator().manual_seed(0)))
        alone = nn.Parameter(experts.detach()[1].clone())
        options = {"lr": 0.01, "update_proj_gap": 3, "basis_method": "svd", "stagger": False, "weight_decay": 0.1}
        stacked = GaLoreAdamW([{"params": [experts], "rank": 4}], **options)
        single = GaLoreAdamW([{"params": [alone], "rank": 4}], **options)
        start = experts.detach().clone()
        for grad in gradients((12, 20), 7):
            experts.grad = torch.zeros(3, 12, 20)
            experts.grad[1] = grad
            stacked.step()
            alone.grad = grad
            single.step()
        assert torch.equal(experts[0], start[0]) and torch.equal(experts[2], start[2])
        torch.testing.assert_close(experts[1], alone, rtol=1e-5, atol=1e-6)
        assert stacked.state[experts]["step"].tolist() == [0, 7, 0]

    def test_fused_projection_splits_into_a_basis_for_each_part(self):
        fused = nn.Parameter(matrix(36, 20))
        parts = [nn.Parameter(block.clone()) for block in fused.detach().chunk(3)]
        options = {"lr": 0.01, "basis_method": "svd", "stagger": False}
        groups = [{"params": [("attn.qkv_proj.weight", fused)], "rank": 4, "split": {"qkv": 3}}]
        together = GaLoreAdamW(groups, **options)
        apart = GaLoreAdamW([{"params": parts, "rank": 4}], **options)
        for grad in gradients((36, 20), 4):
            fused.grad = grad
            for part, block in zip(parts, grad.chunk(3), strict=True):
                part.grad = block.clone()
            together.step()
            apart.step()
        torch.testing.assert_close(fused.detach(), torch.cat([p.detach() for p in parts]), rtol=1e-5, atol=1e-6)
        with pytest.raises(ShapeError, match="split=3 does not divide the 35 rows of 'qkv.weight'"):
            odd = [{"params": [("qkv.weight", parameter(35, 20))], "rank": 4, "split": {"qkv": 3}}]
            GaLoreAdamW(odd)

    def test_convolution_is_projected_as_a_matrix_of_its_filters(self):
        conv = nn.Conv2d(8, 16, 3, bias=False)
        flat = nn.Parameter(conv.weight.detach().reshape(16, 72).clone())
        groups = param_groups(nn.Sequential(conv), ["0"], rank=4)
        ours = GaLoreAdamW(groups, lr=0.01, basis_method="svd")
        reference = GaLoreAdamW([{"params": [flat], "rank": 4}], lr=0.01, basis_method="svd")
        for grad in gradients((16, 72), 3):
            conv.weight.grad, flat.grad = grad.view(16, 8, 3, 3).clone(), grad
            ours.step()
            reference.step()
        torch.testing.assert_close(conv.weight.detach().reshape(16, 72), flat.detach(), rtol=1e-6, atol=1e-6)

    def test_non_contiguous_weight_and_gradient_equal_contiguous_ones(self):
        grads = gradients((20, 30), 4)
        plain, turned = parameter(20, 30), nn.Parameter(parameter(20, 30).detach().T.contiguous().T)
        vector = nn.Parameter(torch.randn(8, 6, generator=torch.Generator().manual_seed(3)).T)
        assert not turned.is_contiguous() and not vector.is_contiguous()
        reference = vector.detach().clone(memory_format=torch.contiguous_format)
        a = run(GaLoreAdamW([{"params": [plain], "rank": 4}], lr=0.01), plain, grads)
        optimizer = GaLoreAdamW([{"params": [turned], "rank": 4}, {"params": [vector]}], lr=0.01)
        vector.grad = torch.ones_like(vector)
        b = run(optimizer, turned, [g.T.contiguous().T for g in grads])
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(vector.detach(), reference - 0.04, rtol=0, atol=1e-6)

    def test_tied_embedding_and_head_are_one_parameter_and_not_projected(self):
        model = nn.ModuleDict(
            {"embed": nn.Embedding(50, 16), "mlp": nn.Linear(16, 16), "head": nn.Linear(16, 50, bias=False)}
        )
        model["head"].weight = model["embed"].weight
        low, rest = param_groups(model, rank=4)
        assert [n for n, _ in low["params"]] == ["mlp.weight"]
        assert [n for n, _ in rest["params"]] == ["embed.weight", "mlp.bias"]
        low, _ = param_groups(model, ["mlp", "head"], rank=4)
        assert [n for n, _ in low["params"]] == ["mlp.weight"]

    def test_stagger_spreads_the_refreshes_evenly(self):
        weights = [parameter(10, 12, seed) for seed in range(5)]
        optimizer = GaLoreAdamW([{"params": weights, "rank": 2}], update_proj_gap=10)
        counts = []
        for _ in range(31):
            for w in weights:
                w.grad = torch.randn(10, 12)
            optimizer.step()
            counts.append(sum(int(s["refresh_count"]) for s in optimizer.state.values()))
        refreshed = [b - a for a, b in zip(counts, counts[1:], strict=False)]
        assert counts[0] == 5
        assert max(refreshed) == 1
        assert sum(refreshed) == 15

    def test_empty_and_missing_gradients_do_nothing(self):
        used, unused, empty = parameter(10, 12), parameter(10, 12), nn.Parameter(torch.empty(0, 4))
        optimizer = GaLoreAdamW([{"params": [used, unused, empty], "rank": 2}])
        used.grad, empty.grad = torch.randn(10, 12), torch.empty(0, 4)
        optimizer.step()
        assert unused not in optimizer.state or not optimizer.state[unused]


class TestBfloat16:
    def test_stochastic_rounding_keeps_updates_below_half_a_unit(self):
        # Weight 1, update 1e-3: a quarter of bfloat16's unit 2^-8 at 1... nearest rounding never moves.
        moved = {}
        for stochastic in (True, False):
            weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
            optimizer = AdamW([weight], lr=1e-3, weight_decay=0, stochastic_rounding=stochastic)
            run(optimizer, weight, [torch.ones(4096)] * 20)
            moved[stochastic] = 1 - weight.detach().float().mean().item()
        assert moved[False] == 0
        # Mean of 4096 draws of width 2^-8 over 20 steps: standard error about 2^-8 / 2 * sqrt(20 / 4096) = 1.4e-4.
        assert abs(moved[True] - 0.02) < 4 * 1.4e-4

    @pytest.mark.parametrize("low_rank", [False, True])
    def test_second_moments_in_16_bits_fall_when_the_gradient_falls(self, low_rank):
        # To nearest they would never: a decay of 0.999 is less than half a unit of bfloat16.
        weight = nn.Parameter(torch.zeros(80, 160))
        group = {"params": [weight], "rank": 32, "low_rank": low_rank, "basis_method": "random"}
        optimizer = GaLoreAdamW([group], state_bits=16, update_proj_gap=1000)
        run(optimizer, weight, [*gradients((80, 160), 5), *[torch.zeros(80, 160)] * 300])
        expected = 5 * 0.001 * 0.999**300
        # 5 draws a value: relative spread sqrt(2 / 5) over 5120 values or more, and rounding adds less; 4 errors: 4 %.
        assert optimizer.state[weight]["exp_avg_sq"].dtype == torch.bfloat16
        assert optimizer.state[weight]["exp_avg_sq"].float().mean().item() == pytest.approx(expected, rel=0.04)

    @pytest.mark.parametrize("proj_type", ["std", "reverse_std", "full"])
    def test_bfloat16_weights_follow_float32_weights(self, proj_type):
        shape = (48, 80)
        full = parameter(*shape)
        half = nn.Parameter(full.detach().bfloat16())
        full.data.copy_(half.data)
        start = full.detach().clone()
        options = {"lr": 0.1, "update_proj_gap": 4, "basis_bits": 32, "scale": 1.0}
        grads = [g.bfloat16().float() for g in gradients(shape, 12)]
        group = {"rank": 8, "proj_type": proj_type}
        path = run(GaLoreAdamW([{"params": [full], **group}], **options), full, grads) - start
        error = run(GaLoreAdamW([{"params": [half], **group}], **options), half, grads).float() - start - path
        # Stochastic rounding adds noise below one unit (2^-7 relative) a write, unbiased: it adds up like sqrt(12),
        # and its share along the path is noise / (|path| sqrt(3840)), about 0.01. Mutation: a lost tile or a wrong
        # factor gives 0.1 to 1.
        assert error.norm() < math.sqrt(12) * 2**-7 * start.norm()
        assert abs((error * path).sum() / path.square().sum()) < 0.04

    @pytest.mark.parametrize("proj_type", ["left", "right", "full"])
    def test_products_in_bfloat16_change_an_update_by_less_than_a_percent(self, proj_type):
        # Without rounding of the weight: of a weight of zeros what remains is the update itself. Mutation: a product
        # in float32 gives 0; a factor or a transposed basis gives 1.
        updates = []
        for basis_bits in (16, 32):
            weight = nn.Parameter(torch.zeros(48, 80, dtype=torch.bfloat16))
            optimizer = GaLoreAdamW([weight], lr=0.01, rank=8, proj_type=proj_type, basis_bits=basis_bits, seed=0)
            updates.append(run(optimizer, weight, gradients((48, 80), 1)).double())
        difference = (updates[0] - updates[1]).norm() / updates[1].norm()
        assert 0 < difference < 0.01
        assert (updates[0] * updates[1]).sum() / updates[1].square().sum() == pytest.approx(1, abs=3e-3)

    def test_rounding_does_not_depend_on_the_tile(self, monkeypatch):
        results = []
        for elements in (1 << 20, 64):
            monkeypatch.setattr("featherweight.optim.step.weight_update.TILE_ELEMENTS", elements)
            monkeypatch.setattr("featherweight.optim.step.weight_update.SLICE_ELEMENTS_CPU", elements * 4)
            weight, vector = (
                parameter(24, 20, dtype=torch.bfloat16),
                nn.Parameter(torch.ones(1000, dtype=torch.bfloat16)),
            )
            optimizer = GaLoreAdamW(
                [{"params": [weight], "rank": 4, "proj_type": "left"}, {"params": [vector]}], lr=0.01
            )
            vector.grad = torch.ones(1000, dtype=torch.bfloat16)
            results.append((run(optimizer, weight, gradients((24, 20), 3)), vector.detach().clone()))
        assert torch.equal(results[0][1], results[1][1])
        # The GEMM of a tile may sum in another order, so a few elements fall on the other side of a rounding.
        assert (results[0][0] != results[1][0]).float().mean() < 0.01


class TestTorchBehaviour:
    def test_schedulers_drive_every_group_from_its_own_lr(self):
        a, b = parameter(10, 12), nn.Parameter(torch.ones(4))
        optimizer = GaLoreAdamW([{"params": [a], "rank": 2, "lr": 0.1}, {"params": [b]}], lr=0.01)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        for _ in range(3):
            a.grad, b.grad = torch.randn(10, 12), torch.ones(4)
            optimizer.step()
            scheduler.step()
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.025, 0.0025])

    @pytest.mark.parametrize("name", ["CosineAnnealingLR", "StepLR", "OneCycleLR", "ReduceLROnPlateau"])
    def test_torch_schedulers_change_the_lr(self, name):
        weight = parameter(4, 5)
        optimizer = GaLoreAdamW([{"params": [weight], "rank": 2}], lr=0.1)
        options = {"OneCycleLR": {"max_lr": 0.1, "total_steps": 5}, "ReduceLROnPlateau": {"patience": 0}}
        options |= {"CosineAnnealingLR": {"T_max": 5}, "StepLR": {"step_size": 1}}
        scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **options[name])
        seen = set()
        for _ in range(4):
            weight.grad = torch.ones(4, 5)
            optimizer.step()
            scheduler.step(*[1.0] if name == "ReduceLROnPlateau" else [])
            seen.add(optimizer.param_groups[0]["lr"])
        assert len(seen) >= 3

    def test_closure_is_called_with_gradients_enabled_and_its_loss_returned(self):
        weight = parameter(10, 12)
        optimizer = GaLoreAdamW([{"params": [weight], "rank": 2}], lr=0.01)

        def closure():
            optimizer.zero_grad()
            loss = weight.square().sum()
            loss.backward()
            return loss

        first = optimizer.step(closure).item()
        for _ in range(30):
            last = optimizer.step(closure).item()
        assert last < first

    def test_add_param_group_checks_fills_in_and_trains(self):
        optimizer = GaLoreAdamW([{"params": [parameter(10, 12)], "rank": 2}], lr=0.01)
        added = parameter(8, 9)
        optimizer.add_param_group({"params": [added], "rank": 3})
        assert optimizer.param_groups[1]["scale"] == 0.25
        added.grad = torch.randn(8, 9)
        optimizer.step()
        assert optimizer.state[added]["basis_left"].shape == (8, 3)
        with pytest.raises(ConfigError, match="rank=0"):
            optimizer.add_param_group({"params": [parameter(8, 9)], "rank": 0})

    def test_zero_grad_frees_the_gradients(self):
        weight = parameter(4, 5)
        optimizer = AdamW([weight])
        weight.grad = torch.ones(4, 5)
        optimizer.zero_grad()
        assert weight.grad is None

    def test_deepcopy_and_pickle_continue_alike(self):
        grads = gradients((20, 30), 6)
        weight = parameter(20, 30)
        optimizer = GaLoreAdamW([{"params": [weight], "rank": 4}], lr=0.01, update_proj_gap=4)
        run(optimizer, weight, [*grads[:3], torch.full((20, 30), math.nan)])
        copies = [copy.deepcopy((weight, optimizer)), pickle.loads(pickle.dumps((weight, optimizer)))]
        expected = run(optimizer, weight, grads[3:])
        for _, optimizer_copy in copies:
            own = optimizer_copy.param_groups[0]["params"][0]
            assert torch.equal(run(optimizer_copy, own, grads[3:]), expected)
            assert optimizer_copy.skipped_steps == 1

    def test_galore_torch_groups_work_unchanged(self):
        a, b = parameter(30, 20), nn.Parameter(torch.ones(3))
        groups = [
            {"params": [b]},
            {"params": [a], "rank": 4, "update_proj_gap": 50, "scale": 2.0, "proj_type": "std"},
        ]
        optimizer = GaLoreAdamW(groups, lr=0.01)
        assert optimizer.layouts[a].rank == 4 and optimizer.layouts[b].rank is None
        assert "low_rank" not in groups[0]  # the user's groups are not written to

    def test_a_flat_list_is_projected_where_it_saves(self):
        a, b = parameter(30, 20), parameter(30, 4)
        optimizer = GaLoreAdamW([a, b], rank=8)
        assert optimizer.layouts[a].rank == 8 and optimizer.layouts[b].rank is None

    def test_a_fraction_is_a_share_of_the_smaller_side(self):
        weight = parameter(30, 20)
        assert GaLoreAdamW([weight], rank=0.25).layouts[weight].rank == 5


OPTIONS = {
    "plain": {},
    "8 bit": {"state_bits": 8, "basis_bits": 8},
    "4 bit": {"state_bits": 4, "basis_bits": 4},
    "random": {"basis_method": "random"},
    "two-sided, keep": {"proj_type": "full", "moment_policy": "keep"},
    "reset": {"moment_policy": "reset"},
    "fira": {"residual": "fira"},
    "min_memory": {"proj_type": "min_memory", "basis_bits": 8},
}


class TestStateDict:
    @staticmethod
    def build(options, dtype):
        weights = [
            parameter(100, 80, dtype=dtype),
            nn.Parameter(torch.full((5000,), 0.5, dtype=dtype)),
            nn.Parameter(matrix(20, 60).view(2, 10, 60).to(dtype)),
        ]
        return weights, GaLoreAdamW([{"params": weights, "rank": 6}], lr=0.02, update_proj_gap=5, **options)

    @staticmethod
    def train(weights, optimizer, start, stop):
        for step in range(start, stop):
            for w, seed in zip(weights, range(len(weights)), strict=True):
                w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(10 * step + seed)).to(w.dtype)
            optimizer.step()

    @pytest.mark.parametrize("name", OPTIONS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("at", [1, 7])
    def test_resume_is_bitwise_identical_in_the_middle_of_a_refresh_interval(self, name, dtype, at):
        # Mutation: moments cast to bfloat16 on load, lost counters, or random numbers that depend on history.
        weights, optimizer = self.build(OPTIONS[name], dtype)
        self.train(weights, optimizer, 0, at)
        buffer = io.BytesIO()
        torch.save({"optimizer": optimizer.state_dict(), "weights": [w.detach() for w in weights]}, buffer)
        self.train(weights, optimizer, at, 13)

        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
        again, resumed = self.build(OPTIONS[name], dtype)
        for w, values in zip(again, saved["weights"], strict=True):
            w.data.copy_(values)
        resumed.load_state_dict(saved["optimizer"])
        self.train(again, resumed, at, 13)
        for a, b in zip(weights, again, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(weights, again, strict=True):
            assert optimizer.state[a].keys() == resumed.state[b].keys()
            for key, value in optimizer.state[a].items():
                assert torch.equal(value, resumed.state[b][key]) and value.dtype == resumed.state[b][key].dtype

    def test_state_holds_plain_tensors_and_groups_hold_plain_values(self):
        weights, optimizer = self.build({"state_bits": 8, "basis_bits": 4}, torch.float32)
        self.train(weights, optimizer, 0, 2)
        saved = optimizer.state_dict()
        assert all(type(v) is torch.Tensor for s in saved["state"].values() for v in s.values())
        plain = (int, float, str, bool, tuple, list, type(None))
        assert all(isinstance(v, plain) for g in saved["param_groups"] for v in g.values())

    def test_a_state_of_another_rank_is_refused_by_name(self):
        weights, optimizer = self.build({}, torch.float32)
        self.train(weights, optimizer, 0, 2)
        other = GaLoreAdamW([{"params": weights, "rank": 6}], state_bits=8)
        saved = optimizer.state_dict()
        saved["param_groups"] = other.state_dict()["param_groups"]
        with pytest.raises(CheckpointError, match="Use the rank, proj_type and bits"):
            other.load_state_dict(saved)
        with pytest.raises(CheckpointError, match="parameter group"):
            AdamW([parameter(3, 3)]).load_state_dict(optimizer.state_dict())


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rank": 0}, "rank=0 is not allowed; expected a whole number"),
            ({"rank": -3}, "rank=-3"),
            ({"rank": 1.5}, "rank=1.5"),
            ({"rank": 4, "proj_type": "sdt"}, "proj_type='sdt'"),
            ({"rank": 4, "update_proj_gap": 0}, "update_proj_gap=0"),
            ({"rank": 4, "scale": -1.0}, "scale=-1.0"),
            ({"rank": 4, "lr": -0.1}, "lr=-0.1"),
            ({"rank": 4, "rnak": 3}, "rnak=3 is no option.*Did you mean 'rank'"),
            ({"rank": 4, "state_bits": 5}, "state_bits=5.*one of 32, 16, 8, 4"),
            ({"rank": 4, "basis_method": "qr"}, "basis_method='qr'"),
            ({"rank": 4, "betas": (0.9, 1.0)}, "betas="),
        ],
    )
    def test_wrong_option_names_itself_and_what_is_allowed(self, options, message):
        with pytest.raises(ConfigError, match=message):
            GaLoreAdamW([{"params": [parameter(10, 12)], **options}])

    def test_a_sparse_gradient_is_refused_by_name(self):
        embedding = nn.Embedding(10, 4, sparse=True)
        optimizer = AdamW(embedding.named_parameters())
        embedding(torch.tensor([1, 2])).sum().backward()
        with pytest.raises(ConfigError, match="'weight' has a gradient of layout=sparse"):
            optimizer.step()

    def test_targets_that_match_nothing_list_the_nearest_names(self):
        model = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "k_proj": nn.Linear(4, 4)})
        with pytest.raises(ConfigError, match="matches no module.*q_proj"):
            param_groups(model, ["q_porj"])
        with pytest.raises(ConfigError, match="no trainable parameter"):
            param_groups(model.requires_grad_(False))
