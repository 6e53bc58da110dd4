from rich.console import Console


def text_of(report, width=100):
    console = Console(width=width, color_system=None, _environ={})
    with console.capture() as capture:
        report.print_terminal(console)
    return capture.get()


def test_terminal_shows_every_number_of_a_table_at_any_width(report):
    report.add_table(
        "Wide", [f"quantity {i} (unit)" for i in range(12)], [[f"name{i}" if i == 0 else 1111 * i for i in range(12)]]
    )

    for width in (30, 60, 200):
        text = text_of(report, width)
        assert all(f"{1111 * i:,}" in text for i in range(1, 12)), width
        assert max(map(len, text.splitlines())) <= width


def test_terminal_sums_up_curves_and_bars(report):
    lines = text_of(report, 140).splitlines()

    curve = next(line for line in lines if line.startswith("adamw") and "█" in line)
    assert curve.split() == ["adamw", "512", "3.500", "2.500", "2.500", "2", "█▁"]
    bars = next(line for line in lines if line.startswith("adamw") and line.split()[-1].startswith("30"))
    assert bars.split()[1] == "10.00"  # the other group's 10.5 needs decimals, so both have them


def test_terminal_prints_markup_of_names_as_it_is(awkward_report):
    text = text_of(awkward_report)

    assert "[red]title[/red]" in text
    assert "<script>alert(1)</script>" in text


def test_terminal_that_knows_only_ascii_is_served(report, tmp_path):
    with open(tmp_path / "out.txt", "w", encoding="ascii") as file:
        report.print_terminal(Console(file=file, width=100))

    assert "adamw" in (tmp_path / "out.txt").read_text()


def test_print_of_a_report_is_its_plain_text(report):
    assert str(report).splitlines()[0] == "Two methods"
    assert "\x1b" not in str(report)
