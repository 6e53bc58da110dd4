import math

import pytest

from featherweight.report import Report


@pytest.fixture
def report():
    report = Report("Two methods")
    report.add_table(
        "Results", ["method", "loss (nats/token)", "tokens"], [["adamw", 2.5, 65536], ["galore", 2.75, None]]
    )
    report.add_curves("Loss", "tokens", "loss (nats/token)", {"adamw": ([0, 512], [3.5, 2.5]), "galore": ([0], [3.5])})
    report.add_bars("Memory", "memory (MiB)", {"adamw": {"weights": 10, "state": 20}, "galore": {"weights": 10.5}})
    report.add_facts({"machine": "2 cores", "seed": 0, "compiled": False})
    report.add_note("Reproduce with fw compare.")
    return report


@pytest.fixture
def awkward_report():
    """Everything that must not crash: nothing, nonsense numbers, nonsense names."""
    report = Report("<b>Awkward</b> [red]title[/red]")
    report.add_table("No rows", ["a"], [])
    report.add_table("No columns", [], [[], []])
    report.add_table(
        "Nonsense", ["x"], [[math.nan], [-math.inf], [None], ["<script>alert(1)</script>"], [1e300], [True]]
    )
    report.add_curves("No curves", "x", "y", {})
    report.add_curves("Empty curve", "x", "y", {"a": ([], [])})
    report.add_curves("Only NaN", "x", "y", {"a": ([1, 2], [math.nan, math.inf])}, log_y=True)
    report.add_curves("Nothing positive", "x", "y", {"a": ([1, 2], [0, -1])}, log_y=True)
    report.add_curves("One point", "x", "y", {"_hidden $x_{": ([1], [1.0])}, log_y=True)
    report.add_curves(
        "Huge", "x", "y", {"中文 📈": ([1, 2, math.nan], [1e308, -1e308, 1]), "b": ([1, 2], [1e90, -1e90])}
    )
    report.add_curves("Constant", "x", "y", {f"curve {i}": ([1, 2], [0.1, 0.1]) for i in range(20)})
    report.add_bars("No bars", "y", {})
    report.add_bars("No categories", "y", {"a": {}})
    report.add_bars("Nonsense bars", "y", {"a": {"x": math.nan, "y": -1}, "b": {"z": math.inf}, "_c": {}})
    report.add_bars("Many", "y", {f"group of some length {i}": {f"c{j}": i + j for j in range(9)} for i in range(12)})
    report.add_facts({})
    report.add_note("")
    return report
