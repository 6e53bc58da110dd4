"""DPO and KTO of a real model: margins on held-out questions, and peak memory beside TRL's trainers in the same run.

    scripts/bench preference --data train.json [--methods dpo kto] [--seeds 0] [--steps 24] [--work FOLDER]
    scripts/bench preference --memory

The data are questions with options of LLM-Adapters, such as its ARC-Easy: the right option is the chosen answer, the
first wrong one the rejected answer; 120 rows to train on, 40 to measure on. The model is SmolLM2-135M-Instruct in
float32 with LoRA of rank 16 on its linear layers. A finished run is not repeated.

`--memory` makes two steps of DPO, whole and with LoRA, by this package and by TRL, each with the same model, pairs of
256 tokens, micro-batch and optimizer (torch's AdamW), and prints the largest number of bytes that torch held at a time,
by `fw.measure_memory`; TRL with a second copy of the model (its default) and with reference log-probabilities computed
before, as here. That second model is read from a file, which the tracker does not see: its weights are to be added.
"""

import argparse
import gc
import json
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measurement import write_rows

import featherweight as fw

TRAINED, HELD_OUT = 120, 40
TOKENS, PAIRS = 256, 2
ANSWERS = ("chosen", "rejected")
PARTS = ("weights", "gradients", "optimizer_state", "activations", "temporaries", "other")


def pairs(source: Path) -> Iterator[dict[str, str]]:
    """Yield the questions of a file as preferences."""
    for row in json.loads(source.read_text()):
        found = re.split(r"Answer\d: ?", row["instruction"].split("\n\nAnswer format")[0])
        question, options = found[0].partition(": ")[2].strip(), [one.strip() for one in found[1:]]
        right = int(row["answer"].removeprefix("answer")) - 1
        if len(options) > 1 and right < len(options) and options[right] != options[right - 1]:
            yield {"prompt": question, "chosen": options[right], "rejected": options[right - 1]}


def write_tables(source: Path, folder: Path) -> None:
    """Write the rows to train on and those to measure on."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(pairs(source))
    for name, part in (("train", rows[:TRAINED]), ("held_out", rows[TRAINED : TRAINED + HELD_OUT])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def learn(options: argparse.Namespace, method: str, seed: int) -> None:
    """Train one method and write a row for each evaluation."""
    folder = options.work / f"{method}-{options.lr:g}-{options.steps}-seed{seed}"
    if (folder / "summary.json").exists():
        return
    recipe = {
        "task": {
            "name": "preference",
            "method": method,
            "data": str(options.work / "train.jsonl"),
            "held_out": str(options.work / "held_out.jsonl"),
            "max_tokens": 192,
        },
        "methods": [{"lora": {"r": 16}}],
        "optimizer": {"name": "adamw", "lr": options.lr},
        "schedule": {"name": "linear", "warmup_fraction": 0.1},
        "steps": options.steps,
        "micro_batch_size": 4,
        "accumulation_steps": 2,
        "seed": seed,
        "evaluate_every": max(1, options.steps // 3),
        "save_model": False,
    }
    started = time.process_time()
    run = fw.train(recipe, out=folder, resume=folder.exists())
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    rows = [
        {
            "method": method,
            "lr": options.lr,
            "seed": seed,
            "step": line["step"],
            **{key: round(line[key], 4) for key in ("held_out_loss", "reward_margin", "reward_accuracy")},
            "processor_s": round(time.process_time() - started, 1),
        }
        for line in lines
        if "reward_margin" in line
    ]
    print(*rows, write_rows("preference", rows), sep="\n")


def memory(options: argparse.Namespace) -> None:
    """Measure two steps of DPO by this package and by TRL."""
    rows = []
    for adapter in ("none", "lora r=16"):
        for trainer in ("featherweight", "TRL", "TRL, reference computed before"):
            peak, parts = _peak(trainer, adapter != "none", options.work)
            row = {"trainer": trainer, "adapter": adapter, "pairs": PAIRS, "tokens": TOKENS, "peak_bytes": peak}
            rows.append(row | {f"{name}_bytes": parts.get(name, 0) for name in PARTS})
            print(rows[-1], flush=True)
            gc.collect()
    print(write_rows("preference_memory", rows))


def _peak(trainer: str, has_adapter: bool, work: Path) -> tuple[int, dict[str, int]]:
    from featherweight.models.load import load_model, load_tokenizer

    tokenizer: Any = load_tokenizer("smollm2")
    model: Any = load_model("smollm2", tokenizer=tokenizer)
    torch.manual_seed(0)
    rows = [_fitted(tokenizer, f"question {number}") for number in range(8)]
    if trainer == "featherweight":
        return _our_peak(model, has_adapter, rows, work)
    return _trl_peak(model, tokenizer, has_adapter, rows, work, is_computed_before=trainer != "TRL")


def _fitted(tokenizer: Any, prompt: str) -> dict[str, str]:
    """Return a pair whose answers end at `TOKENS` tokens, prompt and template included."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]
    room = TOKENS - len(tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))["input_ids"])
    words = "word" + " word" * (room - 2)
    return {"prompt": prompt, "chosen": f"{words} yes", "rejected": f"{words} no"}


def _our_peak(model: Any, has_adapter: bool, rows: list[dict[str, str]], work: Path) -> tuple[int, dict[str, int]]:
    from featherweight.text.preference_task import PreferenceConfig, PreferenceTask

    path = work / "memory.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"data": str(path), "held_out": 0.2, "max_tokens": TOKENS}
    task = PreferenceTask(PreferenceConfig.parse(config), seed=0)
    if has_adapter:
        fw.apply(model, fw.LoRA(r=16))
    task.prepare(model)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-5)
    batches = task.batches("train", micro_batch_size=PAIRS, seed=0)
    model.train()
    with fw.measure_memory(model, optimizer) as measured:
        for _ in range(2):
            batch = next(batches)
            assert batch["input_ids"].shape[-1] == TOKENS
            loss, items = task.loss(model, batch)
            (loss / items).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            del loss
    return measured.peak_bytes, measured.peak_by_category


def _trl_peak(
    model: Any, tokenizer: Any, has_adapter: bool, rows: list[dict[str, str]], work: Path, *, is_computed_before: bool
) -> tuple[int, dict[str, int]]:
    import datasets
    import peft
    import trl

    from featherweight.models.load import load_model

    if has_adapter:
        model = peft.get_peft_model(model, peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    data = datasets.Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": row["prompt"]}]}
            | {side: [{"role": "assistant", "content": row[side]}] for side in ANSWERS}
            for row in rows
        ]
    )
    arguments = trl.DPOConfig(
        str(work / "trl"), report_to=[], use_cpu=True, bf16=False, max_length=TOKENS, max_steps=2, beta=0.1,
        per_device_train_batch_size=PAIRS, gradient_checkpointing=False, save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False, precompute_ref_log_probs=is_computed_before, max_grad_norm=0.0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-5)
    with fw.measure_memory(model, optimizer) as measured:
        # With an adapter TRL takes the model without it as reference; it reads a second copy from a disk otherwise.
        reference = None if has_adapter or is_computed_before else load_model("smollm2", tokenizer=tokenizer)
        trainer = trl.DPOTrainer(
            model, ref_model=reference, args=arguments, train_dataset=data, processing_class=tokenizer,
            optimizers=(optimizer, None),
        )  # fmt: skip
        measured.reset_peak()
        trainer.train()
    return measured.peak_bytes, measured.peak_by_category


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--methods", nargs="+", default=["dpo", "kto"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs/preference"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    if options.memory:
        memory(options)
        return
    if options.data is None:
        parser.error("--data is missing: a file of questions with options, or --memory")
    write_tables(options.data, options.work)
    for seed in options.seeds:
        for method in options.methods:
            learn(options, method, seed)


if __name__ == "__main__":
    main()
