import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml

from featherweight.cli import run
from featherweight.cli.look import look
from featherweight.models import load_model, load_tokenizer, save_model_folder
from featherweight.training.estimate import estimate_memory
from featherweight.training.recipe import Recipe, load_recipe

pytestmark = pytest.mark.xdist_group("plans of the command line")  # they share two plans

EXCLUDE = ["--exclude", "bf16-weights, 8-bit-states,low-rank,int8-weights,few-parameters"]


def write_recipe(path):
    model = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    model |= {"num_attention_heads": 2, "max_position_embeddings": 512}
    task = {"name": "text", "model": model, "corpus": "english", "seq_len": 64}
    path.write_text(yaml.safe_dump({"task": task, "optimizer": "adamw", "steps": 2, "micro_batch_size": 1}))
    return str(path)


@pytest.fixture
def tiny_recipe(tmp_path):
    return write_recipe(tmp_path / "tiny.yaml")


def planned(arguments, patience_s):
    """Return what a plan that fits prints on standard output and on standard error."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr("featherweight.cli.plan._PATIENCE_S", patience_s)
        assert run(["plan", *arguments, "-b", "1GB", "-d", "cpu", *EXCLUDE]) == 0, err.getvalue()
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def text_plan(tmp_path_factory):
    """One plan in words, with everything that can be asked for: its folder, output and complaints."""
    folder = tmp_path_factory.mktemp("plan")
    wishes = ["--why", "--out", str(folder / "best [1].yaml"), "--report", str(folder / "plan [1].html")]
    return folder, *planned([write_recipe(folder / "tiny.yaml"), *wishes], 60.0)


@pytest.fixture(scope="module")
def json_plan(tmp_path_factory):
    """One plan for programs, whose user has no patience."""
    recipe = write_recipe(tmp_path_factory.mktemp("plan") / "tiny.yaml")
    return planned([recipe, "--json", "--solve", "min_memory", "--why"], 0.0)


def test_text_shows_the_verdict_the_row_and_how_to_train_it(text_plan):
    folder, text, _ = text_plan
    out, page = folder / "best [1].yaml", folder / "plan [1].html"
    assert (
        text.startswith("Fits: 501.40 MiB of 953.67 MiB") and "AdamW, float32 weights" in text and "Assumed: " in text
    )
    assert f"Train it: fw train {out}" in text and f"Report: {page}" in text
    assert load_recipe(out).precision == "bf16_autocast" and page.exists()


def test_json_is_one_object_with_solution_and_reasons(json_plan):
    content = json.loads(json_plan[0])
    assert content["verdict"] == "fits" and content["alternatives"] == []
    assert content["solution"]["value"] > content["solution"]["total_bytes"] > 0
    assert content["why"]["name"] == "the recipe as it stands"
    assert content["why"]["largest"][0]["bytes"] > 0 and content["why"]["changes"][0]["saved_bytes"] > 0


def test_reasons_name_largest_allocations_and_changes_of_the_recipe_that_is_asked_about(text_plan):
    _, text, _ = text_plan
    assert text.count("Largest at the peak") == 1 and "Largest at the peak of the recipe as it stands (" in text
    assert "weights: 257x64 model.embed_tokens.weight" in text
    assert text.index("Largest at the peak") < text.index("Changes that save memory, the cheapest first\n  ")


def test_a_long_search_says_now_and_then_on_standard_error_what_it_does(text_plan, json_plan):
    out, err = json_plan
    assert json.loads(out)["verdict"] == "fits"
    assert "s: simulating LoRA, rank 16, all kept, 1 x 1\n" in err
    assert text_plan[2] == ""


def test_the_exit_code_is_1_where_nothing_fits(tiny_recipe, tmp_path, capsys):
    out = tmp_path / "best.yaml"
    assert run(["plan", tiny_recipe, "-b", "100MB", "-d", "cpu", *EXCLUDE, "-o", str(out)]) == 1
    text = capsys.readouterr().out
    assert text.startswith("Nothing fits 95.37 MiB") and "no: AdamW, float32 weights: needs about" in text
    assert not out.exists()


@pytest.mark.slow  # tests/planner/test_plan.py asks the same of the plan
def test_where_nothing_fits_the_nearest_recipe_is_explained(tiny_recipe, tmp_path, capsys):
    model = tmp_path / "config.json"
    model.write_text(json.dumps(load_recipe(tiny_recipe).task["model"]))
    arguments = ["plan", "--model", str(model), "-b", "100MB", "-d", "cpu", "--seq-len", "64", *EXCLUDE]
    assert run([*arguments, "--why"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "Nearest: AdamW, float32 weights, activations: " in text
    assert "Largest at the peak of AdamW, float32 weights (" in text and "Changes that save memory" in text
    assert run([*arguments, "--solve", "micro_batch", "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["nearest"]["total_bytes"] > content["usable_bytes"]
    assert content["solution"]["value"] is None
    assert "micro_batch_size=1 already needs 0.49 GiB of 0.09" in content["solution"]["reason"]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--budget", "much"],
        ["--budget", "_GB"],
        ["--device", "rtx9999"],
        ["--exclude", "quality"],
        ["--seq-len", "0"],
        ["--tokens-per-step", "0"],
        ["--solve", "micro_bach"],
    ],
)
def test_wrong_input_has_exit_code_2_and_one_sentence(tiny_recipe, wrong, capsys):
    assert run(["plan", tiny_recipe, "--device", "cpu", *wrong]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "expected" in err


def test_a_limit_ends_the_search_at_the_most_faithful_recipe(tiny_recipe, capsys):
    a_few_families = ["--exclude", "8-bit-states,low-rank,int8-weights,4bit-weights,few-parameters"]
    arguments = ["plan", tiny_recipe, "-b", "1GB", "-d", "cpu", "--json", *a_few_families]
    assert run(arguments) == 0
    assert len(json.loads(capsys.readouterr().out)["alternatives"]) == 3
    assert run([*arguments, "--limit", "1"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["alternatives"] == [] and content["refused"] == {}


def test_neither_model_nor_recipe_is_an_error(capsys):
    assert run(["plan", "--budget", "12GB", "--device", "cpu"]) == 2
    assert "expected one of them" in capsys.readouterr().err


def test_a_narrow_terminal_without_unicode_shows_the_plan(tiny_recipe, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run(["plan", tiny_recipe, "-b", "1GB", "-d", "cpu", *EXCLUDE]) == 0
    terminal.flush()
    assert max(map(len, terminal.buffer.getvalue().decode("ascii").splitlines()[:4])) <= 60


SMALL = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "max_position_embeddings": 512}


@pytest.fixture
def model_and_chats(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model_folder(load_model(SMALL), load_tokenizer("bytes"), tmp_path / "model")
    rows = [{"prompt": f"q{n}", "completion": "a" * (3 if n else 200)} for n in range(60)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["plan", "--model", "./model", "--data", "chats.jsonl", "--template", "chatml", "-b", "1GB", "-d", "cpu"]


def test_a_plan_for_data_is_a_recipe_that_trains_that_model_on_that_data(model_and_chats, tmp_path, capsys):
    assert run([*model_and_chats, *EXCLUDE, "--out", "chat.yaml"]) == 0
    text = (tmp_path / "chat.yaml").read_text()
    assert "# Fine-tunes ./model" in text and "# Understood: 60 rows" in text and "# Gives up against" in text
    assert "# 1 rows are longer than max_tokens and lose their last turns." in text and "NOT READY" not in text
    recipe = load_recipe("chat.yaml")
    expected = {"name": "chat", "model": "./model", "data": "chats.jsonl", "max_tokens": 128, "template": "chatml"}
    assert recipe.task == expected  # 98 of 100 rows have less than 128 bytes with their template
    assert recipe.steps == round(60 * 0.95 * 2 / 16) and recipe.optimizer["lr"] == 2e-5
    assert recipe.micro_batch_size * recipe.accumulation_steps == 16
    capsys.readouterr()
    assert run(["train", "chat.yaml", "steps=1", "--out", "run"]) == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["task"]["weights"] == "pretrained"


def test_a_length_that_was_asked_for_is_that_of_the_rows(model_and_chats):
    seen = look("fw plan", "./model", "chats.jsonl", columns={}, ignore_columns=[], template="chatml", train_on="last")
    recipe = Recipe.parse(seen.recipe(96), where="recipe")
    assert recipe.task["max_tokens"] == 96 and recipe.task["train_on"] == "last"
    assert "2 rows" not in " ".join(seen.comments(96)) and "60 rows are longer than max_tokens" in seen.comments(8)[-1]


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"prompt": "q", "chosen": "yes", "rejected": "no"}, {"name": "preference"}),
        ({"prompt": "q", "completion": "a", "label": True}, {"name": "preference", "method": "kto"}),
    ],
)
def test_preferences_are_planned_with_the_task_that_learns_from_them(model_and_chats, tmp_path, row, task):
    lines = [json.dumps({**row, "prompt": f"q{number}"}) + "\n" for number in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    seen = look(
        "fw plan", "./model", "pairs.jsonl", columns={}, ignore_columns=[], template="chatml", train_on="assistant"
    )
    recipe = Recipe.parse(seen.recipe(64), where="recipe").override(["task.held_out=0.3", "steps=1"])
    assert task.items() <= recipe.task.items()
    assert estimate_memory(None, recipe, device="cpu").peak_bytes > 0
    recipe.check_weights()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "chats.jsonl"], "expected a model and no recipe"),
        (["--model", "llama-3-8b", "--data", "chats.jsonl", "--template", "chatml"], "is a shape"),
        (["--model", "./model", "--data", "absent.jsonl"], "absent.jsonl"),
    ],
)
def test_data_that_cannot_be_planned_for_are_refused(model_and_chats, words, message, capsys):
    assert run(["plan", *words, "-b", "1GB"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow  # tests/planner/test_recipe_text.py looks at the text alone
def test_a_plan_for_a_shape_says_in_the_recipe_what_is_missing_and_does_not_train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        "plan",
        "--model",
        "llama-60m",
        "-b",
        "4GB",
        "-d",
        "cpu",
        "--seq-len",
        "64",
        "--tokens-per-step",
        "64",
        *EXCLUDE,
    ]
    assert run([*words, "--out", "plan.yaml"]) == 0
    assert "Not ready: text task: model=llama-60m is a shape" in " ".join(capsys.readouterr().out.split())
    text = (tmp_path / "plan.yaml").read_text()
    assert "# NOT READY: fw train refuses this recipe until you decide:" in text and "task.weights: random" in text
    assert run(["train", "plan.yaml", "--out", "run"]) == 2
    assert "is a shape, of which there are no weights" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_plan_for_a_new_model_proposes_no_adapters(tiny_recipe, tmp_path, capsys):
    content = yaml.safe_load(Path(tiny_recipe).read_text())
    content["task"]["weights"] = "random"
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(content))
    exclude = ["--exclude", "8-bit-states,low-rank,int8-weights"]
    assert run(["plan", str(tmp_path / "new.yaml"), "-b", "1GB", "-d", "cpu", *exclude, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    names = [one["family"] for one in plan["alternatives"]]
    assert names == ["AdamW", "AdamW 16-bit", "AdamW 16-bit, layer-wise"]
    assert "weights of model=llama are random" in plan["refused"]["LoRA, rank 16"]
