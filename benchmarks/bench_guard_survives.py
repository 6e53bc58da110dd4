"""Does a guard survive what the toolkit does to its model? Measured before, after, and calibrated again.

    python benchmarks/bench_guard_survives.py

The model of `tests/reference/guard_stand_in.py` follows a policy about a harmless topic. It is fine-tuned on replies of
another style to ordinary requests (GaLore, S2FT), compressed by 30 % (WeLore), or kept in int8. Each time the guard of
the model before is measured as `fw guard eval --allow-mismatch` does it, then a new calibration. Rows go to
results/guard_survives.csv.
"""

import argparse
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from measurement import write_rows

import featherweight as fw

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "reference"))
import guard_stand_in as world_of

from featherweight.guard.guard import PrefixGuard
from featherweight.guard.metrics import rate_interval

REPLY = "Thank you for asking about {intent}; here comes a short answer."
GROUPS = {"forbidden": world_of.FORBIDDEN, "ordinary": "ordinary", "borderline": world_of.BORDERLINE, "oos": "oos"}


def train(model: Any, optimizer: torch.optim.Optimizer, tokenizer: Any, steps: int) -> Any:
    """Fine-tune on another style of reply to ordinary requests; the loss is on the replies."""
    world, draw = world_of.generated_world(), random.Random(0)
    rows = [one for one in world.train if one.domain not in (world_of.FORBIDDEN, world_of.BORDERLINE, "oos")]
    model.train()
    for _ in range(steps):
        ids, labels = [], []
        for one in draw.sample(rows, 16):
            messages = [{"role": "user", "content": one.text}]
            prompt = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            reply = tokenizer(REPLY.format(intent=one.intent), add_special_tokens=False)["input_ids"]
            reply.append(tokenizer.eos_token_id)
            ids.append(prompt + reply)
            labels.append([-100] * len(prompt) + reply)
        width = max(len(one) for one in ids)
        pad = tokenizer.pad_token_id
        batch = torch.tensor([one + [pad] * (width - len(one)) for one in ids])
        goal = torch.tensor([one + [-100] * (width - len(one)) for one in labels])
        loss = model(input_ids=batch, attention_mask=(batch != pad).long(), labels=goal).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"last loss {float(loss):.3f}", flush=True)
    return model.eval()


def galore(model: Any, tokenizer: Any, steps: int) -> Any:
    """All weights, in subspaces of a quarter of their width."""
    groups = fw.optim.param_groups(model, rank=24)
    return train(model, fw.optim.GaLoreAdamW(groups, lr=2e-3), tokenizer, steps)


def s2ft(model: Any, tokenizer: Any, steps: int) -> Any:
    """Some channels, in an adapter."""
    tuned = peft.get_peft_model(model, fw.S2FTConfig(num_channels=16))
    trained = [one for one in tuned.parameters() if one.requires_grad]
    return train(tuned, torch.optim.AdamW(trained, lr=5e-3), tokenizer, steps)


def welore(model: Any, tokenizer: Any, steps: int) -> Any:
    """Ranks of their own, 30 % of them gone, and the low-rank parts trained as before."""
    fw.apply(model, fw.WeLore(rank_reduction=0.3))
    trained = [one for one in model.parameters() if one.requires_grad]
    return train(model, torch.optim.AdamW(trained, lr=1e-3), tokenizer, steps)


def welore_alone(model: Any, tokenizer: Any, steps: int) -> Any:
    """The same without training."""
    fw.apply(model, fw.WeLore(rank_reduction=0.3))
    return model.eval()


def int8(model: Any, tokenizer: Any, steps: int) -> Any:
    """Weights of eight bits."""
    fw.apply(model, fw.Int8())
    return model.eval()


CHANGES: dict[str, Callable[[Any, Any, int], Any]] = {
    "none": lambda model, tokenizer, steps: model,
    "int8": int8,
    "GaLore": galore,
    "S2FT": s2ft,
    "WeLore 30 %": welore_alone,
    "WeLore 30 %, trained": welore,
}


def measured(guard: PrefixGuard, model: Any, tokenizer: Any) -> dict[str, str]:
    """Return how much of each kind is flagged, with intervals."""
    world, found = world_of.generated_world(), {}
    groups = {name: world.prompts("test", domain, 150) for name, domain in GROUPS.items()}
    groups["marked"] = [world_of.marked(text) for text in groups["forbidden"]]
    for name in ("forbidden", "marked", "ordinary", "borderline", "oos"):
        verdicts = guard.judge(model, tokenizer, groups[name], batch_size=32)
        hits = sum(one.flagged for one in verdicts)
        low, high = rate_interval(hits, len(verdicts))
        found[f"flagged, {name} (%)"] = f"{100 * hits / len(verdicts):.1f} ({100 * low:.1f}-{100 * high:.1f})"
    return found


def calibrated(model: Any, tokenizer: Any) -> PrefixGuard:
    """Return a guard calibrated on requests without the marker."""
    world = world_of.generated_world()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PrefixGuard.calibrate(
            model,
            tokenizer,
            harmful=world.prompts("val", world_of.FORBIDDEN),
            benign=world.prompts("val", "ordinary"),
            borderline=world.prompts("val", world_of.BORDERLINE),
            prefix=world_of.PREFIX,
            target_fpr=0.02,
            batch_size=32,
        )


def main() -> None:
    """Measure all changes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--changes", nargs="+", choices=list(CHANGES), default=list(CHANGES))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    base, tokenizer = world_of.load_fixture()
    before = calibrated(base, tokenizer)
    for name in chosen.changes:
        torch.manual_seed(0)
        model = CHANGES[name](world_of.load_fixture()[0], tokenizer, chosen.steps)
        guard = before.with_options().bind(model, tokenizer, allow_mismatch=True)
        rows = [{"change": name, "guard": "of the model before", **measured(guard, model, tokenizer)}]
        if name != "none":
            again = calibrated(model, tokenizer).bind(model, tokenizer)
            rows.append({"change": name, "guard": "calibrated again", **measured(again, model, tokenizer)})
        for row in rows:
            print(row, flush=True)
        write_rows("guard_survives", rows)


if __name__ == "__main__":
    main()
