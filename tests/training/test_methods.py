import pytest
import torch

import featherweight as fw
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe

SETTINGS = {
    "task": {"name": "text", "model": "tiny", "seq_len": 64, "max_train_tokens": 4000, "max_held_out_tokens": 500},
    "optimizer": {"name": "adamw", "lr": 1e-3},
    "steps": 3,
    "micro_batch_size": 2,
    "accumulation_steps": 2,
    "memory_steps": [],
}
MST = {"mst": {"chunk_size": 16, "head_chunk_size": 16, "head_in_eval": True}}


def losses(**changes):
    loop = Loop(Recipe.parse({**SETTINGS, **changes}))
    return loop, [loop.step()["loss"] for _ in range(3)] + [loop.evaluate()["held_out_loss"]]


def test_a_recipe_with_mst_learns_the_same():
    _, expected = losses()

    loop, found = losses(methods=[MST])

    # float32 sums in another order, three updates; measured: 1e-7.
    assert found == pytest.approx(expected, abs=1e-5)
    assert [type(method) for method in loop.methods] == [fw.MsT]
    batch = next(loop.task.batches("train", micro_batch_size=1, seed=0))
    assert loop.model(**batch).logits is None


@pytest.mark.parametrize("checkpoint", [True, "selective", "offload"])
def test_mst_goes_with_galore_bf16_weights_and_checkpointing(checkpoint):
    settings = {"optimizer": {"name": "galore", "lr": 1e-3, "rank": 8}, "precision": "bf16"}
    _, expected = losses(**settings)

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
        _, expected = losses(**settings)

        loop, found = losses(**settings, methods=[{"mst": {**MST["mst"], "checkpoint": checkpoint}}])

        assert loop.layerwise.steps == 3
        assert all(int(state["step"].max()) == 3 for state in loop.optimizer.state.values())
        # float32 sums in another order; 8-bit moments round some of it up.
        assert found == pytest.approx(expected, abs=1e-3 if optimizer == "galore_8bit" else 1e-4)


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
    _, expected = losses(**settings)
    chunked = {"mst": {**MST["mst"], "checkpoint": "offload"}}

    loop, found = losses(**settings, methods=["core_gradient", chunked])

    rows = loop.optimizer.report().section("Core gradients").rows
    assert len(rows) == 7 * 4 and all("core" in row[1] for row in rows)
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
    _, expected = losses(**settings, methods=[shared])

    loop, found = losses(**settings, methods=[shared, chunked])

    rows = [row[1] for row in loop.optimizer.report().section("Core gradients").rows]
    assert sum("of 3 weights" in row for row in rows) == 3 * 4 and sum("of 2 weights" in row for row in rows) == 2 * 4
    assert found == pytest.approx(expected, abs=0.02) and found[2] < found[0]


def test_core_gradients_without_layerwise_updates_are_refused():
    with pytest.raises(fw.errors.ConfigError, match="layerwise=true"):
        losses(optimizer={**Q_GALORE, "layerwise": False}, methods=["core_gradient"])
