import io
import sys
from pathlib import Path

from rich.console import Console

from featherweight.training import console
from featherweight.training.console import ConsoleProgress, PatientConsole, memory_in_use_bytes
from featherweight.training.recipe import Recipe
from featherweight.training.run import train


def run(recipe, tmp_path, **options) -> list[str]:
    console = Console(file=io.StringIO(), width=120, **options)
    train(recipe(log_every=4, checkpoint_every=4), out=tmp_path / "run", callbacks=[ConsoleProgress("demo", console)])
    return console.file.getvalue().splitlines()


def test_without_a_terminal_there_is_a_line_per_log_every_and_per_evaluation(recipe, tmp_path):
    lines = run(recipe, tmp_path, force_terminal=False)
    starts = [" ".join(line.split()[:4]) for line in lines]
    assert starts == [
        "demo: evaluated after step",
        "demo: step 4/8 loss",
        "demo: checkpoint step-00000004 written",
        "demo: step 8/8 loss",
        "demo: checkpoint step-00000008 written",
        "demo: evaluated after step",
    ]
    assert "points/s" in lines[3] and "GiB" in lines[3]


def test_a_terminal_shows_a_bar_with_loss_speed_memory_and_the_time_left(recipe, tmp_path):
    text = "\n".join(run(recipe, tmp_path, force_terminal=True))
    for part in ("demo", "8/8", "loss", "points/s", "GiB", "0:00:00"):
        assert part in text


def test_the_speed_is_that_of_the_items_that_the_task_counts(tmp_path):
    task = {"name": "pde", "resolution": 8, "n_train": 8, "n_test": 3, "n_modes": [4, 4], "hidden_channels": 4}
    recipe = Recipe.parse(
        {"task": task, "steps": 3, "micro_batch_size": 4, "log_every": 1, "memory_steps": []}, where="recipe"
    )
    console = Console(file=io.StringIO(), width=120)
    train(recipe, out=tmp_path / "run", callbacks=[ConsoleProgress("demo", console)])
    text = console.file.getvalue()
    assert " samples/s" in text and "tokens" not in text


def test_memory_in_use_is_that_of_this_process():
    # Python with torch needs more than 100 MB, and no test machine has a terabyte.
    assert 10**8 < memory_in_use_bytes() < 10**12


def test_a_narrow_terminal_keeps_the_count_and_the_time_left_and_one_without_unicode_survives(recipe, tmp_path):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    console = Console(file=file, width=50, force_terminal=True)
    train(recipe(), out=tmp_path / "run", callbacks=[ConsoleProgress("demo", console)])
    text = file.buffer.getvalue().decode("ascii")
    assert "8/8" in text and "0:00:00" in text and "loss" in text and "points/s" not in text


def test_memory_in_use_is_known_without_proc_and_without_the_module_of_unix(monkeypatch):
    expected = memory_in_use_bytes()
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(Path, "read_text", lambda self, *args, **kwargs: (_ for _ in ()).throw(FileNotFoundError(self)))
    assert abs(memory_in_use_bytes() / expected - 1) < 0.1
    source = Path(console.__file__).read_bytes().decode()
    exec(compile(source, console.__file__, "exec"), {"__name__": "again"})  # imports without `resource`


def test_a_reader_that_leaves_does_not_end_the_run(recipe, tmp_path):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    console = PatientConsole(file=Gone(), force_terminal=False)
    run = train(recipe(log_every=1), out=tmp_path / "run", callbacks=[ConsoleProgress("demo", console)])
    assert run.summary.steps == 8 and console.quiet
