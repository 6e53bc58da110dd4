"""Compression of a source into a folder: what is no trained model, and places that cannot be written."""

import runpy
from pathlib import Path

import pytest

from featherweight.errors import ConfigError, FeatherweightError
from featherweight.methods.welore import WeLore
from featherweight.text.compress import compress

MODELS = runpy.run_path(str(Path(__file__).parents[1] / "reference" / "causal_models.py"))
OPTIONS = WeLore(rank_reduction=0.5, min_dim=8)


def test_a_configuration_is_no_model_to_compress(tmp_path):
    MODELS["causal_model"]("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(
        ConfigError, match=r"is a configuration without weights; expected a trained model\. Give .*model"
    ):
        compress(str(tmp_path / "model" / "config.json"), tmp_path / "small", OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_shape_is_compressed_and_called_random(tmp_path):
    report = compress("tiny", tmp_path / "small", OPTIONS)
    assert "random" in report.section("Source").facts["weights"]


@pytest.mark.parametrize("evaluate", [None, "english"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(evaluate, tmp_path):
    MODELS["causal_model"]("llama").save_pretrained(tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="out=.*small cannot be written") as caught:
        compress(str(tmp_path / "model"), tmp_path / "file" / "small", OPTIONS, evaluate=evaluate)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_whose_configuration_is_damaged_is_one_sentence(tmp_path):
    MODELS["causal_model"]("llama").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(FeatherweightError, match=r"config\.json cannot be read") as caught:
        compress(str(tmp_path / "model"), tmp_path / "small", OPTIONS)
    assert len(str(caught.value).splitlines()) == 1
