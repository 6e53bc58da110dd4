"""Layer by layer against one pass: largest memory and time of a training step, by the length of the sequence.

    scripts/bench layer_major                        # peaks and seconds of the processor, one row a length and way
    scripts/bench layer_major --lengths 2048 --rounds 3

Llama of random weights (hidden 128, 4 layers, 4 heads, 2 of keys, feed-forward 352, vocabulary of bytes), one row,
float32, AdamW layer-wise, one thread. Peaks are the tracker's, over all tensors on any device, copies on the host
included. Seconds are of the processor, in alternating rounds, median; the ratio is against activation checkpointing of
the same length. It runs on a CPU, with or without a card beside it.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measurement import machine, write_rows
from torch import Tensor, nn

import featherweight as fw
from featherweight.memory.tracker import StorageTracker
from featherweight.models import load_model
from featherweight.optim import AdamW, layerwise
from featherweight.training import ChunkMajor, LayerMajor

CHUNK = 512
WAYS = ("plain", "checkpointing", "mst", "mst_offload", "layer_major", "layer_major_keep", "chunk_major")
REFERENCE = "checkpointing"


def prepared(model: nn.Module, way: str) -> Callable[[Tensor], Tensor]:
    """Change a model for one way and return its training step, updates included."""
    handle = layerwise(model, AdamW(model.parameters(), lr=1e-3))
    if way in ("layer_major", "layer_major_keep", "chunk_major"):
        stream: LayerMajor | ChunkMajor = ChunkMajor(model, handle, chunk_tokens=CHUNK)
        if way != "chunk_major":
            attention: Any = "keep" if way == "layer_major_keep" else "repeat"
            stream = LayerMajor(model, handle, chunk_tokens=CHUNK, inputs="host", attention=attention)
        return lambda ids: stream.step({"input_ids": ids, "labels": ids})
    if way == "checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if way.startswith("mst"):
        checkpoint: Any = "offload" if way == "mst_offload" else True
        tokens = CHUNK if way == "mst_offload" else "auto"
        fw.apply(
            model,
            fw.MsT(checkpoint=checkpoint, tokenwise=way == "mst_offload", chunk_size=tokens, head_chunk_size=CHUNK),
        )

    def step(ids: Tensor) -> Tensor:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return loss.detach()

    return step


def measured(length: int, rounds: int, ways: list[str]) -> list[dict[str, Any]]:
    """Return a row for each way at one length."""
    ids = torch.randint(256, (1, length), generator=torch.Generator().manual_seed(0))
    base = load_model("tiny")
    base.config.max_position_embeddings = max(length, base.config.max_position_embeddings)
    models = {way: copy.deepcopy(base).train() for way in ways}
    steps = {way: prepared(model, way) for way, model in models.items()}
    losses = {way: float(step(ids)) for way, step in steps.items()}  # also creates the states
    peaks, seconds = {}, {way: [] for way in ways}
    for way, step in steps.items():
        with StorageTracker(models[way]) as tracker:
            step(ids)
        peaks[way] = tracker.peak_bytes
    for _ in range(rounds):
        for way, step in steps.items():
            began = time.process_time()
            step(ids)
            seconds[way].append(time.process_time() - began)
    reference = statistics.median(seconds[REFERENCE])
    return [
        {
            "way": way,
            "length": length,
            "chunk": CHUNK,
            "loss": round(losses[way], 6),
            "peak_mib": round(peaks[way] / 2**20, 1),
            "cpu_s": round(statistics.median(seconds[way]), 3),
            "ratio": round(statistics.median(seconds[way]) / reference, 3),
            "spread": round((max(seconds[way]) - min(seconds[way])) / statistics.median(seconds[way]), 3),
            **machine(),
        }
        for way in ways
    ]


def main() -> None:
    """Measure and append the rows to results/layer_major.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default="2048,4096,8192")
    parser.add_argument("--ways", default=",".join(WAYS), help=f"{REFERENCE} must be among them")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for length in map(int, arguments.lengths.split(",")):
        rows = measured(length, arguments.rounds, arguments.ways.split(","))
        for row in rows:
            print(row, flush=True)
        write_rows("layer_major", rows)


if __name__ == "__main__":
    main()
