"""Classification: any encoder or decoder, a new head, exact losses, counted cuts, every method, refused data."""

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers

import featherweight as fw
from featherweight.errors import ConfigError
from featherweight.models.classifier import load_classifier
from featherweight.models.save import save_model_folder
from featherweight.text.classification_task import ClassificationConfig, ClassificationTask
from featherweight.text.classifier import TextClassifier
from featherweight.text.labelled import LabelledText
from featherweight.training.recipe import Recipe

BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
WORDS = ("ship", "tree", "moon")
MODELS = pytest.mark.parametrize("model", [BERT, "tiny"], ids=["encoder", "decoder"])


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("data.csv", [f"{WORDS[n % 3]} {n},{'abc'[n % 3]}" for n in range(60)])
    return "data.csv"


def write(name, lines, header="text,label"):
    with open(name, "w") as file:
        file.write("\n".join([header, *lines]))


def build(data, **options):
    options = {"model": BERT, "data": data, "held_out": 0.3, "max_tokens": 32, **options}
    return ClassificationTask(ClassificationConfig.parse(options), seed=0)


def recipe(data, model=BERT, **changes):
    task = {"name": "classification", "model": model, "data": data, "held_out": 0.3, "max_tokens": 16}
    settings = {"task": task, "steps": 30, "micro_batch_size": 8, "memory_steps": [], "log_every": 100}
    return Recipe.parse({**settings, "optimizer": {"name": "adamw", "lr": 3e-3}, **changes})


@MODELS
def test_the_loss_of_a_padded_micro_batch_equals_text_by_text(data, model):
    task = build(data, model=model, class_weights={"b": 3.0})
    network = task.build_model().eval()
    batch = next(task.batches("train", micro_batch_size=5, seed=0))
    found, count = task.loss(network, batch)
    expected = 0.0
    for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        with torch.no_grad():
            logits = network(input_ids=ids[mask.bool()][None]).logits[0]
        expected -= (3.0 if task.classes[label] == "b" else 1.0) * float(logits.log_softmax(0)[label])
    # float32 rounding; padding that is looked at changes the second digit.
    assert count == 5 and found.item() == pytest.approx(expected, rel=1e-4)


@MODELS
def test_training_learns_and_the_folder_classifies(data, model):
    fw.train(recipe(data, model), out="run")
    facts = json.loads(Path("run/model/config.json").read_text())
    assert facts["id2label"] == {"0": "a", "1": "b", "2": "c"} and facts["label2id"]["c"] == 2
    classifier = TextClassifier("run/model")
    texts = [LabelledText(f"{word} 7", None, "", "here") for word in WORDS]
    assert [one.label for one in classifier(texts)] == ["a", "b", "c"]
    assert classifier.max_tokens == 16
    plain = transformers.AutoModelForSequenceClassification.from_pretrained("run/model")
    assert plain.config.num_labels == 3


def test_balanced_weights_make_classes_count_alike(data):
    write("skewed.csv", [f"ship {n},{'a' if n % 5 else 'b'}" for n in range(100)])
    task = build("skewed.csv", class_weights="balanced")
    counts = torch.bincount(task._labels["train"])
    shares = counts * task._weights
    # Equal up to the rounding of one division.
    assert torch.allclose(shares, shares.mean()) and float(shares.sum()) == pytest.approx(int(counts.sum()))


def test_long_texts_are_cut_left_out_or_refused_and_counted(data):
    lines = [f"{'x' * (4 if n % 2 else 40)} {n:03},{'ab'[n % 4 // 2]}" for n in range(40)]
    write("long.csv", lines)
    cut = build("long.csv").describe()
    assert cut["train_cut_texts"] + cut["held_out_cut_texts"] == 20
    assert cut["train_texts"] + cut["held_out_texts"] == 40
    left = build("long.csv", long_rows="leave_out").describe()
    assert left["train_left_out_texts"] + left["held_out_left_out_texts"] == 20
    assert left["train_texts"] + left["held_out_texts"] == 20
    with pytest.raises(ConfigError, match=r"long.csv, line \d+: 44 tokens are more than max_tokens=32"):
        build("long.csv", long_rows="refuse")


def test_pairs_are_told_apart_by_kinds_of_tokens(data):
    write("pairs.csv", [f"one {n},two {n},{n % 2}" for n in range(20)], "sentence1,sentence2,label")
    task = build("pairs.csv")
    assert task.classes == ("0", "1")
    batch = next(task.batches("train", micro_batch_size=4, seed=0))
    assert batch["token_type_ids"].shape == batch["input_ids"].shape
    assert "token_type_ids" not in next(build("pairs.csv", model="tiny").batches("train", micro_batch_size=4, seed=0))


@pytest.mark.parametrize("model", ["bert", "llama"])
@pytest.mark.parametrize("method", ["lora", "s2ft"])
def test_adapters_train_the_head_whole_and_peft_opens_them(data, model, method):
    source = BERT if model == "bert" else "tiny"
    base = load_classifier(source, ("a", "b", "c"), seed=0, tokenizer=build(data, model=source).tokenizer)
    save_model_folder(base, build(data, model=source).tokenizer, Path("base"))
    methods = [{method: {"r": 4} if method == "lora" else {"num_channels": 8}}]
    fw.train(recipe(data, "base", methods=methods, steps=3), out="run")
    settings = json.loads(Path("run/adapter/adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS" and settings["modules_to_save"]
    opened = peft.PeftModel.from_pretrained(load_classifier("base").eval(), "run/adapter").eval()
    merged = load_classifier("run/model").eval()
    ids = torch.tensor([[5, 6, 7]])
    head = next(name for name in ("classifier", "score") if hasattr(merged, name))
    before = getattr(base, head).weight
    assert not torch.equal(getattr(merged, head).weight, before)
    with torch.no_grad():
        # A change in the weight against one beside it: float32 rounding.
        assert torch.allclose(opened(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("galore", {"rank": 8}),
        ("galore_8bit", {"rank": 8}),
        ("fira", {"rank": 8}),
        ("apollo_mini", {}),
        ("q_galore", {}),
    ],
)
def test_every_kind_of_optimizer_trains_it(data, optimizer, options):
    fw.train(recipe(data, optimizer={"name": optimizer, "lr": 1e-3, **options}, steps=2, save_model=False), out="run")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert {"held_out_loss", "accuracy", "macro_f1", "matthews"} <= set().union(*lines)


@MODELS
def test_memory_is_estimated_without_the_weights(data, model):
    estimate = fw.estimate_memory(None, recipe(data, model))
    task = build(data, model=model)
    assert task.skeleton(task.config, seed=0).classes == 3
    assert estimate.predicted["weights"] == 4 * task.parameters


def test_the_memory_of_a_step_is_predicted_to_the_byte(data):
    write("full.csv", [f"{'x' * 40} {n},{'ab'[n % 2]}" for n in range(40)])  # all fill max_tokens
    settings = recipe("full.csv", steps=3, memory_steps=[2, 3], save_model=False, evaluate_at_start=False)
    estimate = fw.estimate_memory(None, settings, device="cpu", whole=True)
    run = fw.train(settings, out="run", callbacks=[])
    # A head of another width, or a forgotten mask, would show.
    assert run.summary.footprint.peak_bytes == estimate.peak_bytes


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["x 1,a", "x 2,a", "x 3,a"], {}, "data=bad.csv has the one class 'a' in all rows, the first at bad.csv, line"),
        ([f"x {n},{n}" for n in range(9)], {}, "has 9 classes and only . rows to train on, '0' at bad.csv, line 2"),
        (["x 1,a", ",b", "x 3,a"], {}, "^bad.csv, line 3: text='' is empty"),
        ([f"x {n},{'ab'[n > 5]}" for n in range(30)], {"max_train_rows": 2}, "trained on .max_train_rows=2"),
        (
            [f"x {n},{n % 2}" for n in range(9)],
            {"columns": {"label": "klasse"}},
            "^bad.csv, line 2: columns=text, label",
        ),
        ([f"x {n},{n % 2}" for n in range(9)], {"class_weights": {"2": 1.0}}, "class_weights='2' is no class"),
        ([f"x {n},{n % 2}" for n in range(9)], {"max_tokens": 65}, "max_tokens=65 is longer than the 64 tokens"),
    ],
)
def test_bad_data_is_refused_in_one_sentence_with_its_place(data, lines, options, message):
    write("bad.csv", lines)
    with pytest.raises(ConfigError, match=message) as caught:
        build("bad.csv", **options)
    assert "\n" not in str(caught.value)


def test_an_unknown_class_of_the_held_out_file_is_refused_with_its_line(data):
    write("test.csv", ["ship 99,a", "tree 99,bb"])
    with pytest.raises(ConfigError, match="^test.csv, line 3: label='bb' is no class of data=data.csv; expected one"):
        build(data, held_out="test.csv")


def test_texts_of_the_held_out_file_are_not_trained_on_and_counted(data):
    write("test.csv", ["ship 0,a", "new,b"])
    facts = build(data, held_out="test.csv").describe()
    assert (facts["train_texts"], facts["held_out_texts"], facts["train_texts_that_are_held_out"]) == (59, 2, 1)


def test_the_order_of_a_trained_classifiers_classes_is_kept(data, tmp_path):
    tokenizer = build(data).tokenizer
    save_model_folder(load_classifier(BERT, ("c", "a", "b"), tokenizer=tokenizer), tokenizer, tmp_path / "older")
    assert build(data, model=str(tmp_path / "older")).classes == ("c", "a", "b")
