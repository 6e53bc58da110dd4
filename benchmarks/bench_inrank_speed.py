"""Step time with factors against dense layers, at the width of GPT-2 medium.

    scripts/bench inrank_speed [--rounds 7] [--tokens 512] [--layers 2]

GPT-2 with hidden 1024 and 16 heads, two of its 24 layers and as large a part of its 50,257 words, so that the head has
the share of the arithmetic that it has in the whole model; random weights, float32. A step is forward, backward,
clipping and AdamW (fused). Candidates take turns in one process; seconds are of the processor, so other work on the
machine counts little. FLOPs are counted in the same step.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from bench_inrank_memory import MODEL, RANK, ROWS
from measurement import write_rows
from torch.utils.flop_counter import FlopCounterMode

import featherweight as fw
from featherweight.models import load_model

NAME = "inrank_speed"


def step_of(row: str, layers: int, tokens: int) -> Callable[[], None]:
    """Return the training step of a row."""
    torch.manual_seed(0)
    model = load_model({**MODEL, "n_layer": layers, "vocab_size": MODEL["vocab_size"] * layers // MODEL["n_layer"]})
    if (options := ROWS[row]) is not None:
        fw.apply(model, fw.InRank(**options))
    model.train()
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    ids = torch.randint(1000, (1, tokens), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Measure all rows in alternating rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    options = parser.parse_args()
    steps = {row: step_of(row, options.layers, options.tokens) for row in ROWS}
    flops, seconds = {}, {row: [] for row in ROWS}
    for row, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step()
        flops[row] = counter.get_total_flops()
    for _ in range(options.rounds):
        for row, step in steps.items():
            began = time.process_time()
            step()
            seconds[row].append(time.process_time() - began)
    dense = statistics.median(seconds["dense"])
    for row, found in seconds.items():
        result = {
            "row": row,
            "rank": RANK,
            "layers": options.layers,
            "tokens": options.tokens,
            "cpu_s": round(statistics.median(found), 4),
            "ratio": round(statistics.median(found) / dense, 3),
            "spread": round((max(found) - min(found)) / statistics.median(found), 3),
            "flop_ratio": round(flops[row] / flops["dense"], 3),
        }
        print(result, flush=True)
        write_rows(NAME, [result])


if __name__ == "__main__":
    main()
