import pytest
from tiny_models import SMALL_LLAMA, same_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from featherweight.errors import ConfigError
from featherweight.models import (
    load_model,
    save_model_folder,
)
from featherweight.models.tokenizer import byte_tokenizer


def test_saved_folder_opens_with_transformers_alone_and_replaces_an_older_model(tmp_path):
    folder = tmp_path / "deep" / "model"
    save_model_folder(load_model(SMALL_LLAMA, seed=1), byte_tokenizer(), folder)
    (folder / "stale.safetensors").write_bytes(b"")
    model = load_model(SMALL_LLAMA, seed=2)
    save_model_folder(model, byte_tokenizer(), folder)
    assert same_weights(AutoModelForCausalLM.from_pretrained(folder), model)
    assert AutoTokenizer.from_pretrained(folder).encode("né") == list("né".encode())
    assert not (folder / "stale.safetensors").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds something else than a model"):
        save_model_folder(load_model(SMALL_LLAMA), byte_tokenizer(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        save_model_folder(load_model(SMALL_LLAMA), byte_tokenizer(), tmp_path / "file" / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "thesis.tex"]


def test_failed_save_keeps_the_older_model_and_leaves_nothing_behind(tmp_path):
    class FullDisk:
        def save_pretrained(self, folder):
            raise OSError(28, "No space left on device")

    model = load_model(SMALL_LLAMA)
    save_model_folder(model, byte_tokenizer(), tmp_path / "model")
    with pytest.raises(ConfigError, match="No space left on device"):
        save_model_folder(FullDisk(), byte_tokenizer(), tmp_path / "model")
    assert same_weights(load_model(str(tmp_path / "model")), model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
