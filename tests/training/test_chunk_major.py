"""One optimizer step chunk by chunk, against the step of whole sequences."""

import copy
import gc

import pytest
import torch
from chunked_steps import LENGTH, built, compare_with_whole, in_chunks, require_slope_of_dropped_loss, tokens

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.memory.tracker import StorageTracker
from featherweight.nn.prefix_store import KeyValueStore
from featherweight.optim import AdamW, GaLoreAdamW, layerwise, param_groups
from featherweight.training import ChunkMajor, LayerMajor

ARCHITECTURES = ("llama", "mistral", "qwen3", "gpt2")


def compare(model, batch, chunk_tokens):
    """Require losses and gradients of whole sequences from steps in chunks."""
    compare_with_whole(in_chunks(ChunkMajor, chunk_tokens=chunk_tokens), model, batch)


SIZES = [*((name, 7) for name in ARCHITECTURES), ("llama", LENGTH)]
OTHER_SIZES = [(name, size) for name in ARCHITECTURES for size in (1, LENGTH) if (name, size) not in SIZES]


@pytest.mark.parametrize(
    ("name", "chunk_tokens"), [*SIZES, *(pytest.param(*one, marks=pytest.mark.slow) for one in OTHER_SIZES)]
)
def test_gradients_are_those_of_the_whole_sequence(name, chunk_tokens):
    # Mutations: sums that are not handed out, a chunk that is left out, weights that move before the last chunk.
    ids = tokens()
    compare(built(name), {"input_ids": ids, "labels": ids}, chunk_tokens)


def test_a_prompt_without_labels_still_learns_from_what_attends_to_it():
    ids = tokens()
    labels = ids.clone()
    labels[:, :-3] = -100  # the first chunks hold no label
    compare(built("mistral", tie_word_embeddings=True), {"input_ids": ids, "labels": labels}, 6)


def test_padding_and_packed_documents_are_kept():
    ids, mask = tokens(), torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, LENGTH - 9 :] = 0
    labels = ids.masked_fill(mask == 0, -100)
    compare(built("llama"), {"input_ids": ids, "labels": labels, "attention_mask": mask}, 4)
    ids = tokens(rows=1)
    position_ids = torch.cat([torch.arange(9), torch.arange(LENGTH - 9)])[None]
    compare(built("llama"), {"input_ids": ids, "labels": ids, "position_ids": position_ids}, 5)


def test_dropout_is_that_of_the_step_layer_by_layer_from_one_state_in_one_chunk():
    # One chunk draws in the same order in both; in more chunks the slope of the loss is that of a finite difference.
    model, ids = built("gpt2", resid_pdrop=0.3, embd_pdrop=0.2), tokens(1)
    batch = {"input_ids": ids, "labels": ids}
    losses = []
    for kind in (LayerMajor, ChunkMajor):
        torch.manual_seed(3)
        losses.append(float(kind(copy.deepcopy(model), chunk_tokens=LENGTH).step(batch)))
    assert losses[0] == losses[1]
    require_slope_of_dropped_loss(in_chunks(ChunkMajor, chunk_tokens=8), model, batch)


def trained(model, make, run, steps=4):
    model = copy.deepcopy(model)
    with layerwise(model, make(model)) as handle:
        for step in range(steps):
            ids = tokens(rows=2, seed=step)
            run(model, handle, {"input_ids": ids, "labels": ids})
        assert handle.steps == steps and not list(handle.held_tensors())
    return dict(model.named_parameters())


def whole_step(model, handle, batch):
    model(**batch).loss.backward()


def by_chunks(model, handle, batch):
    ChunkMajor(model, handle, chunk_tokens=8).step(batch)


@pytest.mark.parametrize("tied", [False, True])
def test_layerwise_adamw_trains_as_with_whole_sequences(tied):
    # Mutation: an update before the last chunk of the last row.
    model = built("llama", tie_word_embeddings=tied, initializer_range=0.05)
    expected = trained(model, lambda one: AdamW(one.parameters(), lr=1e-2), whole_step)
    found = trained(model, lambda one: AdamW(one.parameters(), lr=1e-2), by_chunks)
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-11)


def test_sums_of_galore_are_cores_and_int8_trains():
    model = built("llama", initializer_range=0.05).float()
    fw.apply(model, fw.Int8())
    optimizer = GaLoreAdamW(param_groups(model, rank=6, update_proj_gap=50), lr=2e-2)
    batch, held = {"input_ids": tokens(), "labels": tokens()}, []
    with layerwise(model, optimizer) as handle:

        def note(progress):
            held.append(sum(tensor.nbytes for parameter, tensor in handle.held_tensors() if parameter.ndim == 2))

        stream = ChunkMajor(model, handle, chunk_tokens=8, progress=note)
        losses = [float(stream.step(batch)) for _ in range(3)]
        held.clear()
        losses += [float(stream.step(batch)) for _ in range(5)]
    assert losses[-1] < 0.8 * losses[0]
    projected = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    whole = sum(4 * p.numel() for name, p in model.named_parameters() if name.split(".")[-2] in projected)
    rest = sum(4 * p.numel() for name, p in model.named_parameters() if p.ndim == 2) - whole
    assert max(held) < rest + 0.5 * whole  # cores, not gradients


def test_an_exception_leaves_no_keys_and_no_sums_behind():
    model, ids = built("llama"), tokens()
    batch = {"input_ids": ids, "labels": ids}
    before = copy.deepcopy(model.state_dict())
    with layerwise(model, AdamW(model.parameters(), lr=1e-3)) as handle:
        hook = model.model.layers[1].mlp.down_proj.weight.register_hook(lambda grad: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ChunkMajor(model, handle, chunk_tokens=8).step(batch)
        hook.remove()
        gc.collect()
        assert not [one for one in gc.get_objects() if type(one) is KeyValueStore and len(one)]
        assert not list(handle.held_tensors()) and "forward" not in vars(model.model.layers[0])
        assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
        with pytest.raises(ValueError, match="not this one"):
            ChunkMajor(model, handle, chunk_tokens=8).step(batch, judge=refuse)
        assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
        ChunkMajor(model, handle, chunk_tokens=8).step(batch)
    assert handle.steps == 1


def refuse(loss):
    raise ValueError("not this one")


def test_with_few_heads_of_keys_it_takes_less_for_a_token_than_layer_by_layer():
    # Formula, float32, K h = 4 and D = 32 in 6 layers: 16 K h of each layer and a boundary with its gradient here,
    # 4 D of each boundary and 16 K h of one layer there.
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 4, "num_hidden_layers": 6}
    model, kept = built("llama", **sizes).float(), {}
    for kind in (ChunkMajor, LayerMajor):
        peaks = []
        for length in (256, 512):
            ids = tokens(1, length)
            with StorageTracker(model) as tracker:
                kind(model, chunk_tokens=128).step({"input_ids": ids, "labels": ids})
            model.zero_grad()
            peaks.append(tracker.peak_bytes)
        kept[kind] = (peaks[1] - peaks[0]) / 256
    expected = {ChunkMajor: 6 * 16 * 4 + 2 * 4 * 32, LayerMajor: 7 * 4 * 32 + 16 * 4}
    for kind, by_token in kept.items():
        assert by_token == pytest.approx(expected[kind], rel=0.1), kept


def test_progress_goes_through_the_chunks_and_refusals_say_where_to_go():
    model, told, ids = built("llama"), [], tokens(1, 20)
    ChunkMajor(model, chunk_tokens=8, progress=told.append).step({"input_ids": ids, "labels": ids})
    shares = [one.share for one in told]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert [told[0].words, told[-1].words] == ["forward, chunk 1 of 3", "backward, chunk 1 of 3"]
    with pytest.raises(ConfigError, match="ChunkMajor: chunk_tokens=0 is not allowed"):
        ChunkMajor(model, chunk_tokens=0)
    fw.apply(model, fw.HostWeights())
    with pytest.raises(ConfigError, match=r"has fw.HostWeights; expected one process .*Use fw.training.LayerMajor"):
        ChunkMajor(model)
