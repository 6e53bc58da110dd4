"""Perplexity over bytes: what low rank buys on SmolLM2-135M beside int8 and four bits, and mixed with them.

    scripts/bench welore_bytes               # what the CSV lacks; each row stands there as soon as it is measured
    scripts/bench welore_bytes --table       # the table of docs/welore.md
    scripts/bench welore_bytes --plot        # docs/images/welore_bytes.png

Bytes of a file: floating numbers take two (they are rounded to bfloat16 before they are judged), codes of int8 and NF4
and their scales what they are. Embeddings, tied to the head, stay bfloat16 in every row, so their 57 MB are a floor.
Text: English of any Python installation. Its first 4,096 tokens judge in windows of 1,024, the next 1,024 choose (for
the search alone), 16 rows of 512 calibrate; so no setting was chosen on what judges.
`plain`, `whitened`, `refit`: ranks by energy for a share of all parameters. `search`: kinds of matrices measured one by
one, for a perplexity of so many times. `whitened, int8`, `search, int8`: factors of int8.
"""

import argparse
import copy
import math
import re
import time
from collections.abc import Callable
from typing import Any

import torch
from measurement import read_rows, write_rows
from torch import Tensor, nn

import featherweight as fw
from featherweight.methods.welore.search import find_cut
from featherweight.models import load_model, load_tokenizer
from featherweight.text.compress import token_stream
from featherweight.text.perplexity import perplexity

NAME = "welore_bytes"
RATIOS = {"plain": (0.95, 0.9, 0.8), "whitened": (0.95, 0.9, 0.8, 0.6), "refit": (0.95, 0.8, 0.6)}
INT8_RATIOS, LIMITS, INT8_LIMITS = (0.8, 0.6), (1.1, 1.3), (1.3,)
JUDGES, CHOOSES, CALIBRATES = 4096, 1024, 16 * 512
CODING = re.compile("scale|absmax|quant|offset")
Change = Callable[[nn.Module], Any]


def rows(chooses: Tensor, batches: list[Tensor]) -> dict[str, Change]:
    """Return what is done to the model, by row."""
    found: dict[str, Change] = {
        "dense": lambda model: None,
        "int8": lambda model: fw.apply(model, fw.Int8()),
        "NF4": lambda model: fw.apply(model, fw.Base4bit()),
    }
    for method in ("plain", "whitened"):
        found |= {f"{method} {ratio}": low_rank(batches, method=method, param_ratio=ratio) for ratio in RATIOS[method]}
    for limit in LIMITS:
        found[f"search {limit}"] = search(limit, chooses, batches, storage="auto")
    for limit in INT8_LIMITS:
        found[f"search, int8 {limit}"] = then_int8(search(limit, chooses, batches, storage="factored"))
    for ratio in INT8_RATIOS:
        factored = low_rank(batches, method="whitened", param_ratio=ratio, storage="factored")
        found[f"whitened, int8 {ratio}"] = then_int8(factored)
    for ratio in RATIOS["refit"]:
        found[f"refit {ratio}"] = low_rank(batches, method="refit", param_ratio=ratio)
    return found


def low_rank(batches: list[Tensor], **options: Any) -> Change:
    """Return a cut for a share of all parameters."""
    calibration = None if options["method"] == "plain" else batches
    return lambda model: fw.apply(model, fw.WeLore(allocation="energy", **options), calibration)


def search(limit: float, chooses: Tensor, batches: list[Tensor], storage: Any) -> Change:
    """Return the cut that a search finds for a perplexity of `limit` times."""

    def change(model: nn.Module) -> None:
        def measure(one: nn.Module) -> float:
            return math.log(perplexity(one, chooses, window_tokens=512))

        found = find_cut(model, fw.WeLore(method="whitened", storage=storage), measure, math.log(limit), batches)
        fw.apply(model, found.options, batches)

    return change


def then_int8(change: Change) -> Change:
    """Return a cut whose matrices, factors or not, become int8."""

    def both(model: nn.Module) -> None:
        change(model)
        fw.apply(model, fw.Int8())

    return both


def numbers_and_codes(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors of a model's file, each once: floating numbers, and codes with their scales."""
    saved = {one.data_ptr(): (name, one) for name, one in model.state_dict().items() if one.numel()}
    numbers = [one for name, one in saved.values() if one.is_floating_point() and not CODING.search(name)]
    return numbers, [one for _, one in saved.values() if not any(one is number for number in numbers)]


def file_bytes(model: nn.Module) -> int:
    """Return the bytes of the model's file with two for every floating number that is no scale of codes."""
    numbers, codes = numbers_and_codes(model)
    return 2 * sum(one.numel() for one in numbers) + sum(one.nbytes for one in codes)


def round_to_bfloat16_(model: nn.Module) -> None:
    """Round the numbers that a file holds in bfloat16, and go on in float32."""
    for number in numbers_and_codes(model)[0]:
        number.copy_(number.bfloat16())


def measured(name: str, model: nn.Module, change: Change, judges: Tensor) -> dict[str, Any]:
    """Change a copy of the model and judge it."""
    began, changed = time.process_time(), copy.deepcopy(model)
    change(changed)
    seconds = time.process_time() - began
    round_to_bfloat16_(changed)
    method, _, amount = name.rpartition(" ")
    return {
        "method": method or name,
        "amount": amount if method else "",
        "bytes": file_bytes(changed),
        "perplexity": round(perplexity(changed, judges, window_tokens=1024), 4),
        "change_cpu_s": round(seconds, 1),
    }


def known() -> list[dict[str, str]]:
    """Return the rows of the CSV, from small to large files."""
    return sorted(read_rows(NAME), key=lambda row: int(row["bytes"]))


def table() -> None:
    """Print the rows."""
    dense = next(row for row in known() if row["method"] == "dense")
    print("| file | MB | of the dense one | perplexity | times |")
    print("|---" * 5 + "|")
    for row in known():
        cells = [f"{row['method']} {row['amount']}".strip(), f"{int(row['bytes']) / 1e6:.0f}"]
        cells += [f"{int(row['bytes']) / int(dense['bytes']):.2f}", f"{float(row['perplexity']):,.1f}"]
        cells += [f"{float(row['perplexity']) / float(dense['perplexity']):.2f}"]
        print("| " + " | ".join(cells) + " |")


def plot() -> None:
    """Draw perplexity over bytes, where it is below 200."""
    from line_picture import save_lines

    lines: dict[str, list[tuple[float, float]]] = {}
    for row in known():
        if (value := float(row["perplexity"])) < 200:
            lines.setdefault(row["method"], []).append((int(row["bytes"]) / 1e6, value))
    title = "SmolLM2-135M: perplexity over bytes"
    labels = ("bytes of the file (MB)", "perplexity")
    print(save_lines(NAME, title, lines, labels=labels, y_ticks=(12, 16, 24, 32, 48, 64, 96, 128, 192)))


def main() -> None:
    """Measure what the CSV lacks, print the table or draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", action="store_true")
    arguments = parser.parse_args()
    if arguments.table or arguments.plot:
        (plot if arguments.plot else table)()
        return
    torch.set_num_threads(1)
    tokenizer = load_tokenizer("smollm2")
    stream = token_stream("english", tokenizer, JUDGES + CHOOSES + CALIBRATES)
    judges, chooses, calibrates = stream.split([JUDGES, CHOOSES, CALIBRATES])
    model = load_model("smollm2", tokenizer=tokenizer).eval()
    there = {f"{row['method']} {row['amount']}".strip() for row in known()}
    for name, change in rows(chooses, list(calibrates.view(-1, 4, 512))).items():
        if name in there:
            continue
        found = measured(name, model, change, judges)
        print(found, flush=True)
        write_rows(NAME, [found])
    table()


if __name__ == "__main__":
    main()
