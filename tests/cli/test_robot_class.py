"""`fw robot class init|serve|links|export`."""

import json
import signal

import pytest
from robot_processes import start, stop

from featherweight.cli import run

pytest.importorskip("cryptography")
pytest.importorskip("websockets")


def test_a_class_is_made_its_links_hold_the_keys_of_people_alone_and_its_server_starts_and_ends(tmp_path, capsys):
    folder = tmp_path / "class"
    arguments = ["robot", "class", "init", str(folder), "--students", "2", "-m", "teacher:instructor"]
    assert run(arguments) == 0
    assert "fw robot class serve" in capsys.readouterr().out
    settings = json.loads((folder / "relay.json").read_text())["members"]
    assert settings["sim-student02"]["owner"] == "student02" and settings["student01"]["role"] == "operator"

    assert run(["robot", "class", "links", str(folder), "--address", "https://lab:7443/", "--json"]) == 0
    links = json.loads(capsys.readouterr().out)
    token = (folder / "members" / "student01" / "token").read_text().strip()
    assert set(links) == {"teacher", "student01", "student02"}
    assert links["student01"] == f"https://lab:7443/lab1/#key={token}"

    server = start("class", "serve", str(folder), "--port", "0")
    try:
        assert server.stdout.readline().startswith("https://127.0.0.1:")
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=30)
        assert server.returncode == 0 and "Traceback" not in errors
    finally:
        stop([server])

    assert run(["robot", "class", "export", str(folder), str(tmp_path / "class.zip"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["board.csv"]


def test_mistakes_are_one_sentence_each(tmp_path, capsys):
    for arguments, message in (
        (["serve", str(tmp_path)], "is no folder of a room"),
        (["links", str(tmp_path)], "has no members"),
        (["export", str(tmp_path), str(tmp_path / "out.zip")], "is no folder of a room"),
        (["init", str(tmp_path / "new"), "--authority", str(tmp_path)], "cannot be read"),
    ):
        assert run(["robot", "class", *arguments]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
