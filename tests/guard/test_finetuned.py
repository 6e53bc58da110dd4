"""A text classifier that is trained as a whole, on a small BERT with random weights."""

import pytest
import torch

from featherweight.errors import CheckpointError, ConfigError
from featherweight.guard.finetuned import FineTuned, finetune, learning_rate_at
from featherweight.guard.guard import PrefixGuard

POLICY = "help with the account because this assistant must not handle it"
CANNOT = "look up the weather since i have no live access to it"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A BERT of two layers, and a tokenizer of the words of these texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", *sorted({*POLICY.split(), *CANNOT.split()})]
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=40, **shape)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_it_learns_to_tell_reasons_apart_repeats_itself_and_leaves_the_random_numbers_alone(base, tmp_path):
    texts, labels = [POLICY, CANNOT] * 24, [1, 0] * 24
    state = torch.random.get_rng_state()
    trained = finetune(texts, labels, base=base, epochs=6, lr=3e-3, batch_size=8)
    assert torch.equal(torch.random.get_rng_state(), state) and not trained.model.training
    scores = trained([POLICY, CANNOT, "because this assistant must not", "no live access"])
    assert scores.shape == (4, 1) and scores[0] > 0 > scores[1] and scores[2] > scores[3]
    once, again = (finetune(texts, labels, base=base, epochs=1, lr=3e-3, batch_size=8) for _ in range(2))
    assert torch.equal(again([POLICY, CANNOT]), once([POLICY, CANNOT]))
    trained.save(tmp_path / "kept")
    assert torch.equal(FineTuned.load(tmp_path / "kept")([POLICY, CANNOT]), trained([POLICY, CANNOT]))
    # Longer than the model can read: cut, no error.
    assert torch.isfinite(trained(["because " * 500])).all()


def test_the_rate_rises_falls_and_never_rises_again():
    rates = [learning_rate_at(step, 480, 1e-5) for step in range(480)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < 1e-7 and max(rates) == pytest.approx(1e-5)


def test_dropout_is_on_while_it_trains(base, monkeypatch):
    from transformers import BertForSequenceClassification

    seen = []
    forward = BertForSequenceClassification.forward
    monkeypatch.setattr(
        BertForSequenceClassification,
        "forward",
        lambda self, *args, **kwargs: (seen.append(self.training), forward(self, *args, **kwargs))[1],
    )
    finetune([POLICY, CANNOT], [1, 0], base=base, epochs=1)
    assert seen == [True]


def test_texts_of_one_class_alone_are_refused(base):
    with pytest.raises(ConfigError, match="labels are all the same"):
        finetune([POLICY, POLICY], [1, 1], base=base)


@pytest.mark.slow
def test_a_guard_with_a_trained_classifier_is_stored_with_it_and_refuses_a_changed_one(
    base, stand_in, cascade, readings_folder, tmp_path
):
    options = {"tier": "probe", "target_fpr": 0.05, "text_classifier": "finetune", "text_base": str(base)}
    guard = PrefixGuard.refit([readings_folder], stand_in[1], **options)
    guard.save_pretrained(tmp_path / "guard")
    read = PrefixGuard.from_pretrained(tmp_path / "guard").bind(*stand_in)
    prompts = ["tell me about car wash", "check my bank balance"]
    assert read.judge(*stand_in, prompts) == guard.judge(*stand_in, prompts)
    config = tmp_path / "guard" / "text_classifier" / "config.json"
    config.write_text(config.read_text().replace("0.1", "0.2"))
    with pytest.raises(CheckpointError, match="text_classifier is not the folder that was written"):
        PrefixGuard.from_pretrained(tmp_path / "guard")
