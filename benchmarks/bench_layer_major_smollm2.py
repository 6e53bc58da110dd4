"""SmolLM2-135M on long sequences: one pass layer by layer against whole sequences, and what long documents teach it.

    scripts/bench layer_major_smollm2 --lengths 4096 8192 16384 32768     # rows in the CSV are skipped
    scripts/bench layer_major_smollm2 --perplexity [--steps 30]           # loss by position, before and after
    scripts/bench layer_major_smollm2 --precision [--length 2048] --stretch 1 16     # what float32 itself is worth

Steps: loss and gradients of one row (the standard library's sources, float32, no optimizer). `mst` is the whole
sequence with activation checkpointing and MsT, whose gradients the others are compared with; `checkpointing` is
transformers alone; `layer_major` goes layer by layer in chunks, MsT inside. Peaks are the tracker's, over all tensors,
beside the simulated one of the same step; seconds are the processor's, of one pass. `--simulate` gives the simulated
peaks alone, for lengths that this machine does not hold.

Precision: the same gradients in float32 against whole sequences in float64, with positions `stretch` times as far apart
(2048 tokens at 16 are as far apart as 32,768 are): a model is ill-conditioned beyond the positions that it learned.

Perplexity: AdamW layer-wise, steps of one row of `--length` tokens; held-out are files that no step has seen. Mean loss
of the tokens in each part of the row.
"""

import argparse
import csv
import json
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measurement import RESULTS, write_rows
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import featherweight as fw
from featherweight.memory.simulate import simulation
from featherweight.memory.tracker import StorageTracker
from featherweight.models import load_model, load_tokenizer
from featherweight.simulated import SimulatedDevice
from featherweight.training import LayerMajor

CSV, CURVE = RESULTS / "layer_major_smollm2.csv", RESULTS / "layer_major_positions.csv"
PRECISION = "layer_major_precision"
CHUNK = 2048
WAYS = ("mst", "layer_major", "checkpointing")
REFERENCE = "mst"
BUCKETS = (0, 512, 1024, 2048, 4096, 8192, 16384, 32768)
HELD_OUT = 4
"""Every fourth file of the standard library is held out."""


def document(length: int, held_out: bool, skip: int = 0) -> Tensor:
    """Return (1, length) tokens of sources, one file after another.

    Args:
        length: tokens.
        held_out: of files that no step sees, or of the others.
        skip: tokens before the first.
    """
    tokenizer, tokens = load_tokenizer("smollm2"), []
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for number, file in enumerate(files):
        if (number % HELD_OUT == 0) == held_out:
            tokens += tokenizer(file.read_text(encoding="utf-8", errors="ignore"))["input_ids"]
        if len(tokens) >= skip + length:
            return torch.tensor(tokens[skip : skip + length])[None]
    raise SystemExit(f"the standard library has {len(tokens)} tokens of this kind; asked for {skip + length}")


def prepared(model: nn.Module, way: str, chunk: int = CHUNK) -> Callable[[Tensor], Tensor]:
    """Change a model for one way and return its pass, which leaves gradients."""
    if way == "layer_major":
        fw.apply(model, fw.MsT())
        stream = LayerMajor(model, chunk_tokens=chunk)
        return lambda ids: stream.step({"input_ids": ids, "labels": ids})
    if way == "mst":
        fw.apply(model, fw.MsT(checkpoint=True))
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]

    def step(ids: Tensor) -> Tensor:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        return loss.detach()

    return step


def stretched(model: nn.Module, length: int) -> nn.Module:
    """Let a model take rows of a length."""
    model.config.max_position_embeddings = max(length, model.config.max_position_embeddings)  # type: ignore[union-attr]
    return model.train()


def simulated_peak(length: int, way: str) -> int:
    """Return the peak in bytes of one pass by shape alone."""
    from transformers import AutoModelForCausalLM

    config = load_model("smollm2").config
    with simulation(SimulatedDevice("cpu")) as tensors:
        model = stretched(AutoModelForCausalLM.from_config(config), length)
        step = prepared(model, way)
        with StorageTracker(model) as tracker:
            step(torch.randint(8, (1, length)))
    del tensors
    return tracker.peak_bytes


def measured(length: int, way: str, folder: Path) -> dict[str, Any]:
    """Run one pass and return its row; the reference leaves its gradients in a folder."""
    ids = document(length, held_out=False)
    model = stretched(load_model("smollm2"), length)
    step, began = prepared(model, way), time.process_time()
    with StorageTracker(model) as tracker:
        loss = float(step(ids))
    seconds, predicted = time.process_time() - began, simulated_peak(length, way)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    path = folder / f"{length}.safetensors"
    worst = mean = 0.0
    if way == REFERENCE:
        save_file(found, path, metadata={"loss": repr(loss)})
    else:
        worst, mean = compared(found, load_file(path))
    return {
        "way": way,
        "length": length,
        "chunk": CHUNK if way == "layer_major" else length,
        "loss": repr(round(loss, 8)),
        "gradient_error": f"{mean:.2e}",
        "worst_gradient_error": f"{worst:.2e}",
        "peak_mib": round(tracker.peak_bytes / 2**20, 1),
        "simulated_mib": round(predicted / 2**20, 1),
        "cpu_s": round(seconds, 1),
    }


def compared(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, float]:
    """Return the largest relative error of a parameter's gradient, and that of all gradients together."""
    assert found.keys() == expected.keys()
    errors = {name: float((found[name] - expected[name]).norm()) for name in expected}
    norms = {name: float(one.norm()) for name, one in expected.items()}
    together = sum(e**2 for e in errors.values()) ** 0.5 / sum(n**2 for n in norms.values()) ** 0.5
    return max(errors[name] / norms[name] for name in expected), together


def precision(length: int, stretch: float, chunk: int) -> None:
    """Compare gradients of one row in float32, whole and layer by layer, with those of the whole row in float64."""
    found: dict[str, dict[str, Tensor]] = {}
    ids = document(length, held_out=False)
    for name, way, dtype in (
        ("exact", REFERENCE, torch.float64),
        ("whole", REFERENCE, torch.float32),
        ("layer_major", "layer_major", torch.float32),
    ):
        model = stretched(load_model("smollm2"), length).to(dtype)
        model.model.rotary_emb.inv_freq *= stretch  # type: ignore[union-attr, operator]
        prepared(model, way, chunk)(ids)
        found[name] = {key: p.grad.double() for key, p in model.named_parameters() if p.grad is not None}
    rows = []
    for name, other in (("whole", "exact"), ("layer_major", "exact"), ("layer_major", "whole")):
        worst, together = compared(found[name], found[other])
        errors = {"gradient_error": f"{together:.2e}", "worst_gradient_error": f"{worst:.2e}"}
        rows.append({"length": length, "stretch": stretch, "chunk": chunk, "way": name, "against": other, **errors})
    print(*rows, sep="\n", flush=True)
    write_rows(PRECISION, rows)


def by_position(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the (S - 1,) losses of a row, computed in pieces of the head."""
    with torch.no_grad():
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0]  # type: ignore[operator, union-attr]
        parts = [
            nn.functional.cross_entropy(model.lm_head(one), label, reduction="none")  # type: ignore[operator]
            for one, label in zip(hidden[:-1].split(1024), ids[0, 1:].split(1024), strict=True)
        ]
    return torch.cat(parts)


def perplexity(length: int, steps: int, lr: float, rows: int, state: Path) -> None:
    """Fine-tune on long rows and append the loss by position, before and after; a state is kept after each step."""
    held_out = [document(length, held_out=True, skip=number * length) for number in range(rows)]
    model = stretched(load_model("smollm2"), length)
    optimizer = fw.optim.AdamW(model.parameters(), lr=lr)
    kept = state / f"positions_{length}.pt"
    curve: dict[str, list[float]] = {}
    done = 0
    if kept.exists():
        saved = torch.load(kept)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done, curve = saved["done"], json.loads(saved["curve"])
    else:
        curve["before"] = torch.stack([by_position(model, one) for one in held_out]).mean(0).tolist()
    fw.apply(model, fw.MsT())
    with fw.optim.layerwise(model, optimizer) as handle:
        stream = LayerMajor(model, handle, chunk_tokens=CHUNK)
        for number in range(done, steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (number + 1) / 3) * (1 - 0.9 * number / steps)
            ids = document(length, held_out=False, skip=number * length)
            loss = float(stream.step({"input_ids": ids, "labels": ids}))
            print(f"step {number + 1} of {steps}: loss {loss:.4f}", flush=True)
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "done": number + 1,
                    "curve": json.dumps(curve),
                },
                kept,
            )
    fw.remove(model, fw.MsT())
    curve["after"] = torch.stack([by_position(model, one) for one in held_out]).mean(0).tolist()
    rows_found = []
    for first, behind in zip(BUCKETS, BUCKETS[1:], strict=False):
        if first < length - 1:
            means = {name: sum(part) / len(part) for name, one in curve.items() if (part := one[first:behind])}
            words = {f"loss_{name}": round(mean, 4) for name, mean in means.items()}
            rows_found.append(
                {"length": length, "steps": steps, "lr": lr, "rows": rows, "from": first, "to": behind, **words}
            )
    print(*rows_found, sep="\n")
    write_rows(CURVE.stem, rows_found)


def main() -> None:
    """Measure what the CSV lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--ways", nargs="+", default=list(WAYS[:2]), choices=WAYS)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "featherweight-smollm2")
    parser.add_argument("--simulate", action="store_true", help="print simulated peaks of all ways and do nothing else")
    parser.add_argument("--perplexity", action="store_true")
    parser.add_argument("--precision", action="store_true")
    parser.add_argument("--stretch", type=float, nargs="+", default=[1, 16], help="of positions under --precision")
    parser.add_argument("--chunk", type=int, default=512, help="tokens of a chunk under --precision")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a row under --perplexity and --precision")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--rows", type=int, default=4, help="held-out rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.precision:
        for stretch in options.stretch:
            precision(options.length, stretch, options.chunk)
        return
    if options.perplexity:
        perplexity(options.length, options.steps, options.lr, options.rows, options.folder)
        return
    for length in options.lengths:
        for way in options.ways:
            if options.simulate:
                print(length, way, f"{simulated_peak(length, way) / 2**20:.1f} MiB", flush=True)
                continue
            known = list(csv.DictReader(CSV.open())) if CSV.exists() else []
            if (str(length), way) not in [(row["length"], row["way"]) for row in known]:
                row = measured(length, way, options.folder)
                print(row, flush=True)
                write_rows(CSV.stem, [row])


if __name__ == "__main__":
    main()
