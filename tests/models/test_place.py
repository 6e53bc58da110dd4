import pytest

from featherweight.errors import CheckpointError, ConfigError
from featherweight.models.place import Place, check_complete, explained


def test_arguments_name_the_folder_and_the_file_in_it():
    assert Place("a", path="folder").arguments == {"pretrained_model_name_or_path": "folder"}
    assert Place("a", path="folder", gguf_file="b.gguf").arguments["gguf_file"] == "b.gguf"


def test_missing_weights_are_named():
    check_complete(Place("a"), set())
    with pytest.raises(ConfigError, match="lacks 2 weights of a causal language model, 'b' among them"):
        check_complete(Place("a"), {"c", "b"})


def test_what_libraries_raise_becomes_one_sentence_and_our_own_errors_pass():
    with pytest.raises(ConfigError, match=r"source=tinny cannot be loaded \(no\).*Did you mean 'tiny'"):
        with explained(Place("tinny", path="tinny")):
            raise Exception("no.\nand a long story")
    with pytest.raises(CheckpointError, match="ours"), explained(Place("a")):
        raise CheckpointError("ours")
