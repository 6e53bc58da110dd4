import json
from functools import cache
from pathlib import Path

import pytest
import torch

import featherweight as fw
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe

pytestmark = pytest.mark.xdist_group("methods in a recipe")  # what they are compared with is trained once

LAYERS = 2
MODEL = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": LAYERS}
MODEL |= {"num_attention_heads": 4, "max_position_embeddings": 128}
SETTINGS = {
    "task": {"name": "text", "model": MODEL, "seq_len": 64, "max_train_tokens": 4000} | {"max_held_out_tokens": 500},
    "optimizer": {"name": "adamw", "lr": 1e-3},
    "steps": 3,
    "micro_batch_size": 2,
    "accumulation_steps": 2,
    "memory_steps": [],
}


@pytest.fixture(scope="module", autouse=True)
def english(tmp_path_factory):
    """A text that does not change, and is short: each run encodes all of it."""
    file = tmp_path_factory.mktemp("corpus") / "english.txt"
    file.write_text((Path(__file__).parents[2] / "LICENSE").read_text())
    SETTINGS["task"]["corpus"] = str(file)


MST = {"mst": {"chunk_size": 16, "head_chunk_size": 16, "head_in_eval": True}}


def losses(**changes):
    loop = Loop(Recipe.parse({**SETTINGS, **changes}))
    return loop, [loop.step()["loss"] for _ in range(3)] + [loop.evaluate()["held_out_loss"]]


def expected_losses(**changes):
    """Return the losses of a run that several tests are compared with; it is made once."""
    return _expected_losses(json.dumps(changes))


@cache
def _expected_losses(changes):
    return losses(**json.loads(changes))[1]


def test_a_recipe_with_mst_learns_the_same():
    expected = expected_losses()

    loop, found = losses(methods=[MST])

    # float32 sums in another order, three updates; measured: 1e-7.
    assert found == pytest.approx(expected, abs=1e-5)
    assert [type(method) for method in loop.methods] == [fw.MsT]
    batch = next(loop.task.batches("train", micro_batch_size=1, seed=0))
    assert loop.model(**batch).logits is None


@pytest.mark.parametrize("checkpoint", [True, "selective", "offload"])
def test_mst_goes_with_galore_bf16_weights_and_checkpointing(checkpoint):
    settings = {"optimizer": {"name": "galore", "lr": 1e-3, "rank": 8}, "precision": "bf16"}
    expected = expected_losses(**settings)

    _, found = losses(**settings, methods=[{"mst": {**MST["mst"], "checkpoint": checkpoint}}])

    assert found == pytest.approx(expected, abs=0.02)  # weights of 8 bits of precision, stochastic rounding


@pytest.mark.parametrize("optimizer", ["adamw", "galore_8bit", "apollo_mini"])
@pytest.mark.parametrize("checkpoint", [False, True, "selective", "offload"])
def test_mst_goes_with_layerwise_updates_and_accumulation(optimizer, checkpoint):
    # The same run, layer-wise: with MsT, and without. A parameter whose gradient reached autograd in pieces would be
    # updated once for each piece.
    options = {"name": optimizer, "lr": 1e-3, "layerwise": True}
    options |= {"rank": 8, "update_proj_gap": 2} if optimizer == "galore_8bit" else {}
    for accumulation_steps in (1, 2):
        settings = {"optimizer": options, "accumulation_steps": accumulation_steps, "max_grad_norm": None}
        expected = expected_losses(**settings)

        loop, found = losses(**settings, methods=[{"mst": {**MST["mst"], "checkpoint": checkpoint}}])

        assert loop.layerwise.steps == 3
        assert all(int(state["step"].max()) == 3 for state in loop.optimizer.state.values())
        # float32 sums in another order; 8-bit moments round some of it up.
        assert found == pytest.approx(expected, abs=1e-3 if optimizer == "galore_8bit" else 1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "galore_8bit"])
@pytest.mark.parametrize("layerwise", [False, True])
def test_the_shortest_of_memory_goes_with_layerwise_updates_and_accumulation(layerwise, optimizer):
    options = {"name": optimizer, "lr": 1e-3, "layerwise": layerwise}
    options |= {"rank": 8, "update_proj_gap": 2} if optimizer == "galore_8bit" else {}
    settings = {"optimizer": options, "max_grad_norm": None}
    expected = expected_losses(**settings)
    method = {"mst": {**MST["mst"], "tokenwise": True, "checkpoint": "offload"}}

    _, found = losses(**settings, methods=[method])

    # float32 sums in another order; 8-bit moments round some of it up.
    assert found == pytest.approx(expected, abs=1e-3 if optimizer == "galore_8bit" else 1e-4)


# Mutation: gradients of all layers that wait for the end of the backward pass are four times as many here.
def test_layerwise_gradients_go_layer_by_layer_with_regions_too():
    def largest(**mst):
        settings = {"optimizer": {"name": "adamw", "lr": 1e-3, "layerwise": True}, "accumulation_steps": 1}
        method = {"mst": {**MST["mst"], **mst}}
        loop = Loop(Recipe.parse({**SETTINGS, **settings, "max_grad_norm": None, "methods": [method]}))
        loop.step()
        with fw.measure_memory(loop.model, loop.optimizer) as memory:
            loop.step()
        return memory.max_by_category["gradients"]

    # The output projection belongs to the same region as the feed-forward layer; the rest are norms.
    assert largest(tokenwise=True, checkpoint="offload") <= largest() + (64 * 64 + 4 * 64) * 4


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        # Drawn bases: float32 sums in another order, and where they move a value over its random number another code.
        ({"name": "galore", "basis_method": "random", "state_bits": 8}, 1e-3),
        # Fitted bases see sketches of the chunks' gradients instead of a whole one; measured: 0.01.
        ({"name": "q_galore"}, 0.03),
    ],
    ids=["drawn bases", "q_galore"],
)
@pytest.mark.parametrize("mst", [{}, {"tokenwise": True, "checkpoint": "offload"}], ids=["mst", "tokenwise, offload"])
def test_everything_together_learns_as_without_chunks(mst, options, tolerance):
    """Int8 weights, core gradients, GaLore layer by layer, accumulation, and sequences in chunks."""
    optimizer = {**options, "lr": 1e-3, "layerwise": True, "rank": 8, "update_proj_gap": 2}
    methods = ["int8", {"core_gradient": {"prefer": "memory"}}]
    settings = {"optimizer": optimizer, "max_grad_norm": None}
    expected = expected_losses(**settings, methods=methods)

    loop, found = losses(**settings, methods=[*methods, {"mst": {**MST["mst"], **mst}}])

    assert [type(method) for method in loop.methods] == [fw.Int8, fw.CoreGradient, fw.MsT]
    assert found == pytest.approx(expected, abs=tolerance)
    assert sum(name.endswith("weight_codes") for name in loop.model.state_dict()) == 7 * LAYERS
    assert expected[0] - found[-1] > 0.05  # three updates at a small rate; measured: 0.10 to 0.12


def test_two_runs_with_mst_are_equal_bit_by_bit():
    (first, _), (second, _) = losses(methods=[MST]), losses(methods=[MST])

    assert all(
        torch.equal(one, other) for one, other in zip(first.model.parameters(), second.model.parameters(), strict=True)
    )


Q_GALORE = {"name": "q_galore", "lr": 1e-2, "rank": 8, "update_proj_gap": 2, "layerwise": True}


def test_q_galore_brings_int8_weights_unless_the_recipe_lists_them_itself():
    loop, found = losses(optimizer=Q_GALORE)
    assert [type(method) for method in loop.methods] == [fw.Int8] and found[2] < found[0]
    loop, _ = losses(optimizer=Q_GALORE, methods=[{"int8": {"embeddings": True}}, MST])
    assert [type(method) for method in loop.methods] == [fw.Int8, fw.MsT] and loop.methods[0].embeddings


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_everything_goes_together(accumulation_steps):
    """Int8 weights, core gradients, chunks, offloaded checkpoints and layer-wise updates in one recipe."""
    settings = {"optimizer": Q_GALORE, "accumulation_steps": accumulation_steps, "max_grad_norm": None}
    expected = expected_losses(**settings)
    chunked = {"mst": {**MST["mst"], "checkpoint": "offload"}}

    loop, found = losses(**settings, methods=["core_gradient", chunked])

    rows = loop.optimizer.report().section("Core gradients").rows
    assert len(rows) == 7 * LAYERS and all("core" in row[1] for row in rows)
    assert all(int(state["step"].max()) == 3 for state in loop.optimizer.state.values())
    # Codes of 8 bits are rounded by the same random numbers; what differs are sums in another order, and with
    # accumulation 1 the time at which the first basis of the chunked layers takes effect.
    assert found == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_shared_bases_go_with_everything_too(accumulation_steps):
    optimizer = {**Q_GALORE, "proj_type": "right"}
    settings = {"optimizer": optimizer, "accumulation_steps": accumulation_steps, "max_grad_norm": None}
    shared = {"core_gradient": {"share_basis": True}}
    chunked = {"mst": {**MST["mst"], "checkpoint": "offload"}}
    expected = expected_losses(**settings, methods=[shared])

    loop, found = losses(**settings, methods=[shared, chunked])

    rows = [row[1] for row in loop.optimizer.report().section("Core gradients").rows]
    assert (
        sum("of 3 weights" in row for row in rows) == 3 * LAYERS
        and sum("of 2 weights" in row for row in rows) == 2 * LAYERS
    )
    assert found == pytest.approx(expected, abs=0.02) and found[2] < found[0]


def test_core_gradients_without_layerwise_updates_are_refused():
    with pytest.raises(fw.errors.ConfigError, match="layerwise=true"):
        losses(optimizer={**Q_GALORE, "layerwise": False}, methods=["core_gradient"])


GROWING = {"inrank": {"buffer": 4, "every": 1, "warmup": 0, "explained": 0.8, "patience": 2}}


def test_a_recipe_with_inrank_resumes_bit_by_bit_while_ranks_grow(tmp_path):
    from featherweight.methods.inrank import growth_state
    from featherweight.training.checkpoint import Checkpoints

    for optimizer in ({"name": "adamw", "lr": 1e-2}, {"name": "galore", "lr": 1e-2, "rank": 4}):
        recipe = Recipe.parse({**SETTINGS, "methods": [GROWING], "optimizer": optimizer, "steps": 8})
        whole = Loop(recipe)
        for _ in range(2):
            whole.step()
        checkpoints = Checkpoints(tmp_path / optimizer["name"])
        checkpoints.save(2, whole.model, whole.state_dict(), recipe.to_dict())
        expected = [whole.step()["loss"] for _ in range(4)] + [whole.evaluate()["held_out_loss"]]
        ranks = growth_state(whole.model).ranks
        assert max(ranks.values()) > 2

        resumed = Loop(recipe)
        resumed.resume(checkpoints.latest())

        assert [resumed.step()["loss"] for _ in range(4)] + [resumed.evaluate()["held_out_loss"]] == expected
        assert growth_state(resumed.model) == growth_state(whole.model)


def test_a_checkpoint_from_before_factors_had_a_rate_goes_on_as_it_began(tmp_path):
    from featherweight.training.checkpoint import Checkpoints

    former = {"lr_factor": 1.0, "growth": "product", "init": "kaiming", "explained": 0.5}
    growing = {**GROWING["inrank"], "explained": 0.5}
    settings = {**SETTINGS, "optimizer": {"name": "adamw", "lr": 1e-2}, "steps": 6}
    recipe = Recipe.parse({**settings, "methods": [{"inrank": growing}]})
    whole = Loop(Recipe.parse({**settings, "methods": [{"inrank": {**growing, **former}}]}))
    assert len(whole.optimizer.param_groups) == 2  # embeddings and the rest; no group for a layer
    whole.step()
    state = whole.state_dict()
    del state["methods"][0]["measures_change"]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, whole.model, state, recipe.to_dict())
    expected = [whole.step()["loss"] for _ in range(4)]

    resumed = Loop(recipe)
    assert len(resumed.optimizer.param_groups) > 2
    resumed.resume(checkpoints.latest())

    assert [resumed.step()["loss"] for _ in range(4)] == expected


def test_a_run_with_inrank_reports_ranks_over_time_and_saves_a_low_rank_model(tmp_path):
    run = fw.train({**SETTINGS, "methods": [GROWING]}, out=tmp_path / "run", callbacks=[])

    assert run.report.section("Rank over time").curves
    assert "Rank over time" in (tmp_path / "run" / "report.html").read_text()
    assert fw.load_low_rank(tmp_path / "run" / "model").config.low_rank_config["rank_pattern"]


def test_a_recipe_with_welore_trains_the_low_rank_components_alone(tmp_path):
    task = {**SETTINGS["task"], "model": "tiny"}
    settings = {"task": task, "methods": [{"welore": {"train": "lrc", "rank_reduction": 0.9, "train_norms": False}}]}
    loop, found = losses(**settings)
    twin, same = losses(**settings)

    assert found == same
    trained = {name for name, parameter in loop.model.named_parameters() if parameter.requires_grad}
    assert trained and all(name.endswith(("U.weight", "V.weight")) for name in trained)
    held = sum(
        value.numel() for state in loop.optimizer.state.values() for key, value in state.items() if key != "step"
    )
    assert held == 2 * sum(p.numel() for p in loop.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("optimizer", ["adamw", "galore", "adamw_8bit"])
def test_tuning_of_low_rank_components_resumes_bit_by_bit(optimizer, tmp_path):
    from featherweight.training.checkpoint import Checkpoints

    options = {"name": optimizer, "lr": 1e-3} | ({"rank": 8} if optimizer == "galore" else {})
    welore = {"welore": {"train": "lrc", "rank_reduction": 0.9}}
    task = {**SETTINGS["task"], "model": "tiny"}
    recipe = Recipe.parse({**SETTINGS, "task": task, "methods": [welore], "optimizer": options, "steps": 4})
    whole = Loop(recipe)
    first = {name: parameter.detach().clone() for name, parameter in whole.model.named_parameters()}
    for _ in range(2):
        whole.step()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, whole.model, whole.state_dict(), recipe.to_dict())
    expected = [whole.step()["loss"] for _ in range(2)]

    resumed = Loop(recipe)
    resumed.resume(checkpoints.latest())

    assert [resumed.step()["loss"] for _ in range(2)] == expected
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.requires_grad or torch.equal(one, first[name])  # frozen: not a bit has moved


def test_mst_goes_with_inrank():
    expected = expected_losses(methods=[GROWING])

    _, found = losses(methods=[GROWING, MST])

    assert found == pytest.approx(expected, abs=1e-4)
