"""Do the low-rank optimizers learn as well as AdamW where words are tokens? A Llama with BPE from scratch.

    scripts/bench learning_bpe --work FOLDER                          # what the CSV lacks; some hours of a core
    scripts/bench learning_bpe --work FOLDER --methods adamw galore
    scripts/bench learning_bpe --work FOLDER --size 24m --corpus FILE --device cuda
    scripts/bench learning_bpe --table [--size 24m]

`6m`: hidden 256, 6 layers, 4,096 tokens of BPE, 5.8 M parameters, 2 M tokens: six tenths of a pass over the sources of
Python's standard library. `24m`: hidden 384, 8 layers, 8,192 tokens of BPE, 60 M tokens. Batches of 16 x 256, bfloat16
autocast, warm-up over 10 % of the steps, cosine to 10 %, no weight decay, no clipping. Low-rank methods: rank a
quarter of the hidden size, gap 50, else their defaults. Every method has five points in runs of an eighth of the
length (seed 0): three rates at the middle multiplier for the embedding, then the two other multipliers at the best
rate. The point of least loss on the validation files trains in full on three seeds, and the loss on the test files is
reported. A finished run is not repeated.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_learning import build, state_bytes
from measurement import read_rows, write_rows
from torch import Tensor, nn

from featherweight.text.corpus import load_documents, split_documents

NAME, SEEDS = "learning_bpe", (0, 1, 2)
BATCH, SEQ_LEN, GAP, SHORT = 16, 256, 50, 8
CHECKED_TOKENS = 128 * SEQ_LEN


class Size(NamedTuple):
    """A model and how long it trains."""

    hidden: int
    layers: int
    heads: int
    vocabulary: int
    tokens: int


class Method(NamedTuple):
    """An optimizer, its learning rates, and its multipliers for the embedding; the middle one is tried first."""

    options: dict[str, Any]
    rates: tuple[float, float, float]
    factors: tuple[float, float, float]


class Data(NamedTuple):
    """Rows of token ids; (rows, tokens) int64."""

    train: Tensor
    validation: Tensor
    test: Tensor


SIZES = {"6m": Size(256, 6, 8, 4096, 2_000_000), "24m": Size(384, 8, 8, 8192, 60_000_000)}
SIGN = {"name": "galore", "residual": "equalized", "residual_weight": 0.1}
METHODS = {
    "adamw": Method({"name": "adamw"}, (1e-3, 2e-3, 4e-3), (1, 4, 16)),
    "galore": Method({"name": "galore"}, (1e-2, 2e-2, 4e-2), (0.25, 1, 4)),
    "galore_sign": Method(SIGN, (5e-3, 1e-2, 2e-2), (0.25, 1, 4)),
    "q_galore": Method({"name": "q_galore", "weights": "int8"}, (1e-2, 2e-2, 4e-2), (0.25, 1, 4)),
    "fira": Method({"name": "fira"}, (1e-2, 2e-2, 4e-2), (0.25, 1, 4)),
    "apollo": Method({"name": "apollo"}, (5e-3, 1e-2, 2e-2), (0.25, 1, 4)),
    "muon": Method({"name": "torch_muon"}, (5e-3, 1e-2, 2e-2), (1, 4, 16)),
}
LABELS = {
    "adamw": "AdamW",
    "galore": "GaLore",
    "galore_sign": "GaLore with the sign of what its subspace loses",
    "q_galore": "Q-GaLore, int8 weights",
    "fira": "Fira",
    "apollo": "APOLLO",
    "muon": "torch's Muon",
}


def load_data(options: argparse.Namespace) -> Data:
    """Return the token rows of a corpus, whose tokenizer is trained on its training documents; kept in the folder."""
    size = SIZES[options.size]
    path = options.work / f"{Path(options.corpus).name}-{size.vocabulary}.npz"
    if not path.exists():
        from tokenizers import ByteLevelBPETokenizer

        rest, test = split_documents(load_documents(options.corpus), 0.03)
        training, validation = split_documents(rest, 0.03, seed=1)
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(training, vocab_size=size.vocabulary, special_tokens=["<|endoftext|>"])
        parts = {"train": training, "validation": validation, "test": test}
        encoded = {
            name: np.concatenate([[*one.ids, 0] for one in tokenizer.encode_batch(documents)]).astype(np.uint16)
            for name, documents in parts.items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, train=encoded["train"], validation=encoded["validation"], test=encoded["test"])
    stored = np.load(path)
    rows = {
        name: torch.from_numpy(stored[name].astype(np.int64)[: len(stored[name]) // SEQ_LEN * SEQ_LEN]).view(
            -1, SEQ_LEN
        )
        for name in Data._fields
    }
    checked = CHECKED_TOKENS // SEQ_LEN
    return Data(rows["train"], rows["validation"][:checked], rows["test"][: 2 * checked])


def build_model(size: Size, seed: int) -> nn.Module:
    """Return a Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=round(size.hidden * 8 / 3 / 16) * 16,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            max_position_embeddings=SEQ_LEN,
            tie_word_embeddings=True,
        )
    )


def factor_at(step: int, steps: int) -> float:
    """Return the multiplier of the rates: warm-up over a tenth of the steps, cosine to 10 %."""
    warm_up = steps // 10
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def loss_of(model: nn.Module, ids_BL: Tensor) -> Tensor:
    """Return the mean loss of a batch in nats per token."""
    with torch.autocast(ids_BL.device.type, torch.bfloat16):
        return model(input_ids=ids_BL, labels=ids_BL, use_cache=False).loss


@torch.no_grad()
def evaluate(model: nn.Module, rows: Tensor, device: torch.device) -> float:
    """Return the mean loss of some rows."""
    model.eval()
    losses = [float(loss_of(model, part.to(device))) for part in rows.split(BATCH)]
    model.train()
    return statistics.mean(losses)


def train(method: str, lr: float, factor: float, seed: int, steps: int, data: Data, options: Any) -> dict[str, Any]:
    """Train once and return the row."""
    size, device = SIZES[options.size], torch.device(options.device)
    model = build_model(size, seed).to(device).train()
    low_rank = {} if method in ("adamw", "muon") else {"rank": size.hidden // 4, "update_proj_gap": GAP}
    chosen = {**METHODS[method].options, **low_rank, "lr": lr, "embedding_lr_factor": factor}
    optimizers = build(model, chosen, seed)
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: factor_at(step, steps)) for one in optimizers]
    generator = torch.Generator().manual_seed(seed)
    started, at, order = time.process_time(), 0, torch.randperm(len(data.train), generator=generator)
    for _ in range(steps):
        if at + BATCH > len(order):
            at, order = 0, torch.randperm(len(data.train), generator=generator)
        loss_of(model, data.train[order[at : at + BATCH]].to(device)).backward()
        at += BATCH
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    seconds = time.process_time() - started
    return {
        "size": options.size,
        "corpus": Path(options.corpus).name,
        "method": method,
        "options": json.dumps(chosen, sort_keys=True),
        "lr": lr,
        "embedding_lr_factor": factor,
        "seed": seed,
        "steps": steps,
        "parameters": sum(one.numel() for one in model.parameters()),
        "validation_loss": round(evaluate(model, data.validation, device), 5),
        "test_loss": round(evaluate(model, data.test, device), 5),
        "state_bytes": state_bytes(optimizers),
        "processor_s": round(seconds, 1),
    }


def known(size: str, method: str, steps: int) -> dict[tuple[float, float, int], dict[str, str]]:
    """Return the rows of a method in runs of some length, by (rate, multiplier, seed)."""
    rows = [r for r in read_rows(NAME) if (r["size"], r["method"], int(r["steps"])) == (size, method, steps)]
    return {(float(r["lr"]), float(r["embedding_lr_factor"]), int(r["seed"])): r for r in rows}


def run(method: str, lr: float, factor: float, seed: int, steps: int, data: Data, options: Any) -> float:
    """Return the validation loss of one run, which is made if the CSV lacks it."""
    if (lr, factor, seed) not in known(options.size, method, steps):
        row = train(method, lr, factor, seed, steps, data, options)
        print({key: value for key, value in row.items() if key != "options"}, flush=True)
        write_rows(NAME, [row])
    return float(known(options.size, method, steps)[lr, factor, seed]["validation_loss"])


def tune(method: str, steps: int, data: Data, options: Any) -> tuple[float, float]:
    """Return the best (rate, multiplier) of five points."""
    _, rates, factors = METHODS[method]
    lr = min(rates, key=lambda one: run(method, one, factors[1], 0, steps, data, options))
    return lr, min(factors, key=lambda one: run(method, lr, one, 0, steps, data, options))


def table(size: str) -> None:
    """Print each method's loss on the test files at its chosen point."""
    steps = SIZES[size].tokens // (BATCH * SEQ_LEN)
    print("| method | rate, multiplier | loss | against AdamW | state (MiB) | seconds of a step |")
    print("|---|---|---|---|---|---|")
    means: dict[str, float] = {}
    for method in METHODS:
        rows = list(known(size, method, steps).values())
        if not rows:
            continue
        losses = [float(row["test_loss"]) for row in rows]
        means[method] = statistics.mean(losses)
        spread = f" ± {statistics.stdev(losses) / math.sqrt(len(losses)):.3f}" if len(losses) > 1 else " (one seed)"
        against = f"{100 * (means[method] / means['adamw'] - 1):+.1f} %" if "adamw" in means else ""
        seconds = statistics.median(float(row["processor_s"]) for row in rows) / steps
        cells = [LABELS[method], f"{float(rows[0]['lr']):g}, {float(rows[0]['embedding_lr_factor']):g}"]
        cells += [f"{means[method]:.3f}{spread}", against, f"{int(rows[0]['state_bytes']) / 2**20:.1f}"]
        print("| " + " | ".join([*cells, f"{seconds:.2f}"]) + " |")


def main() -> None:
    """Run what the CSV lacks, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the tokens")
    parser.add_argument("--size", default="6m", choices=list(SIZES))
    parser.add_argument("--corpus", default="python", help="as in recipes: english, python, a file, a folder, hf:name")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        table(options.size)
        return
    if options.work is None:
        parser.error("--work is missing; give a folder in which the tokens are kept")
    data = load_data(options)
    steps = SIZES[options.size].tokens // (BATCH * SEQ_LEN)
    print(f"{data.train.numel():,} training tokens, {steps} steps of {BATCH} x {SEQ_LEN}", flush=True)
    chosen = {method: tune(method, steps // SHORT, data, options) for method in options.methods}
    for seed in options.seeds:
        for method, (lr, factor) in chosen.items():
            run(method, lr, factor, seed, steps, data, options)
    table(options.size)


if __name__ == "__main__":
    main()
