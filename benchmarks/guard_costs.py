"""What a guard costs: processor seconds of a request in each way, and the throughput of the engine."""

import time
from typing import Any

import torch
from guard_judges import judge_for, world_of

from featherweight.guard.linear import Linear
from featherweight.guard.options import PREFIX_STATES, READ_AT, GuardOptions, default_layers

TIMED = ("prefix_hidden", "probe_hidden")
"""Tiers whose costs are measured."""


def passing_guard(base: GuardOptions, tier: str, size: int, device: str = "cpu") -> Any:
    """Return a guard of a tier of hidden states that lets everything pass, which costs most."""
    from featherweight.guard.guard import PrefixGuard

    ahead = min(base.prefix_states, len(base.prefix_ids)) - 1 if tier == "prefix_hidden" else 0
    width = (len(base.layers) + ahead) * size
    parts = torch.zeros(width), torch.ones(width), torch.zeros(width), torch.zeros(())
    score = Linear(*(part.to(device) for part in parts))
    return PrefixGuard(GuardOptions.parse({**base.to_dict(), "stages": [{"tier": tier}]}), {tier: score})


def latency(prompt_tokens: int, answer_tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Return processor seconds of a request that passes, in each way, against an unguarded one, in turns."""
    from featherweight.guard.decoding import AnswerRules, answers, judge_prompts
    from featherweight.models.generation import generate, prefill
    from featherweight.models.load import load_model, load_tokenizer

    tokenizer = load_tokenizer("smollm2")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_model("smollm2", dtype=dtype, tokenizer=tokenizer).eval().to(device)
    ids = torch.randint(100, 40000, (1, prompt_tokens), generator=torch.Generator().manual_seed(0))
    rules = AnswerRules(max_new_tokens=answer_tokens)
    base = judge_for(model, tokenizer, world_of.PREFIX, 12).options
    guards = {tier: passing_guard(base, tier, model.config.hidden_size, device) for tier in READ_AT if tier in TIMED}

    def guarded(tier: str, parallel: bool) -> None:
        judged = judge_prompts(guards[tier], model, ids, None, rules, parallel=parallel)
        assert len(list(answers(judged, rules))) == answer_tokens

    ways = {
        "unguarded": lambda: generate(prefill(model, ids), max_new_tokens=answer_tokens),
        "prefix_hidden": lambda: guarded("prefix_hidden", False),
        "probe of 12, sequential": lambda: guarded("probe_hidden", False),
        "probe of 12, parallel": lambda: guarded("probe_hidden", True),
    }
    clock = time.process_time if device == "cpu" else time.perf_counter
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            begin = clock()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            found[name].append(clock() - begin)
    columns = ("seconds (median)", "ratio (median of rounds)", "ratio, spread")
    asked = {"prompt": prompt_tokens, "answer": answer_tokens}
    return [{"way": name, **asked, **_against(one, found["unguarded"], columns)} for name, one in found.items()]


def parts(prompt_tokens: int, answer_tokens: int, rounds: int, probe_tokens: int = 12) -> list[dict[str, Any]]:
    """Return what each way costs by its parts: passes over the prompt and the prefix, and steps of one row and of two.

    Whole answers take so long that the load of a shared machine changes within one; the parts of a round take seconds.
    """
    from featherweight.models.decoding_rows import keep_rows
    from featherweight.models.generation import Decoding, extend, fork, prefill
    from featherweight.models.load import load_model, load_tokenizer

    tokenizer = load_tokenizer("smollm2")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_model("smollm2", dtype=dtype, tokenizer=tokenizer).eval().to(device)
    ids = torch.randint(100, 40000, (1, prompt_tokens), generator=torch.Generator().manual_seed(0))
    forced = torch.tensor(judge_for(model, tokenizer, world_of.PREFIX, probe_tokens).options.forced_ids)
    clock = time.process_time if device == "cpu" else time.perf_counter

    def seconds(work: Any) -> float:
        begin = clock()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - begin

    def forced_pass(decoding: Decoding) -> float:
        return seconds(lambda: extend(decoding, forced, last_logits_only=True, output_hidden_states=True))

    def steps(decoding: Decoding, hidden: bool) -> float:
        tokens = decoding.logits.argmax(dim=1)[:, None]
        count = probe_tokens - 1
        return seconds(lambda: [extend(decoding, tokens, output_hidden_states=hidden) for _ in range(count)]) / count

    found: dict[str, list[float]] = {"prefix_hidden": [], "sequential": [], "parallel": []}
    for _ in range(rounds):
        read = seconds(lambda: prefill(model, ids, output_hidden_states=True))
        start = prefill(model, ids)
        one, two = fork(start), fork(start)
        keep_rows(two, [0, 0])
        step = steps(fork(start), False)
        prefix = forced_pass(one)
        probe = steps(one, True)
        both = forced_pass(two)
        beside = steps(two, True)
        whole = read + (answer_tokens - 1) * step
        found["prefix_hidden"].append(1 + prefix / whole)
        found["sequential"].append(1 + (prefix + (probe_tokens - 1) * probe) / whole)
        added = both - step + (probe_tokens - 1) * (beside - step)
        found["parallel"].append(1 + added / whole)
    rows = []
    for name, ratios in found.items():
        values = torch.tensor(ratios)
        row: dict[str, Any] = {"way": f"{name}, by parts", "prompt": prompt_tokens, "answer": answer_tokens}
        row["seconds (median)"] = ""
        row["ratio (median of rounds)"] = f"{float(values.median()):.3f}"
        row["ratio, spread"] = f"{float(values.min()):.3f}-{float(values.max()):.3f}"
        rows.append(row)
    return rows


def serving(requests: int, answer_tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Return the throughput of the engine with a guard against the same without one, requests all at once.

    The engines run at the same time, so that the load of a shared machine is the same for all, and the processor
    seconds of each one's own thread are counted. The model is a Llama of 8 M parameters with random weights; the guards
    let everything pass, which costs most.
    """
    import asyncio
    import threading

    from transformers import LlamaConfig, LlamaForCausalLM

    from featherweight.serving.engine import Engine
    from featherweight.serving.job import Ended, Job

    torch.manual_seed(0)
    shape = {"hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 688, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8192, max_position_embeddings=1024, **shape)).eval()
    base = GuardOptions(
        prefix_text="x",
        prefix_ids=list(range(7)),
        probe_tokens=12,
        layers=default_layers(6),
        prefix_states=PREFIX_STATES,
        stages=[{"tier": "probe_hidden"}],
    )
    guards: dict[str, Any] = {"without a guard": None}
    guards |= {tier: passing_guard(base, tier, 256) for tier in TIMED}
    # Where a calibrated guard is sure, its probe ends early; every request needs all 12 tokens above.
    guards["probe_hidden, clears after 4 tokens"] = guards["probe_hidden"].with_options(
        early_exit=[{"tokens": 4, "clear_at_most": 0.0}]
    )
    prompts = torch.randint(10, 8000, (requests, 200)).tolist()

    async def ask(engine: Engine) -> int:
        jobs = [Job(ids, max_new_tokens=answer_tokens) for ids in prompts]
        for job in jobs:
            engine.submit(job)
        for job in jobs:
            while not isinstance(await job.events.get(), Ended):
                pass
        return sum(job.written for job in jobs)

    async def ask_all(engines: Any) -> list[int]:
        return await asyncio.gather(*(ask(engine) for engine in engines))

    found: dict[str, list[float]] = {name: [] for name in guards}
    for _ in range(rounds):
        engines, clocks = [], []
        for guard in guards.values():
            others = set(threading.enumerate())
            engines.append(Engine(model, stop_token_ids=[], guard=guard, max_batch=requests))
            (thread,) = set(threading.enumerate()) - others
            clocks.append(time.pthread_getcpuclockid(thread.ident or 0))
        tokens = asyncio.run(ask_all(engines))
        for name, count, clock in zip(guards, tokens, clocks, strict=True):
            found[name].append(count / time.clock_gettime(clock))
        for engine in engines:
            engine.close()
    columns = ("tokens by processor second (median)", "share of without (median of rounds)", "share, spread")
    asked = {"requests at once": requests, "answer": answer_tokens}
    plain = found["without a guard"]
    return [{"guard": name, **asked, **_against(one, plain, columns, digits=0)} for name, one in found.items()]


def _against(found: list[float], plain: list[float], columns: tuple[str, str, str], digits: int = 3) -> dict[str, str]:
    """Return the median of what rounds found, and median and spread of its ratio to the plain way of the same round."""
    values = torch.tensor(found)
    ratios = values / torch.tensor(plain)
    spread = f"{float(ratios.min()):.3f}-{float(ratios.max()):.3f}"
    return dict(
        zip(columns, (f"{float(values.median()):.{digits}f}", f"{float(ratios.median()):.3f}", spread), strict=True)
    )
