"""One optimizer step layer by layer, against the step of whole sequences."""

import copy
import gc

import pytest
import torch
from chunked_steps import (
    ARCHITECTURES,
    LENGTH,
    built,
    compare_with_whole,
    gradients,
    in_chunks,
    require_equal,
    require_slope_of_dropped_loss,
    tokens,
)

import featherweight as fw
from featherweight.errors import ConfigError, DeviceError
from featherweight.memory.tracker import StorageTracker
from featherweight.methods.s2ft.method import S2FT
from featherweight.nn.host_tensors import HostTensors
from featherweight.nn.prefix_store import KeyValueStore
from featherweight.nn.weight_slots import WeightSlots, _Unit
from featherweight.optim import AdamW, GaLoreAdamW, QGaLoreAdamW, layerwise, param_groups
from featherweight.training import LayerMajor


@pytest.fixture
def in_float64(monkeypatch):
    """Keep what is in float64 in it where transformers goes down to float32: norms, softmax, routers, caps."""
    to_float, to, softmax = torch.Tensor.float, torch.Tensor.to, torch.nn.functional.softmax

    def stays(tensor):
        return tensor.dtype == torch.float64

    def cast(tensor, *args, **named):
        return tensor if stays(tensor) and args[:1] == (torch.float32,) else to(tensor, *args, **named)

    def weights(scores, *args, dtype=None, **named):
        return softmax(scores, *args, dtype=None if stays(scores) else dtype, **named)

    monkeypatch.setattr(torch.Tensor, "float", lambda one: one if stays(one) else to_float(one))
    monkeypatch.setattr(torch.Tensor, "to", cast)
    monkeypatch.setattr(torch.nn.functional, "softmax", weights)


def compare(model, batch, chunk_tokens, tolerance=1e-12, **options):
    """Require losses and gradients of whole sequences from steps in chunks."""
    compare_with_whole(in_chunks(LayerMajor, chunk_tokens=chunk_tokens, **options), model, batch, tolerance)


# ---- gradients are those of whole sequences


SIZES = [("llama", LENGTH), *((name, 7) for name in ARCHITECTURES)]
OTHER_SIZES = [(name, size) for name in ARCHITECTURES for size in (1, LENGTH) if (name, size) != ("llama", LENGTH)]


@pytest.mark.parametrize(
    ("name", "chunk_tokens"), [*SIZES, *(pytest.param(*one, marks=pytest.mark.slow) for one in OTHER_SIZES)]
)
def test_gradients_are_those_of_the_whole_sequence(in_float64, name, chunk_tokens):
    ids = tokens()
    compare(built(name), {"input_ids": ids, "labels": ids}, chunk_tokens)


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_gets_both_of_its_gradients(tied):
    ids = tokens()
    compare(built("llama", tie_word_embeddings=tied), {"input_ids": ids, "labels": ids}, 8)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_prompt_without_labels_still_learns_from_what_attends_to_it(name):
    ids = tokens()
    labels = ids.clone()
    labels[:, :-3] = -100  # the first chunks hold no label
    model = built(name)
    compare(model, {"input_ids": ids, "labels": labels}, 6)
    assert model.model.layers[0].self_attn.k_proj.weight.grad.norm() > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_seen_and_chunks_of_it_are_left_out(side):
    ids, mask = tokens(), torch.ones(2, LENGTH, dtype=torch.long)
    hidden = slice(0, 9) if side == "left" else slice(LENGTH - 9, LENGTH)
    mask[1, hidden] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[1, 9] = -100  # what padding predicts is whatever the implementation makes of rows that see nothing
    model = built("llama")
    compare(model, {"input_ids": ids, "labels": labels, "attention_mask": mask}, 4)


def test_documents_of_a_packed_row_do_not_see_each_other():
    ids = tokens(rows=1)
    position_ids = torch.cat([torch.arange(9), torch.arange(LENGTH - 9)])[None]
    labels = ids.clone()
    labels[:, 9] = -100
    compare(built("mistral"), {"input_ids": ids, "labels": labels, "position_ids": position_ids}, 5)


def test_inputs_on_the_host_change_nothing():
    ids = tokens()
    compare(built("llama"), {"input_ids": ids, "labels": ids}, 8, inputs="host")


@pytest.mark.parametrize("inputs", ["device", "host"])
def test_attention_that_is_kept_changes_no_bit(inputs):
    # Also where MsT repeats a part of the layer once more.
    results, ids = {}, tokens()
    for attention in ("repeat", "keep"):
        model = built("mistral").float()
        fw.apply(model, fw.MsT(chunk_size=4, head_chunk_size=4, checkpoint=True))
        LayerMajor(model, chunk_tokens=8, inputs=inputs, attention=attention).step({"input_ids": ids, "labels": ids})
        results[attention] = gradients(model)
    assert all(torch.equal(one, results["repeat"][name]) for name, one in results["keep"].items())


@pytest.mark.parametrize("options", [{}, {"tokenwise": True}, {"checkpoint": "offload"}])
def test_mst_inside_of_the_parts_changes_nothing(options):
    model, ids = built("llama").float(), tokens()
    whole = copy.deepcopy(model)
    whole(input_ids=ids, labels=ids).loss.backward()
    fw.apply(model, fw.MsT(chunk_size=4, head_chunk_size=4, **options))
    LayerMajor(model, chunk_tokens=12).step({"input_ids": ids, "labels": ids})
    require_equal(gradients(model), gradients(whole), 5e-6)


def test_dropout_is_repeated_as_it_was_drawn():
    model, ids = built("gpt2", resid_pdrop=0.3, embd_pdrop=0.2), tokens()
    batch = {"input_ids": ids, "labels": ids}
    require_slope_of_dropped_loss(in_chunks(LayerMajor, chunk_tokens=8), model, batch)


# ---- updates


def trained(model, build_optimizer, run, steps=5):
    """Train a copy with a layer-wise optimizer and return it with its losses."""
    model = copy.deepcopy(model)
    optimizer = build_optimizer(model)
    losses = []
    # Unclipped: the norm of a sum of cores is an estimate, with other random numbers than that of one pass.
    with layerwise(model, optimizer) as handle:
        for step in range(steps):
            ids = tokens(rows=2, seed=step)
            losses.append(float(run(model, handle, {"input_ids": ids, "labels": ids})))
    return dict(model.named_parameters()), losses, handle


def whole_step(model, handle, batch):
    loss = model(**batch).loss
    loss.backward()
    return loss.detach()


def by_layers(chunk_tokens):
    return lambda model, handle, batch: LayerMajor(model, handle, chunk_tokens=chunk_tokens).step(batch)


OPTIMIZERS = {
    "adamw": lambda model: AdamW(model.parameters(), lr=1e-2),
    "galore": lambda model: GaLoreAdamW(param_groups(model, rank=6, update_proj_gap=3), lr=1e-2),
    "galore 8-bit": lambda model: GaLoreAdamW(param_groups(model, rank=6, update_proj_gap=3), lr=1e-2, state_bits=8),
}


@pytest.mark.parametrize(
    ("name", "tied"), [("adamw", True), ("galore", False), ("galore", True), ("galore 8-bit", False)]
)
def test_layerwise_training_over_refreshes_is_that_of_whole_sequences(name, tied):
    model = built("llama", tie_word_embeddings=tied, initializer_range=0.05)
    steps = 7 if name == "galore" else 4  # three refreshes, or two
    expected, losses, _ = trained(model, OPTIMIZERS[name], whole_step, steps)
    found, found_losses, handle = trained(model, OPTIMIZERS[name], by_layers(8), steps)
    assert handle.steps == steps
    torch.testing.assert_close(torch.tensor(found_losses), torch.tensor(losses), rtol=1e-6, atol=0)
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-11)


def test_sums_of_cores_over_chunks_are_those_of_gradients_that_exist():
    # Mutation: the core of a chunk that is left out, or counted twice. Bases come from a seed, so none is fitted.
    results, ids = {}, tokens()
    for cores in (False, True):
        model = built("llama")
        if cores:
            fw.apply(model, fw.CoreGradient(prefer="memory"))
        groups = param_groups(model, rank=6, update_proj_gap=50, basis_method="random")
        with layerwise(model, GaLoreAdamW(groups, lr=1e-2)) as handle:
            for _ in range(3):
                LayerMajor(model, handle, chunk_tokens=5).step({"input_ids": ids, "labels": ids})
        results[cores] = model.state_dict()
    for name, weight in results[False].items():
        torch.testing.assert_close(results[True][name], weight, rtol=0, atol=1e-11)


def test_one_chunk_of_one_row_makes_the_step_of_an_ordinary_pass():
    model = built("llama").float()

    def first_row(run):
        return lambda model, handle, batch: run(model, handle, {k: v[:1] for k, v in batch.items()})

    expected, _, _ = trained(model, OPTIMIZERS["galore"], first_row(whole_step))
    found, _, _ = trained(model, OPTIMIZERS["galore"], first_row(by_layers(LENGTH)))
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=2e-5)


def test_int8_weights_with_core_gradients_train_layer_by_layer():
    model = built("llama", initializer_range=0.05).float()
    fw.apply(model, fw.Int8())
    fw.apply(model, fw.CoreGradient(prefer="memory"))
    optimizer = QGaLoreAdamW(param_groups(model, rank=6, update_proj_gap=4), lr=2e-2)
    batch = {"input_ids": tokens(), "labels": tokens()}
    with layerwise(model, optimizer) as handle:
        stream = LayerMajor(model, handle, chunk_tokens=8)
        losses = [float(stream.step(batch)) for _ in range(8)]
        assert not list(handle.held_tensors())
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is None for p in model.parameters())


def test_steps_of_different_sizes_are_one_step_each():
    model = built("llama")
    optimizer = AdamW(model.parameters(), lr=1e-3)
    with layerwise(model, optimizer) as handle:
        stream = LayerMajor(model, handle, chunk_tokens=5)
        for rows, length in ((1, 4), (3, 17), (2, 5)):
            ids = tokens(rows, length)
            stream.step({"input_ids": ids, "labels": ids})
    assert handle.steps == 3


def test_an_exception_leaves_nothing_behind():
    model, ids = built("llama"), tokens()
    batch = {"input_ids": ids, "labels": ids}
    optimizer = AdamW(model.parameters(), lr=1e-3)
    implementation = model.config._attn_implementation
    with layerwise(model, optimizer) as handle:
        stream = LayerMajor(model, handle, chunk_tokens=8)
        hook = model.model.layers[1].mlp.down_proj.weight.register_hook(lambda grad: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stream.step(batch)
        hook.remove()
        assert model.config._attn_implementation == implementation
        assert not list(handle.held_tensors())
        gc.collect()
        assert not [one for one in gc.get_objects() if type(one) is KeyValueStore and len(one)]
        assert "forward" not in vars(model.model.layers[0])
        model(**batch).loss.backward()  # an ordinary pass works again
        assert handle.steps == 1
        stream.step(batch)
    assert handle.steps == 2


def test_memory_of_a_step_grows_by_what_is_kept_for_a_token_alone():
    # Layer inputs (5 boundaries of 32), their gradient, keys, values and sums of one layer: about 1 KiB in float32.
    model = built("llama").float()
    peaks = {}
    for length in (128, 256):
        ids = tokens(1, length)
        with StorageTracker(model) as tracker:
            LayerMajor(model, chunk_tokens=16).step({"input_ids": ids, "labels": ids})
        model.zero_grad()
        peaks[length] = tracker.peak_bytes
    by_token = (peaks[256] - peaks[128]) / 128
    kept = 4 * (5 * 32 + 2 * 32 + 2 * 2 * 16 + 2 * 2 * 16)
    assert by_token < 1.5 * kept


def test_in_autocast_it_learns_as_one_pass_does():
    model, ids = built("llama", initializer_range=0.05).float(), tokens()
    batch = {"input_ids": ids, "labels": ids}
    with torch.autocast("cpu", torch.bfloat16):
        whole = copy.deepcopy(model)
        whole(**batch).loss.backward()
        LayerMajor(model, chunk_tokens=8).step(batch)
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        assert float((one.grad - other.grad).norm()) < 0.05 * float(other.grad.norm())  # bfloat16 has three digits


# ---- weights on the host


@pytest.fixture
def poisoned(monkeypatch):
    """Fill each slot with NaN as soon as its layer has had its turn, and what embedding and head have left."""
    monkeypatch.setattr(WeightSlots, "poison", True)
    monkeypatch.setattr(HostTensors, "poison", True)


def changed_for(model, case):
    """Prepare a model as a case wants it and return its optimizer."""
    if "lora" in case or case == "s2ft":
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        if case == "4-bit, lora":
            fw.apply(model, fw.Base4bit())
        fw.apply(model, S2FT() if case == "s2ft" else fw.LoRA(r=4))
        return AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    if case == "mst":
        fw.apply(model, fw.MsT(chunk_size=4, head_chunk_size=4))
    if case.startswith("q-galore"):
        fw.apply(model, fw.Int8())
    if case.endswith("cores"):
        fw.apply(model, fw.CoreGradient(prefer="memory"))
    if case == "bf16":
        model.bfloat16()
    kind = {"adamw": AdamW, "bf16": GaLoreAdamW, "q-galore, cores": QGaLoreAdamW}.get(case, GaLoreAdamW)
    if case == "adamw":
        return AdamW(model.parameters(), lr=1e-2)
    bits = {"state_bits": 8} if case == "galore 8-bit" else {}
    return kind(param_groups(model, rank=6, update_proj_gap=3), lr=1e-2, **bits)


QUICK = [("adamw", 1), ("galore 8-bit", 2), ("q-galore, cores", 2), ("lora", 2)]
FROZEN = [("s2ft", 2), ("4-bit, lora", 2)]
LONGER = [*FROZEN, ("adamw", 2), ("galore", 2), ("galore, cores", 2), ("bf16", 2), ("mst", 2), ("q-galore, cores", 1)]


@pytest.mark.parametrize(("case", "slots"), [*QUICK, *(pytest.param(*one, marks=pytest.mark.slow) for one in LONGER)])
def test_weights_from_the_host_train_bit_by_bit_as_those_of_the_device(poisoned, case, slots):
    # Mutation: a slot that is read after its turn, a weight that is not written back, a layer that is bound late.
    base, results = built("llama", initializer_range=0.05).float(), {}
    for place in ("device", "host"):
        model = copy.deepcopy(base)
        torch.manual_seed(0)  # of new adapters
        optimizer = changed_for(model, case)
        with layerwise(model, optimizer, max_grad_norm=1.0) as handle:
            stream = LayerMajor(model, handle, chunk_tokens=9, weights=place, slots=slots)
            losses, norms = [], []
            for step in range(3 if (case, slots) in QUICK else 7):
                ids = tokens(rows=2, seed=step)
                losses.append(float(stream.step({"input_ids": ids, "labels": ids})))
                norms.append(handle.grad_norm)
        results[place] = losses, norms, {name: one.clone() for name, one in model.state_dict().items()}
    assert results["host"][:2] == results["device"][:2]
    for name, weight in results["device"][2].items():
        assert torch.equal(results["host"][2][name], weight), name


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_weights_are_copied_in_twice_but_for_the_turn_and_out_once(slots):
    model = built("llama")
    for parameter in model.model.layers[1].mlp.parameters():
        parameter.requires_grad_(False)  # what is frozen is not copied back
    with layerwise(model, AdamW([p for p in model.parameters() if p.requires_grad])) as handle:
        stream = LayerMajor(model, handle, chunk_tokens=6, weights="host", slots=slots)
        found, ids = stream.layer_weights.slots, tokens()
        for _ in range(2):
            stream.step({"input_ids": ids, "labels": ids})
            assert not found.is_open  # no slot outlives its step
    layers = [sum(-(-p.nbytes // 64) * 64 for p in layer.parameters()) for layer in model.model.layers]
    frozen = sum(-(-p.nbytes // 64) * 64 for p in model.model.layers[1].mlp.parameters())
    assert found.read_bytes == 2 * (2 * sum(layers) - sum(layers[-slots:]))
    assert found.written_bytes == 2 * (sum(layers) - frozen)
    assert found.traffic_bytes() == (found.read_bytes // 2, found.written_bytes // 2)


def test_an_exception_and_an_evaluation_leave_all_weights_on_the_host(poisoned):
    model, ids = built("llama"), tokens()
    with layerwise(model, AdamW(model.parameters(), lr=1e-3)) as handle:
        stream = LayerMajor(model, handle, chunk_tokens=8, weights="host")
        hook = model.model.layers[1].mlp.down_proj.weight.register_hook(lambda grad: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stream.step({"input_ids": ids, "labels": ids})
        hook.remove()
        assert not stream.layer_weights.slots.is_open
        assert all(p.isfinite().all() for p in model.parameters())
        before = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss
        assert not stream.layer_weights.slots.is_open
        assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
        assert float(stream.step({"input_ids": ids, "labels": ids})) == pytest.approx(float(loss), rel=1e-6)
        with pytest.raises(ConfigError, match=r"called for training outside of step\(\); expected step\(batch\)"):
            model(input_ids=ids, labels=ids).loss.backward()
        model.load_state_dict(before)  # weights that are loaded between steps count
        with torch.no_grad():
            assert float(model(input_ids=ids, labels=ids).loss) == float(loss)


def test_weights_on_the_host_are_refused_where_no_update_could_reach_them():
    model = built("llama")
    with pytest.raises(ConfigError, match="weights='host' without layer-wise updates; expected a handle"):
        LayerMajor(model, weights="host")
    with layerwise(model, AdamW(model.parameters()), max_grad_norm=1.0, clip="projected") as handle:
        with pytest.raises(ConfigError, match="clip='projected' updates all weights after the last gradient"):
            LayerMajor(model, handle, weights="host")
    with layerwise(model, AdamW(model.parameters())) as handle:
        with pytest.raises(ConfigError, match="slots=0 is not allowed; expected a whole number >= 1"):
            LayerMajor(model, handle, weights="host", slots=0)


# ---- progress, refusals before anything moves


def test_a_loss_that_its_judge_refuses_moves_no_weight():
    # Mutation: a judge that is asked after the head's update.
    model, ids = built("llama"), tokens()
    before = copy.deepcopy(model.state_dict())
    seen = []

    def refuse(loss):
        seen.append(float(loss))
        raise ValueError("not this one")

    with layerwise(model, AdamW(model.parameters(), lr=1e-2)) as handle:
        with pytest.raises(ValueError, match="not this one"):
            LayerMajor(model, handle, chunk_tokens=8).step({"input_ids": ids, "labels": ids}, judge=refuse)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert seen[0] == pytest.approx(float(model(input_ids=ids, labels=ids).loss.detach()), rel=1e-6)


def test_progress_goes_through_layers_and_chunks_to_the_end():
    model, told = built("llama"), []
    batches = [{"input_ids": ids, "labels": ids} for ids in (tokens(1, 20), tokens(2, 5))]  # rows of two lengths
    loss = LayerMajor(model, chunk_tokens=8, progress=told.append).step(batches)
    shares = [one.share for one in told]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert told[0].words == "forward, layer 1 of 4, chunk 1 of 3"
    assert told[-1].words == "backward, layer 1 of 4, chunk 1 of 1"
    whole = [model(**one, use_cache=False).loss.detach() for one in batches]
    counts = [19, 8]
    assert float(loss) == pytest.approx(sum(map(lambda a, b: float(a) * b, whole, counts)) / 27, rel=1e-6)


def test_layer_inputs_beyond_the_memory_of_the_host_are_refused_before_the_step(monkeypatch):
    from featherweight.nn import offload

    monkeypatch.setattr(offload, "available_host_bytes", lambda: 10_000)
    model, ids = built("llama"), tokens()
    with pytest.raises(DeviceError, match="layer inputs of 46 tokens take host memory=.*Each token takes"):
        LayerMajor(model, chunk_tokens=8, inputs="host").step({"input_ids": ids, "labels": ids})


def test_pinned_memory_that_the_system_refuses_is_told_in_a_sentence():
    # This machine has no GPU, so torch refuses to pin: the real refusal.
    if torch.cuda.is_available():
        pytest.skip("a GPU is there, and pins")
    with pytest.raises(DeviceError, match="pinned memory=.*was refused by the system.*; expected memory"):
        _Unit([torch.zeros(4)], [], pinned=True)


# ---- refusals


def test_wrong_input_is_named_before_anything_is_updated():
    model, ids = built("llama"), tokens()
    stream = LayerMajor(model, chunk_tokens=8)
    cases = {
        "pixel_values is no argument": {"input_ids": ids, "labels": ids, "pixel_values": ids},
        "labels is missing": {"input_ids": ids},
        "labels hold nothing but -100": {"input_ids": ids, "labels": torch.full_like(ids, -100)},
        r"attention_mask has shape=\(2, 1, 23, 23\)": {
            "input_ids": ids,
            "labels": ids,
            "attention_mask": torch.ones(2, 1, LENGTH, LENGTH),
        },
    }
    for message, batch in cases.items():
        with pytest.raises(ConfigError, match=message):
            stream.step(batch)
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ConfigError, match="chunk_tokens=0"):
        LayerMajor(model, chunk_tokens=0)
    with pytest.raises(ConfigError, match="inputs='disk' is unknown"):
        LayerMajor(model, inputs="disk")


def test_a_handle_that_counts_micro_batches_is_refused():
    model = built("llama")
    with layerwise(model, AdamW(model.parameters()), accumulation_steps=2) as handle:
        with pytest.raises(ConfigError, match="accumulation_steps=2.*expected 1"):
            LayerMajor(model, handle)


def test_attention_dropout_is_refused():
    model, ids = built("gpt2", attn_pdrop=0.1), tokens()
    with pytest.raises(ConfigError, match=r"attention dropout=0\.1"):
        LayerMajor(model, chunk_tokens=8).step({"input_ids": ids, "labels": ids})
    assert all(p.grad is None for p in model.parameters())


def test_frozen_embeddings_and_lora_train_what_is_left():
    model, ids = built("llama"), tokens()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(True)
    compare(model, {"input_ids": ids, "labels": ids}, 8)
