"""The Dockerfile asks for files that are there and that its ignore file lets through; nothing here builds it."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()


def test_every_file_that_is_copied_is_there_and_is_not_ignored():
    copied = [
        word for line in LINES if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert "featherweight" in copied and all((ROOT / name).exists() for name in copied)
    assert set(copied) <= set(allowed)


def test_the_extras_and_the_version_of_torch_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = next(line.partition("=")[2] for line in LINES if line.startswith("ARG EXTRAS"))
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert re.search(r"^torch==[0-9.]+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    needed = {path for path in [project["readme"], *project["license-files"]]}
    assert needed <= {word for line in LINES if line.startswith("COPY ") for word in line.split()}
