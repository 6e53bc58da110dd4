"""`fw robot ports|doctor|calibrate`."""

import json

from featherweight.cli import run


def test_ports_and_doctor_print_json(capsys, monkeypatch):
    monkeypatch.setattr("featherweight.robot.doctor.list_ports", list)
    assert run(["robot", "ports", "--json"]) == 0
    assert "ports" in json.loads(capsys.readouterr().out)
    assert run(["robot", "doctor", "--port", "sim", "--real", "--json"]) == 0
    titles = [section["title"] for section in json.loads(capsys.readouterr().out)["sections"]]
    assert titles == ["Computer", "Packages", "Graphics", "Serial ports", "Kit on sim", "Checklist"]
