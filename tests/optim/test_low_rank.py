"""The optimizer as a whole: storage, states, and torch.optim's behaviour."""

import copy
import io
import math
import pickle

import pytest
import torch
from matrix_steps import gradients, matrix, parameter, run
from torch import nn

from featherweight.errors import CheckpointError, ConfigError
from featherweight.optim import AdamW, GaLoreAdamW, param_groups

FP32_EPS = torch.finfo(torch.float32).eps


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
