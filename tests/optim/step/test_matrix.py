"""The step of projected matrices: exactness and edge cases."""

import math

import pytest
import torch
from matrix_steps import gradients, matrix, parameter, project_fully, run
from torch import nn

from featherweight.errors import ShapeError
from featherweight.optim import AdamW, GaLoreAdamW, param_groups

FP32_EPS = torch.finfo(torch.float32).eps


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
