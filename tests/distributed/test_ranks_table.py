"""benchmarks/results/ranks.csv and its table on the page: bytes and traffic are what plain arithmetic gives.

Nothing of the planner is used: sizes are those of the Llamas' matrices, and every formula is written out here.
"""

import csv
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
VOCABULARY, GIB = 32000, 2**30
SHAPES = {"llama-7b": (4096, 11008, 32, 4096), "llama-2-70b": (8192, 28672, 80, 1024)}
"""Hidden, feed-forward, layers, keys and values."""
CARD_BYTES = 80 * GIB
HALF, FLOAT, COUNTER, FINISH = 2, 4, 8, 5
"""Bytes of a bfloat16, a float32, a counter; counters of a projected matrix."""
USES = 2 + 1 + 1
"""Of a right basis in a step: the forward pass and its repetition under checkpointing, the norm, the update."""

with open(ROOT / "benchmarks" / "results" / "ranks.csv", encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))


class Model:
    """Tensors of a Llama under a recipe of the table."""

    def __init__(self, name, recipe):
        hidden, feed_forward, layers, kv = SHAPES[name]
        self.rank = int(recipe.partition("R = ")[2] or 0)
        self.is_int8 = "int8" in recipe
        attention = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden)]
        linear = (attention + [(feed_forward, hidden), (feed_forward, hidden), (hidden, feed_forward)]) * layers
        self.linear = linear
        self.projected = [shape for shape in linear if self.rank and self.rank < min(shape)]
        rest = [shape for shape in linear if not (self.rank and self.rank < min(shape))]
        self.dense = rest + [(VOCABULARY, hidden)] * 2 + [(hidden, 1)] * (2 * layers + 1)

    def weight_bytes(self, processes):
        """Bytes of the rows of the fullest process."""
        total = 0
        for rows, columns in [*self.projected, *self.dense]:
            own = math.ceil(rows / processes)
            if self.is_int8 and (rows, columns) in self.linear:
                total += own * (columns + FLOAT * math.ceil(columns / 256)) + HALF  # one element stands for the weight
            else:
                total += own * columns * HALF
        return total

    def state_bytes(self, processes, *, is_shared):
        found = sum(2 * FLOAT * math.ceil(m / processes) * n + COUNTER for m, n in self.dense)
        for rows, columns in self.projected:
            basis = math.ceil(columns / processes) if is_shared else columns
            found += 2 * FLOAT * math.ceil(rows / processes) * self.rank + HALF * basis * self.rank
            found += FINISH * COUNTER
        return found

    @property
    def basis_bytes(self):
        return sum(HALF * columns * self.rank for _, columns in self.projected)

    @property
    def core_elements(self):
        return sum(rows * self.rank for rows, _ in self.projected)

    @property
    def other_elements(self):
        return sum(rows * columns for rows, columns in self.dense)

    def sent_bytes(self, sharding, gpus, size, *, is_shared):
        """What a GPU sends in a step, and how much of that between the machines."""
        reduced = FLOAT * (self.core_elements + self.other_elements)
        if sharding == "ddp":
            return 2 * (gpus - 1) / gpus * reduced, None
        share, copies = (size - 1) / size, gpus // size
        bases = USES * self.basis_bytes if is_shared else 0
        inside = share * (2 * self.weight_bytes(1) + reduced + bases)
        between = 2 * (copies - 1) / copies * reduced / size if copies > 1 else None
        return inside + (between or 0), between


def key_of(row):
    return f"{row['model']}, {row['recipe']}, {row['sharding']}, {row['gpus']}"


@pytest.mark.parametrize("row", ROWS, ids=key_of)
def test_bytes_and_traffic_of_a_row_are_those_of_the_formulas(row):
    # Mutations: moments of all rows, bases that a process keeps whole where they are counted as shared, a gather less.
    model = Model(row["model"], row["recipe"])
    gpus, size, is_shared = int(row["gpus"]), int(row["shard_size"]), row["basis"] == "sharded"
    assert is_shared == (row["sharding"] != "ddp" and model.basis_bytes > 0.05 * CARD_BYTES)
    assert int(row["weights_bytes"]) == model.weight_bytes(size)
    assert int(row["optimizer_state_bytes"]) == model.state_bytes(size, is_shared=is_shared)
    sent, between = model.sent_bytes(row["sharding"], gpus, size, is_shared=is_shared)
    assert int(row["sent_bytes"]) == pytest.approx(sent, abs=0.51)
    assert row["between_nodes_bytes"] == ("" if between is None else str(round(between)))
    parts = ("weights", "gathered", "gradients", "optimizer_state", "activations", "others")
    assert int(row["total_bytes"]) == sum(int(row[f"{name}_bytes"]) for name in parts)


def test_the_page_has_every_row():
    assert len(ROWS) == len({key_of(row) for row in ROWS}) == 2 * 4 * (2 + 3 + 3)
    table = {tuple(cell.strip() for cell in line.strip("|").split("|"))[:3]: line for line in PAGE.splitlines()}
    for row in ROWS:
        line = table[row["model"], row["recipe"], row["sharding"]]
        held, sent = f"{int(row['total_bytes']) / GIB:.1f} GiB", f", {int(row['sent_bytes']) / 1e9:.1f} GB"
        mark = "*" if row["basis"] == "sharded" else ""
        cell = (held if row["fits"] == "True" else f"({held})") + mark + sent
        assert cell in line.split("|")[4 + ["8", "64", "1024"].index(row["gpus"])], (key_of(row), cell)
