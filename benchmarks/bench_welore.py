"""What does a rank reduction cost, by how ranks are chosen? A real model, and a small one trained here.

    scripts/bench welore --smollm2 --text test.txt --calibration valid.txt    # perplexity by rule and rank reduction
    scripts/bench welore --tune 0.5 --text test.txt --calibration valid.txt   # the same after fine-tuning the LRCs
    scripts/bench welore --speed                                              # tokens/s by rank reduction and storage
    scripts/bench welore --toy 0                                              # train the byte Llama, cut, tune
    scripts/bench welore --large FOLDER --layers 2                       # write a 7B-shaped checkpoint, compress it
    scripts/bench welore --table                                              # tables and pictures from the CSVs

SmolLM2-135M: perplexity of one text in windows of 1024 tokens without overlap, no extra first token. Rules at equal
rank reduction: the same share everywhere (uniform), the paper's threshold, energy, and the latter two with whitening on
16 windows of 512 tokens of the calibration text. Every cut matrix is stored pivoted or factored, whichever is smaller.
Toy: Llama, hidden 128, 4 layers, bytes of the English corpus, 1300 steps of 8 x 128 at lr 4e-3.
"""

import argparse
import copy
import itertools
import math
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
from measurement import read_rows, take_turns, write_rows
from torch import Tensor, nn

import featherweight as fw
from featherweight.linalg.factors import factorize
from featherweight.methods.low_rank_model import record_in_config
from featherweight.methods.welore import calibrate
from featherweight.methods.welore.method import build_layer
from featherweight.methods.welore.plan import find_targets, make_plan, shapes_of
from featherweight.methods.welore.whiten import root_of, whitened_factors
from featherweight.nn.low_rank_linear import matrix_of
from featherweight.nn.module_tree import replace_module
from featherweight.text.perplexity import perplexity

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
WINDOW = 1024
# Rule: (whitened, allocation)
RULES = {
    "uniform": (False, "uniform"),
    "threshold": (False, "threshold"),
    "energy": (False, "energy"),
    "energy, whitened": (True, "energy"),
    "uniform, whitened": (True, "uniform"),
    "threshold, whitened": (True, "threshold"),
}
Factors = dict[str, tuple[Tensor, Tensor]]


def full_factors(model: nn.Module, batches: list[Tensor] | None) -> tuple[Factors, dict[str, Tensor]]:
    """Return factors of full rank and the spectra; factors of any lower rank are their beginnings."""
    targets, _ = find_targets(model, fw.WeLore())
    matrices = {name: matrix_of(linear).float() for name, linear in targets.items()}
    factors: Factors = {}
    if batches is None:
        factors = {name: factorize(matrix, min(matrix.shape)) for name, matrix in matrices.items()}
    else:
        blocks = calibrate.find_blocks(model, targets)
        with calibrate.in_eval_mode(model), torch.no_grad():
            stream = calibrate.start(model, blocks, batches)
            for index, block in enumerate(blocks.modules):
                names = calibrate.inner_names(blocks.names[index], blocks.targets[index])
                moments = calibrate.moments_of(block, index, stream, names)
                roots: dict[int, Any] = {}
                for name, one in moments.items():
                    root = roots.setdefault(id(one), None) or root_of(one.second_NN, one.tokens)
                    roots[id(one)] = root
                    factors[name] = whitened_factors(matrices[name], root, min(matrices[name].shape))
    # Column r of the left factor is u_r * sqrt(s_r), so its square norm is s_r.
    spectra = {name: factors[name][0].double().square().sum(0) for name in matrices}
    return factors, spectra


def cut(model: nn.Module, factors: Factors, spectra: dict[str, Tensor], options: fw.WeLore) -> tuple[nn.Module, Any]:
    """Return a cut copy of a model from factors of full rank, and the plan."""
    model = copy.deepcopy(model)
    targets, skipped = find_targets(model, options)
    numel = sum(p.numel() for p in model.parameters())
    plan = make_plan(shapes_of(targets), spectra, options, skipped=skipped, total_numel=numel, total_bytes=4 * numel)
    for name, entry in plan.entries.items():
        if entry.is_cut:
            left, right = factors[name]
            replace_module(
                model, name, build_layer(targets[name], left[:, : entry.rank], right[: entry.rank], entry.storage)
            )
    record_in_config(model)
    return model, plan


def tokens_per_s(model: nn.Module, tokens: Tensor, runs: int = 3) -> float:
    """Return the speed of one forward pass over 256 tokens, the fastest of some."""
    times = []
    with torch.inference_mode():
        for _ in range(runs + 1):
            start = time.perf_counter()
            model(tokens[None, :256], use_cache=False)
            times.append(time.perf_counter() - start)
    return 256 / min(times[1:])


def smollm2(arguments: argparse.Namespace) -> None:
    """Measure every rule at every share that is not in the CSV yet, until the time is up."""
    from featherweight.models import load_model, load_tokenizer

    deadline = time.time() + arguments.seconds
    known = {(row["rule"], row["rank_reduction_asked"]) for row in read_rows("welore_smollm2")}
    wanted = [(rule, share) for rule in RULES for share in SHARES if (rule, str(share)) not in known]
    model, tokenizer = load_model("smollm2").eval(), load_tokenizer("smollm2")
    tokens = encode(tokenizer, arguments.text)[: arguments.tokens]
    if ("dense", "0.0") not in known:
        write_row("dense", 0.0, model, None, perplexity(model, tokens, window_tokens=WINDOW), tokens)
    for whitened in (False, True):
        todo = [(rule, share) for rule, share in wanted if RULES[rule][0] == whitened]
        if not todo or time.time() > deadline:
            continue
        cache = Path(arguments.cache) / f"factors-{whitened}.pt"
        if cache.exists():
            factors, spectra = torch.load(cache, weights_only=True)
        else:
            text = encode(tokenizer, arguments.calibration)[: 16 * 512].view(-1, 4, 512)
            factors, spectra = full_factors(model, list(text) if whitened else None)
            cache.parent.mkdir(parents=True, exist_ok=True)
            torch.save((factors, spectra), cache)
        for rule, share in todo:
            if time.time() > deadline:
                break
            changed, plan = cut(model, factors, spectra, fw.WeLore(rank_reduction=share, allocation=RULES[rule][1]))
            write_row(rule, share, changed, plan, perplexity(changed, tokens, window_tokens=WINDOW), tokens)


def tune(arguments: argparse.Namespace) -> None:
    """Cut the LRCs at one share, fine-tune them for some steps, and measure before and after."""
    from featherweight.models import load_model, load_tokenizer

    model, tokenizer = load_model("smollm2").eval(), load_tokenizer("smollm2")
    tokens = encode(tokenizer, arguments.text)[: arguments.tokens]
    train = encode(tokenizer, arguments.calibration)
    fw.apply(model, fw.WeLore(rank_reduction=arguments.tune, train=arguments.train, scope="lrc"))
    name = f"threshold, {arguments.train} tuned {arguments.steps} steps"
    before = perplexity(model, tokens, window_tokens=WINDOW)
    write_row("threshold, LRC alone", arguments.tune, model, None, before, tokens)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=arguments.lr, weight_decay=0.0)
    rows = train[: len(train) // 256 * 256].view(-1, 256)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    model.train()
    start, count = time.perf_counter(), 0
    for step in range(arguments.steps):
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / max(1, arguments.steps // 10))
            group["lr"] = arguments.lr * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * step / arguments.steps)))
        batch = rows[order[4 * step : 4 * step + 4]]
        loss = model(batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        count += batch.numel()
        print(f"step {step} loss {loss.item():.4f}", flush=True)
    speed = count / (time.perf_counter() - start)
    after = perplexity(model, tokens, window_tokens=WINDOW)
    write_row(name, arguments.tune, model, None, after, tokens, trained_tokens_per_s=round(speed, 1))


def write_row(
    rule: str,
    share: float,
    model: nn.Module,
    plan: Any,
    value: float,
    tokens: Tensor,
    trained_tokens_per_s: float | str = "",
) -> None:
    """Write one row of the table."""
    tensors = {t.data_ptr(): t for t in itertools.chain(model.parameters(), model.buffers()) if t.numel()}
    row = {
        "rule": rule,
        "rank_reduction_asked": share,
        "rank_reduction": round(plan.rank_reduction, 4) if plan is not None else "",
        "perplexity": round(value, 3),
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(t.nbytes for t in tensors.values()),
        "forward_tokens_per_s": round(tokens_per_s(model, tokens), 1),
        "trained_tokens_per_s": trained_tokens_per_s,
        "evaluated_tokens": len(tokens),
    }
    write_rows("welore_smollm2", [row])
    print(row, flush=True)


def speed(rounds: int = 7) -> None:
    """Time forward passes of cut models beside the dense one, in alternating rounds; whatever the text, 256 tokens."""
    from featherweight.models import load_model

    dense = load_model("smollm2").eval()
    tokens = torch.randint(dense.config.vocab_size, (1, 256), generator=torch.Generator().manual_seed(0))
    factors, spectra = full_factors(dense, None)
    for share in (0.1, 0.3, 0.5, 0.7):
        models: dict[str, nn.Module] = {"dense": dense}
        for storage in ("pivoted", "factored"):
            options = fw.WeLore(rank_reduction=share, storage=storage)  # type: ignore[arg-type]
            models[storage], _ = cut(dense, factors, spectra, options)
        with torch.inference_mode():
            timings = take_turns(
                {name: lambda model=model: model(tokens, use_cache=False) for name, model in models.items()}, rounds
            )
        base = timings["dense"]
        rows = [
            {
                "storage": name,
                "rank_reduction": share if name != "dense" else 0.0,
                "parameters": sum(p.numel() for p in models[name].parameters()),
                "tokens_per_s": round(256 / timing.median_s),
                "ratio_fastest": round(base.fastest_s / timing.fastest_s, 3),
                "ratio_median": round(base.median_s / timing.median_s, 3),
                "spread": round(timing.spread, 3),
            }
            for name, timing in timings.items()
        ]
        write_rows("welore_speed", rows)
        for row in rows:
            print(row, flush=True)


def encode(tokenizer: Any, path: str) -> Tensor:
    """Return the tokens of a text file, taken as it is."""
    text = Path(path).read_text(encoding="utf-8")
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"])


# ---- a small model that is trained here


def toy(arguments: argparse.Namespace) -> None:
    """Train the byte Llama with a seed, cut it by every rule, tune its LRCs."""
    from featherweight.text.task import TextConfig, TextTask

    seed = arguments.toy
    task = TextTask(TextConfig(model="tiny", corpus="english", seq_len=128, max_held_out_tokens=8192), seed=seed)
    cache = Path(arguments.cache) / f"toy-{seed}.pt"
    model = task.build_model()
    if cache.exists():
        model.load_state_dict(torch.load(cache, weights_only=True))
    else:
        fit(model, task, list(model.parameters()), steps=1300, lr=4e-3, weight_decay=0.1, seed=seed)
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), cache)
    dense = task.evaluate(model, micro_batch_size=16)["held_out_loss"]
    rows = [{"seed": seed, "rule": "dense", "rank_reduction": 0.0, "held_out_loss": round(dense, 5)}]
    batches = [b["input_ids"] for b in itertools.islice(task.batches("train", micro_batch_size=16, seed=9), 16)]
    for whitened in (False, True):
        factors, spectra = full_factors(model, batches if whitened else None)
        for rule, (is_whitened, allocation) in RULES.items():
            for share in (0.5, 0.6, 0.7, 0.8, 0.9) if is_whitened == whitened else ():
                options = fw.WeLore(rank_reduction=share, allocation=allocation)
                loss = task.evaluate(cut(model, factors, spectra, options)[0], micro_batch_size=16)["held_out_loss"]
                rows.append({"seed": seed, "rule": rule, "rank_reduction": share, "held_out_loss": round(loss, 5)})
    for train in ("before tuning", "lrc", "nlrc", "all"):
        changed = copy.deepcopy(model)
        fw.apply(
            changed, fw.WeLore(rank_reduction=0.7, scope="lrc", train="lrc" if train == "before tuning" else train)
        )
        if train != "before tuning":
            tunable = [p for p in changed.parameters() if p.requires_grad]
            fit(changed, task, tunable, steps=120, lr=1e-3, weight_decay=0.0, seed=seed + 100)
        loss = task.evaluate(changed, micro_batch_size=16)["held_out_loss"]
        rows.append({"seed": seed, "rule": f"LRC cut, {train}", "rank_reduction": 0.7, "held_out_loss": round(loss, 5)})
    write_rows("welore_toy", rows)
    for row in rows:
        print(row, flush=True)


def fit(
    model: nn.Module,
    task: Any,
    parameters: list[nn.Parameter],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    seed: int,
) -> None:
    """Train with AdamW at a constant rate after a warm-up of 20 steps."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    model.train()
    for step, batch in enumerate(itertools.islice(task.batches("train", micro_batch_size=8, seed=seed), steps)):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 20)
        total, items = task.loss(model, batch)
        (total / items).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step} loss {total.item() / items:.4f}", flush=True)


# ---- a model larger than the memory that is allowed


def write_large(folder: Path, layers: int) -> None:
    """Write a random checkpoint of LLaMA-2 7B's shapes, in bfloat16, one shard for each layer."""
    import runpy

    folder.mkdir(parents=True)
    script = Path(__file__).parents[1] / "tests/reference/compress_large.py"
    runpy.run_path(str(script))["write"](folder, layers)


def large(arguments: argparse.Namespace) -> None:
    """Compress a 7B-shaped checkpoint from file to file; a run that is cut short goes on the next time."""
    from featherweight.methods.welore.stream import compress_folder

    folder, deadline = Path(arguments.large), time.time() + arguments.seconds
    if not folder.exists():
        write_large(folder, arguments.layers)
        return
    clock = folder.with_name(f"{folder.name}.seconds")
    spent = float(clock.read_text()) if clock.exists() else 0.0
    start = time.time()

    class TimeIsUp(Exception):
        pass

    def progress(what: str, done: int, total: int) -> None:
        print(f"{what} {done}/{total} {time.time() - start:.0f} s", flush=True)
        if time.time() > deadline:
            raise TimeIsUp

    out = folder.with_name(f"{folder.name}-small")
    try:
        compress_folder(folder, out, fw.WeLore(rank_reduction=0.5), progress=progress)
    except TimeIsUp:
        return
    finally:
        clock.write_text(str(spent + time.time() - start))
    files = [sum(path.stat().st_size for path in one.glob("*.safetensors")) for one in (folder, out)]
    row = {
        "layers": arguments.layers,
        "bytes_before": files[0],
        "bytes_after": files[1],
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": round(spent + time.time() - start),
    }
    write_rows("welore_large", [row])
    print(row, os.getloadavg())


# ---- tables and pictures


def table() -> None:
    """Print the tables as Markdown and draw the pictures."""
    from featherweight.report import Report

    report = Report("WeLore")
    newest = {(row["rule"], float(row["rank_reduction_asked"])): row for row in read_rows("welore_smollm2")}
    rules = list(dict.fromkeys(rule for rule, _ in newest if rule != "dense"))
    dense = newest.get(("dense", 0.0))
    if dense:
        print("| rule | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |")
        print("|---" * (len(SHARES) + 1) + "|")
        for rule in rules:
            cells = [newest.get((rule, share), {}).get("perplexity", "") for share in SHARES]
            print(f"| {rule} | " + " | ".join(cells) + " |")
        curves = {}
        for rule in rules:
            points = [(100 * s, float(newest[rule, s]["perplexity"])) for s in SHARES if (rule, s) in newest]
            points = [(0.0, float(dense["perplexity"])), *points]
            curves[rule] = tuple(zip(*points, strict=True))
        report.add_curves("Perplexity of SmolLM2-135M", "ranks dropped (%)", "perplexity", curves, log_y=True)
        for share in SHARES:
            row = newest.get(("threshold", share))
            if row:
                print(share, {k: row[k] for k in ("parameters", "bytes", "forward_tokens_per_s")})
        report.save_picture(
            Path(__file__).parents[1] / "docs/images/welore_perplexity.png", "Perplexity of SmolLM2-135M"
        )
    toys = read_rows("welore_toy")
    for share in sorted({row["rank_reduction"] for row in toys}):
        for rule in dict.fromkeys(row["rule"] for row in toys if row["rank_reduction"] == share):
            by_seed = {
                r["seed"]: float(r["held_out_loss"]) for r in toys if (r["rule"], r["rank_reduction"]) == (rule, share)
            }
            mean = sum(by_seed.values()) / len(by_seed)
            print(share, rule, f"{mean:.4f}", {seed: round(loss, 4) for seed, loss in by_seed.items()})


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--smollm2", action="store_true")
    parser.add_argument("--tune", type=float)
    parser.add_argument("--train", default="lrc")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--toy", type=int)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--large")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--text")
    parser.add_argument("--calibration")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--cache", default="/tmp/bench_welore")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.smollm2:
        smollm2(arguments)
    if arguments.tune is not None:
        tune(arguments)
    if arguments.toy is not None:
        toy(arguments)
    if arguments.speed:
        speed()
    if arguments.large:
        large(arguments)
    if arguments.table:
        table()


if __name__ == "__main__":
    main()
