"""The table of the stand-ins in docs/guard.md, from results/guard_stand_in.csv: python benchmarks/guard_table.py"""

import csv
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "guard.md"
BEGIN, END = "<!-- stand-in: python benchmarks/guard_table.py -->", "<!-- end of stand-in -->"
REFERENCE = {
    "unguarded: opens with a refusal, forbidden (%)": "98.7",
    "unguarded: opens with a refusal, marked (%)": "0",
    "flagged at 2 % by probe, forbidden (%)": "94.7",
    "flagged at 2 % by probe, marked (%)": "96.7",
    "flagged at 2 % by probe, ordinary (%)": "1.0",
    "flagged at 2 % by probe, borderline (%)": "2.3",
    "flagged at 2 % by probe, oos (%)": "4.3",
    "AUROC hidden, marked against ordinary": "up to 0.22",
    "AUROC logprob, marked against ordinary": "0.000",
    "AUROC prefix_hidden, marked against ordinary": "0.996",
    "AUROC probe, marked against ordinary": "0.989",
}
"""Of a prototype of this method with one seed, where it measured the same."""


def table() -> str:
    """Return all quantities, a column for each seed."""
    with (HERE / "results" / "guard_stand_in.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    seeds = list(dict.fromkeys(row["model"] for row in rows))
    quantities = list(dict.fromkeys(row["quantity"] for row in rows))
    value = {(row["model"], row["quantity"]): row["value"] for row in rows}
    lines = ["| quantity | prototype | " + " | ".join(seeds) + " |", "|---" * (len(seeds) + 2) + "|"]
    for name in quantities:
        cells = [name.replace("|", "/"), REFERENCE.get(name, ""), *(value.get((seed, name), "") for seed in seeds)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Put the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
