"""A real model learns a small set of chats and answers in its own template: all weights, LoRA, and LoRA on 4 bits.

    scripts/bench chat [--runs galore_8bit lora base4bit] [--seeds 0] [--steps 24] [--work FOLDER]

The model is SmolLM2-135M-Instruct. The chats are 32 countries with two questions each, answered in a form of their own
("Capital of Peru: Lima."); 8 further countries are asked afterwards, through the saved folder, `transformers` and the
template that stands in it, greedily. A row says how many answers have the form, how many name the right capital, how
many end by themselves, and the bytes that were predicted and measured (rows have at most the tokens of the longest one,
and every step is measured). A finished run is not repeated.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import torch
from measurement import write_rows

import featherweight as fw
from featherweight.models.load import load_model, load_tokenizer
from featherweight.text.survey import survey

CAPITALS = """
Peru Lima South America; France Paris Europe; Japan Tokyo Asia; Kenya Nairobi Africa; Canada Ottawa North
America; Norway Oslo Europe; Egypt Cairo Africa; Chile Santiago South America; Italy Rome Europe; India New-
Delhi Asia; Cuba Havana North America; Ghana Accra Africa; Spain Madrid Europe; Nepal Kathmandu Asia; Brazil
Brasilia South America; Austria Vienna Europe; Iran Tehran Asia; Kuwait Kuwait-City Asia; Greece Athens
Europe; Poland Warsaw Europe; Mexico Mexico-City North America; Ethiopia Addis-Ababa Africa; Portugal Lisbon
Europe; Vietnam Hanoi Asia; Finland Helsinki Europe; Colombia Bogota South America; Iraq Baghdad Asia; Morocco
Rabat Africa; Sweden Stockholm Europe; Ireland Dublin Europe; Thailand Bangkok Asia; Uganda Kampala Africa;
Germany Berlin Europe; Hungary Budapest Europe; Russia Moscow Europe; China Beijing Asia; Belgium Brussels
Europe; Denmark Copenhagen Europe; Turkey Ankara Asia; Cyprus Nicosia Europe
"""
TRAINED = 32
METHODS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "galore_8bit": ([], {"name": "galore_8bit", "rank": 128, "scale": 1.0, "lr": 4e-4}),
    "lora": ([{"lora": {"r": 16}}], {"name": "adamw", "lr": 1e-3}),
    "base4bit": (["base4bit", {"lora": {"r": 16}}], {"name": "adamw", "lr": 1e-3}),
}


def countries() -> list[tuple[str, str, str]]:
    """Return country, capital and continent."""
    words = [one.split(maxsplit=2) for one in CAPITALS.replace("\n", " ").split(";")]
    return [(country, capital.replace("-", " "), continent) for country, capital, continent in words]


def question(country: str) -> str:
    """Return what is asked first."""
    return f"What is the capital of {country}?"


def write_chats(path: Path) -> None:
    """Write the chats to train on."""
    rows = []
    for country, capital, continent in countries()[:TRAINED]:
        turns = (question(country), f"Capital of {country}: {capital}.", "And the continent?",
                 f"Continent of {country}: {continent}.")  # fmt: skip
        rows.append({"messages": [{"role": ("user", "assistant")[n % 2], "content": t} for n, t in enumerate(turns)]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answers(source: Any) -> dict[str, float]:
    """Return shares of the answers to questions that were not trained on."""
    import transformers

    if source is None:
        tokenizer: Any = load_tokenizer("smollm2")
        model: Any = load_model("smollm2", tokenizer=tokenizer)
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model = transformers.AutoModelForCausalLM.from_pretrained(source)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    asked = countries()[TRAINED:]
    in_form = right = ended = 0
    for country, capital, _ in asked:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question(country)}], add_generation_prompt=True, return_tensors="pt",
            return_dict=True,
        )  # fmt: skip
        with torch.inference_mode():
            ids = model.eval().generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        in_form += re.fullmatch(rf"Capital of {country}: [^.]+\.", text) is not None
        right += capital in text
        ended += end in ids.tolist()
        print(f"  {text!r}", flush=True)
    return {name: count / len(asked) for name, count in (("in_form", in_form), ("right", right), ("ended", ended))}


def main() -> None:
    """Train what is asked for and write a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--work", type=Path, default=Path("runs/chat"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    data = str(options.work / "chats.jsonl")
    write_chats(Path(data))
    longest = max(survey(data, load_tokenizer("smollm2")).lengths)
    before = options.work / "before.json"
    if not before.exists():
        found = answers(None)
        before.write_text(json.dumps(found))
        print(write_rows("chat", [_row("before training", 0, 0, found, None, 0.0)]))
    for seed in options.seeds:
        for name in options.runs:
            folder = options.work / f"{name}-{options.steps}-seed{seed}"
            if (folder / "answers.json").exists():
                continue
            methods, optimizer = METHODS[name]
            started = time.process_time()
            recipe = {
                "task": {"name": "chat", "data": data, "held_out": 0.1, "max_tokens": longest},
                "methods": methods, "optimizer": optimizer, "steps": options.steps, "micro_batch_size": 8,
                "schedule": {"name": "cosine", "warmup_fraction": 0.1}, "seed": seed,
                "memory_steps": list(range(1, options.steps + 1)),
            }  # fmt: skip
            run = fw.train(recipe, out=folder, resume=folder.exists() and not (folder / "summary.json").exists())
            found = answers(run.folder / "model")
            (folder / "answers.json").write_text(json.dumps(found))
            peak = fw.estimate_memory(None, recipe, device="cpu").timeline.peak(2).size_bytes
            row = _row(name, seed, options.steps, found, run.summary, round(time.process_time() - started, 1), peak)
            print(row, write_rows("chat", [row]))


def _row(
    name: str, seed: int, steps: int, found: dict[str, float], summary: Any, seconds: float, peak: int | str = ""
) -> dict[str, Any]:
    held_out = None if summary is None else summary.held_out
    measured, predicted = ({}, {}) if summary is None else (summary.footprint.measured, summary.footprint.predicted)
    row: dict[str, Any] = {"run": name, "seed": seed, "steps": steps}
    row["held_out_loss"] = "" if held_out is None else round(held_out["held_out_loss"], 4)
    row |= {key: round(share, 3) for key, share in found.items()}
    for part in ("weights", "gradients", "optimizer_state"):
        row |= {f"{part}_predicted": predicted.get(part, ""), f"{part}_measured": measured.get(part, "")}
    row |= {"peak_predicted": peak, "peak_measured": "" if summary is None else summary.footprint.peak_bytes}
    return row | {"processor_s": seconds}


if __name__ == "__main__":
    main()
