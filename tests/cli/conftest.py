"""The regression task by name, a recipe file, and the command line inside this process."""

import json
import runpy
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from featherweight.training.task import tasks

tasks.register("regression", "regression_task:RegressionTask")


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """Return the path of a small recipe."""
    content = {
        "task": {"name": "regression", "hidden": 80},
        "optimizer": {"name": "galore", "rank": 4, "lr": 0.01},
        "steps": 4,
        "micro_batch_size": 4,
        "memory_steps": [2],
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def chat_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with 40 conversations and a table of questions, and return it."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"system": "pirate", "conversations": [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"a{n}"}]}
        for n in range(40)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "fragen.csv").write_text("Frage,Antwort,Quelle\nq1,a1,book\nq2,a2,book\n")
    return tmp_path


@pytest.fixture(autouse=True)
def warnings_as_before() -> Iterator[None]:
    """The command line changes how warnings are printed; other tests want the usual way."""
    before = warnings.formatwarning
    yield
    warnings.formatwarning = before


@pytest.fixture(scope="session")
def talking_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small random Llama that knows the chat template of SmolLM2."""
    from chat_formats import tokenizer_with

    models = runpy.run_path(str(Path(__file__).parents[1] / "reference" / "causal_models.py"))
    tokenizer = tokenizer_with("smollm2")
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024, "eos_token_id": 256}
    path = tmp_path_factory.mktemp("chat") / "model"
    models["causal_model"]("llama", **sizes).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
