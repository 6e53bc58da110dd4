import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError

from featherweight.errors import ConfigError
from featherweight.models import model_facts
from featherweight.models.hub import require_hub
from featherweight.text.corpus import load_documents


class Network:
    """Stands for the hub: counts the questions and answers each with the same error, or not at all."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.questions = error, []

    def __call__(self, url: str) -> None:
        self.questions.append(url)
        if self.error is not None:
            raise self.error


def test_an_unreachable_hub_is_asked_once_and_named_in_one_sentence(monkeypatch, capfd):
    network = Network(OSError("Name or service not known"))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", network)
    reason = "no such folder here, and the hub cannot be reached: Name or service not known"
    with pytest.raises(ConfigError, match=rf"source=owner/absent-model cannot be loaded \({reason}\)"):
        model_facts("owner/absent-model")
    with pytest.raises(ConfigError, match=rf"corpus=hf:owner/absent-data cannot be loaded \({reason}\)"):
        load_documents("hf:owner/absent-data")
    assert len(network.questions) == 2
    assert "owner/absent-model" in network.questions[0] and "datasets/owner/absent-data" in network.questions[1]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("answer", [None, HFValidationError("not allowed")])
def test_what_the_hub_answers_is_left_to_the_loaders(monkeypatch, answer):
    network = Network(answer)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", network)
    require_hub("owner/name", "model", "config.json")
    assert len(network.questions) == 1
