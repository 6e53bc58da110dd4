import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import featherweight as fw
from featherweight.errors import CheckpointError, ConfigError, FeatherweightError
from featherweight.methods.welore import stream
from featherweight.methods.welore.stream import compress_folder

MODELS = runpy.run_path(str(Path(__file__).parents[2] / "reference" / "causal_models.py"))
causal_model, batch = MODELS["causal_model"], MODELS["batch"]
OPTIONS = {"rank_reduction": 0.5, "min_dim": 8}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=batch()["input_ids"]).logits


def files(folder):
    return {path.name: path.stat().st_size for path in Path(folder).iterdir()}


@pytest.mark.parametrize("name", ["llama", "llama with biases", "gpt2", "smollm", "phi3"])
@pytest.mark.parametrize("storage", ["auto", "factored", "dense"])
def test_from_file_to_file_gives_what_the_model_in_memory_gives(name, storage, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "SHARD_BYTES", 20_000)
    model = causal_model(name).eval()
    model.save_pretrained(tmp_path / "model", max_shard_size="30KB")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    calls = []

    options = fw.WeLore(**OPTIONS, storage=storage)
    report = compress_folder(tmp_path / "model", tmp_path / "small", options, progress=lambda *a: calls.append(a))

    expected = fw.apply(model, options)
    assert report.section("Totals") == expected.section("Totals")
    assert report.section("Matrices") == expected.section("Matrices")
    load = AutoModelForCausalLM.from_pretrained if storage == "dense" else fw.load_low_rank
    assert torch.equal(logits(load(tmp_path / "small")), logits(model))
    names = files(tmp_path / "small")
    assert {"tokenizer.json", "report.html", "report.json", "config.json"} <= names.keys()
    weights = sum(size for file, size in names.items() if file.endswith(".safetensors"))
    dense = sum(size for file, size in files(tmp_path / "model").items() if file.endswith(".safetensors"))
    if storage == "auto":
        assert weights < dense  # headers included
    tensors = {}
    for path in (tmp_path / "small").glob("*.safetensors"):
        tensors |= load_file(path)
    facts = report.section("Totals").facts
    assert facts["parameters after"] == sum(t.numel() for t in tensors.values() if t.is_floating_point())
    assert facts["bytes after"] == sum(t.nbytes for t in tensors.values())
    assert calls[-1][1] == calls[-1][2] and {call[0] for call in calls} == {"reading spectra", "writing tensors"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "small"]


def test_an_interrupted_run_goes_on_and_ends_with_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "SHARD_BYTES", 10_000)
    causal_model("llama").save_pretrained(tmp_path / "model")
    compress_folder(tmp_path / "model", tmp_path / "whole", fw.WeLore(**OPTIONS))

    class Stop(Exception):
        pass

    counts = []

    def stop_at(kind, number):
        def progress(what, done, total):
            counts.append((what, done))
            if (what, done) == (kind, number):
                raise Stop

        return progress

    for kind, number in (("reading spectra", 5), ("writing tensors", 9), ("writing tensors", 17)):
        with pytest.raises(Stop):
            compress_folder(
                tmp_path / "model", tmp_path / "parts", fw.WeLore(**OPTIONS), progress=stop_at(kind, number)
            )
        assert not (tmp_path / "parts").exists()
    seen = len(counts)
    computed = []
    original = stream.singular_values
    monkeypatch.setattr(stream, "singular_values", lambda *a: computed.append(a) or original(*a))
    compress_folder(tmp_path / "model", tmp_path / "parts", fw.WeLore(**OPTIONS), progress=lambda *a: counts.append(a))
    assert not computed  # the spectra are kept
    assert min(done for what, done, *_ in counts[seen:] if what == "writing tensors") > 9  # and the shards
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes(), path.name


def test_other_options_keep_the_spectra_and_other_weights_do_not(tmp_path, monkeypatch):
    model = causal_model("llama")
    model.save_pretrained(tmp_path / "model")
    computed = []
    original = stream.singular_values
    monkeypatch.setattr(stream, "singular_values", lambda *a: computed.append(a) or original(*a))
    plan = compress_folder(tmp_path / "model", tmp_path / "small", fw.WeLore(**OPTIONS), plan_only=True)
    count = len(computed)
    assert count == 14 and plan.section("Totals").facts["rank reduction"] == pytest.approx(0.5, abs=0.01)
    assert not (tmp_path / "small").exists()
    compress_folder(tmp_path / "model", tmp_path / "small", fw.WeLore(rank_reduction=0.3, min_dim=8), plan_only=True)
    assert len(computed) == count
    model.model.layers[0].mlp.up_proj.weight.data.mul_(2)
    model.save_pretrained(tmp_path / "model")
    compress_folder(tmp_path / "model", tmp_path / "small", fw.WeLore(**OPTIONS))
    assert len(computed) == 2 * count


def test_what_cannot_be_done_is_refused(tmp_path):
    causal_model("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="out=.* holds files already"):
        compress_folder(tmp_path / "model", tmp_path / "model", fw.WeLore(**OPTIONS))
    with pytest.raises(ConfigError, match="method=whitened"):
        compress_folder(tmp_path / "model", tmp_path / "small", fw.WeLore(method="whitened", **OPTIONS))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"has no model\.safetensors"):
        compress_folder(tmp_path / "empty", tmp_path / "small", fw.WeLore(**OPTIONS))


def test_bfloat16_files_stay_bfloat16(tmp_path):
    causal_model("llama").bfloat16().save_pretrained(tmp_path / "model")
    compress_folder(tmp_path / "model", tmp_path / "small", fw.WeLore(**OPTIONS))
    model = fw.load_low_rank(tmp_path / "small")
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["low_rank_config"]["rank_pattern"]


DAMAGES = {
    "missing shard": (CheckpointError, r"model-00002.* is missing"),
    "cut shard": (CheckpointError, r"model-00001.* cannot be read"),
    "cut index": (CheckpointError, r"index\.json cannot be read"),
    "shard without a tensor": (CheckpointError, "lacks 'lm_head.weight', which the index says is there"),
    "no model_type": (ConfigError, "model_type is missing"),
    "unknown model_type": (ConfigError, "cannot be built"),
    "cut config": (CheckpointError, r"config\.json cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_sentence_and_leaves_nothing_behind(damage, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "small"
    causal_model("llama").save_pretrained(folder, max_shard_size="50KB")
    index, config = folder / "model.safetensors.index.json", folder / "config.json"
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    if damage == "missing shard":
        second.unlink()
    elif damage == "cut shard":
        first.write_bytes(first.read_bytes()[:-40])
    elif damage == "cut index":
        index.write_text(index.read_text()[:-40])
    elif damage == "shard without a tensor":
        settings = json.loads(index.read_text())
        settings["weight_map"]["lm_head.weight"] = next(
            file for file in settings["weight_map"].values() if file != settings["weight_map"]["lm_head.weight"]
        )
        index.write_text(json.dumps(settings))
    elif damage == "cut config":
        config.write_text("{")
    else:
        settings = json.loads(config.read_text())
        settings["model_type"] = "llamma"
        if damage == "no model_type":
            del settings["model_type"]
        config.write_text(json.dumps(settings))
    kind, message = DAMAGES[damage]

    with pytest.raises(kind, match=message) as caught:
        compress_folder(folder, out, fw.WeLore(**OPTIONS))

    assert len(str(caught.value).splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    causal_model("llama").save_pretrained(tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatherweightError, match="cannot be written") as caught:
        compress_folder(tmp_path / "model", tmp_path / "file" / "small", fw.WeLore(**OPTIONS))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_space(tmp_path):
    causal_model("llama").save_pretrained(tmp_path / "model")
    # A limit of the size of files acts like a disk that is full in the middle of a file.
    program = (
        "import resource, sys, featherweight as fw\n"
        "from featherweight.methods.welore.stream import compress_folder\n"
        f"options = fw.WeLore(**{OPTIONS!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        f"compress_folder({str(tmp_path / 'model')!r}, {str(tmp_path / 'small')!r}, options)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)

    assert "CheckpointError: compress: folder=" in done.stderr and "cannot be written" in done.stderr, done.stderr
    assert not (tmp_path / "small").exists()
    assert not list((tmp_path / ".small.partial").rglob("*.tmp"))
    compress_folder(tmp_path / "model", tmp_path / "small", fw.WeLore(**OPTIONS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "small"]
    assert logits(fw.load_low_rank(tmp_path / "small")).isfinite().all()
