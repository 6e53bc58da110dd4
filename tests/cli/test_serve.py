from guard_stand_in import FIXTURE

from featherweight.cli import run


def test_an_address_that_others_reach_needs_a_key_and_says_so_at_once(capsys, monkeypatch):
    monkeypatch.delenv("FEATHERWEIGHT_API_KEY", raising=False)
    assert run(["serve", str(FIXTURE), "--host", "0.0.0.0"]) != 0
    assert "asks for no api_key" in capsys.readouterr().err
