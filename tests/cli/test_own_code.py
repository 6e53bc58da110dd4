import json
import sys
from pathlib import Path

import pytest

from featherweight.cli import run
from featherweight.methods.named import methods
from featherweight.optim import optimizers
from featherweight.training.task import tasks

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """Forget what a test has imported and registered."""
    for registry in (tasks, methods, optimizers):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
        monkeypatch.setattr(registry, "_resolved", dict(registry._resolved))
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in ("own_optimizer", "own_task", "own_method", "mine", "beside"):
        sys.modules.pop(name, None)


def test_a_file_of_the_user_brings_a_task_and_an_optimizer_that_train_resume_and_say_what_they_take(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    recipe = {"task": {"name": "parabola"}, "epochs": 1, "micro_batch_size": 64, "checkpoint_every": 2}
    Path("own.json").write_text(json.dumps({**recipe, "optimizer": {"name": "lion", "betas": [0.9, 0.95]}}))
    files = ["--import", str(EXAMPLES / "own_task.py"), "--import", str(EXAMPLES / "own_optimizer.py")]
    assert run(["train", "own.json", *files, "--out", "run", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["steps"], summary["optimizer"]["betas"]) == (4, [0.9, 0.95])
    assert "optimizer_state" not in summary["footprint"]["predicted"] and summary["footprint"]["measured"]
    assert run(["train", "own.json", *files, "--out", "run", "--json", "--resume", "epochs=2"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 8
    assert run(["train", "own.json", *files, "optimizer.lr=fast"]) == 2
    assert "lr='fast'" in capsys.readouterr().err
    assert run(["train", "own.json", *files, "optimizer.layerwise=true", "--out", "other"]) == 2
    assert "are options of featherweight's own optimizers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("absent.py", None, "--import: file=absent.py does not exist"),
        ("mine.py", "import sys\n\n1 / 0\n", "mine.py fails in line 3 (ZeroDivisionError: division by zero)"),
        ("mine.py", "def f(:\n", "mine.py fails in line 1 (SyntaxError"),
        ("json.py", "", "json.py has the name of the module 'json'"),
        ("my-task.py", "", "my-task.py has no name of a Python module"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_sentence(tmp_path, monkeypatch, capsys, name, content, sentence):
    monkeypatch.chdir(tmp_path)
    Path("recipe.json").write_text("{}")
    if content is not None:
        Path(name).write_text(content)
    assert run(["train", "recipe.json", "--import", name]) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error


def test_a_file_may_import_what_stands_beside_it_and_runs_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("beside.py").write_text("count = 0\n")
    Path("mine.py").write_text("import beside\nbeside.count += 1\n")
    Path("recipe.json").write_text("{}")
    run(["train", "recipe.json", "--import", "mine.py", "--import", "mine.py"])
    assert sys.modules["beside"].count == 1
