"""`fw pde`: generate, train, compare."""

import yaml

from featherweight.cli import run
from featherweight.report import Report


def test_generate_writes_files_and_says_where(tmp_path, capsys):
    command = ["pde", "generate", "darcy", "low=4", "--n", "3", "--n-test", "2", "--resolution", "9", "--workers", "1"]
    assert run([*command, "--out", str(tmp_path)]) == 0
    names = ["darcy_train_9.pt", "darcy_test_9.pt"]
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in names]
    assert all((tmp_path / name).exists() for name in names)
    assert run([*command, "--out", str(tmp_path), "--seed", "5"]) == 2
    assert "other settings (seed)" in " ".join(capsys.readouterr().err.split())
    assert run(["pde", "generate", "darcy", "lou=4", "--out", str(tmp_path)]) == 2
    assert "Did you mean 'low'" in " ".join(capsys.readouterr().err.split())


def test_compare_draws_the_fields_of_all_methods(tmp_path, capsys):
    task = {"name": "pde", "resolution": 8, "n_train": 8, "n_test": 3, "n_modes": [4, 4], "hidden_channels": 4}
    recipe = {"task": {**task, "n_layers": 1}, "steps": 2, "micro_batch_size": 4, "memory_steps": []}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(recipe))
    out = tmp_path / "runs"
    assert run(["pde", "compare", str(path), "--optimizers", "adamw,tensor_galore", "--out", str(out)]) == 0
    assert (out / "fields.png").exists() and (out / "spectra.png").exists()
    shown = capsys.readouterr().out
    assert "Pictures:" in shown and "samples/s" in shown and "tokens" not in shown and "perplexity" not in shown
    report = Report.from_json((out / "report.json").read_text())
    columns = report.section("Methods").columns
    assert columns[:4] == ["method", "training loss", "held-out loss", "l2"] and columns[-1] == "samples/s"
    assert all(row[3] > 0 for row in report.section("Methods").rows)
    curves = report.section("Held-out loss")
    assert (curves.x_label, curves.y_label) == ("samples", "loss (relative H1 error)")
    assert run(["pde", "train", str(path), "--out", str(tmp_path / "one"), "--json"]) == 0
    assert (tmp_path / "one" / "fields.png").exists()
    assert capsys.readouterr().out.lstrip().startswith("{")
