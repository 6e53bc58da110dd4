"""`fw adapter`: each command on a real adapter of a small model."""

import json

import peft
import pytest
import torch

import featherweight as fw
from featherweight.cli import run
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.models import load_model, load_tokenizer, save_model_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model, and two adapters of it with values."""
    root = tmp_path_factory.mktemp("adapters")
    save_model_folder(load_model("tiny"), load_tokenizer("tiny"), root / "base")
    for seed in (0, 1):
        base = load_model(str(root / "base"))
        model = peft.get_peft_model(base, fw.S2FTConfig(num_channels=8, seed=seed))
        generator = torch.Generator().manual_seed(seed)
        for layer in s2ft_layers(model).values():
            layer.s2ft_delta["default"].data.normal_(generator=generator)
        model.save_pretrained(root / f"a{seed}")
    return root


def result(arguments, capsys):
    assert run([str(one) for one in arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_inspect_tells_channels_and_parameters(folders, capsys):
    found = result(["adapter", "inspect", folders / "a0", "--json"], capsys)
    assert set(found["channels"].values()) == {8}
    assert run(["adapter", "inspect", str(folders / "a0")]) == 0
    text = capsys.readouterr().out
    assert "trained parameters" in text and "down_proj" in text


def test_merge_diff_and_inspect_go_in_a_circle(folders, tmp_path, capsys):
    base, merged = folders / "base", tmp_path / "merged"
    result(["adapter", "merge", folders / "a0", "--base", base, "--out", merged, "--json"], capsys)
    found = result(["adapter", "diff", base, merged, "--out", tmp_path / "again", "--json"], capsys)

    first, again = (fw.s2ft.Adapter.load(folder) for folder in (folders / "a0", tmp_path / "again"))
    assert found["parameters"] == first.parameters
    for name, change in first.modules.items():
        assert torch.equal(change.indices, again.modules[name].indices)
        # What was added is known up to the rounding of the sum.
        torch.testing.assert_close(change.delta, again.modules[name].delta, rtol=1e-5, atol=1e-6)


def test_fuse_adds_and_export_writes_lora(folders, tmp_path, capsys):
    both = tmp_path / "both"
    result(["adapter", "fuse", folders / "a0", folders / "a1", "--weights", "1,-0.5", "--out", both, "--json"], capsys)
    found = result(["adapter", "export", both, "--out", tmp_path / "lora", "--json"], capsys)

    assert found["largest rank"] == 16 and found["vLLM max_lora_rank"] == 16
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    bounded = result(["adapter", "export", both, "--out", tmp_path / "low", "--max-rank", "2", "--json"], capsys)
    assert 0 < bounded["largest relative error"] < 1


def test_fuse_counts_heads_as_changes_of_the_base_that_is_given(folders, tmp_path, capsys):
    base = load_model(str(folders / "base"))
    for seed in (0, 1):
        model = peft.get_peft_model(
            load_model(str(folders / "base")), fw.S2FTConfig(num_channels=8, seed=seed, modules_to_save=["lm_head"])
        )
        model.get_output_embeddings().modules_to_save["default"].weight.data.add_(seed + 1)
        model.save_pretrained(tmp_path / f"h{seed}")
    words = ["adapter", "fuse", tmp_path / "h0", tmp_path / "h1", "--out", tmp_path / "both"]
    assert run([str(one) for one in words]) == 2
    assert "Give base=, or weights whose sum is 1" in capsys.readouterr().err
    result([*words, "--base", folders / "base", "--json"], capsys)
    (head,) = fw.s2ft.Adapter.load(tmp_path / "both").extra.values()
    torch.testing.assert_close(head, base.get_output_embeddings().weight + 3)


def test_bench_prints_times(folders, capsys):
    assert run(["adapter", "bench", str(folders / "a0")]) == 0
    assert "LoRA merge (ms)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "nowhere is not there"),
        (["fuse", "{a0}", "{a1}", "--weights", "1,x", "--out", "o"], "are no numbers"),
        (["fuse", "{a0}", "--weights", "1,2", "--out", "o"], "do not fit 1 adapters"),
    ],
)
def test_mistakes_are_one_sentence(folders, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    names = {f"a{n}": folders / f"a{n}" for n in (0, 1)}
    assert run(["adapter", *(one.format(**names) for one in arguments)]) in (1, 2)
    # Lines may be wrapped.
    assert message in " ".join(capsys.readouterr().err.split())
