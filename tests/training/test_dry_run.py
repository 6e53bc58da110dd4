from featherweight.training.dry_run import measure


def test_a_few_measured_steps_show_every_category_and_write_nothing(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    footprint, report = measure(recipe(), overrides=["optimizer.rank=2"], steps=2)
    assert all(footprint.measured[name] == count for name, count in footprint.predicted.items())
    assert footprint.measured["activations"] > 0
    assert report.title == "Memory of 2 steps: run, galore"
    assert list(tmp_path.iterdir()) == []
