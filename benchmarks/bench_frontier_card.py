"""Steps layer by layer on a real card: what the link carries, what of the copies is hidden, tokens a second, peaks.

    scripts/bench frontier_card                        # all parts; each row is written as soon as it is measured
    scripts/bench frontier_card --parts link hidden    # some of them
    scripts/bench frontier_card --smoke                # the same code with tiny sizes, on a CPU, too; writes no rows

link: GiB/s to the device, from it, and both at once, from pinned memory, beside what the planner assumes.
hidden: a step with the weights on the host against one with them on the device, in alternating rounds, chunks of 2048
    and 8192 tokens. Hidden is the share of the copies' own time, bytes over the rates of `link`, that does not appear
    in the step. And the share of the step in which no kernel runs, by torch's profiler.
tokens: tokens a second and peak of the device: layer by layer (weights, states, inputs on the host; attention repeated
    and kept), MsT with `tokenwise` and offloaded inputs, activation checkpointing, FSDP2's own offload with
    checkpointing; medians of three steps, one way after the other.
peak: simulated against measured peaks, and host bytes against the plan: Llama-3-8B with Q-GaLore, one row of 131,072
    tokens, and Llama-3-70B with Q-GaLore of rank 1/16, one row of 8192, if the host holds it.

Each row but those of `link` comes from a process of its own; one that fails, or does not fit, leaves a row that says so
(`failed`). Rows go to results/frontier_card_PART.csv with the name of the card.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measurement import synchronize, take_turns, write_rows
from torch import Tensor, nn

import featherweight as fw
from featherweight.memory import measure_memory
from featherweight.models import load_model
from featherweight.optim import build_optimizer, layerwise, parse_optimizer
from featherweight.planner import Target, need_of
from featherweight.planner.candidates import family_called
from featherweight.planner.host import host_need
from featherweight.planner.layered import layered_recipe
from featherweight.planner.plan import base_recipe
from featherweight.training import LayerMajor
from featherweight.training.estimate import estimate_memory
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe

GIB = 2**30
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CARD: dict[str, Any] = {
    "link_mib": (64, 1024),
    "shape": {"layers": 16, "hidden": 4096, "feed_forward": 14336, "heads": 32, "key_heads": 8, "vocabulary": 32000},
    "chunks": (2048, 8192),
    "row": 16384,
    "rows": (32768, 131072),
    "rounds": 3,
    "peaks": (
        ("llama-3-8b", "Q-GaLore, rank 1/16, 4-bit, int8 embeddings", 131072),
        ("llama-3-70b", "Q-GaLore, rank 1/16, 4-bit, int8 embeddings", 8192),
    ),
}
SMOKE: dict[str, Any] = {
    "link_mib": (1,),
    "shape": {"layers": 4, "hidden": 64, "feed_forward": 128, "heads": 4, "key_heads": 2, "vocabulary": 256},
    "chunks": (32, 64),
    "row": 128,
    "rows": (96,),
    "rounds": 2,
    "peaks": (("tiny", "Q-GaLore, rank 1/16, 4-bit, int8 embeddings", 512),),
}
Row = dict[str, Any]
COLUMNS: dict[str, tuple[str, ...]] = {
    "link": ("what", "to_device_gib_s", "to_host_gib_s", "each_way_of_both_gib_s", "spread", "assumed_gib_s"),
    "hidden": ("what", "device_s", "host_s", "spread", "read_gib", "written_gib", "copies_s", "hidden_share")
    + ("idle_share_device", "idle_share_host", "failed"),
    "tokens": ("what", "row", "tokens_s", "spread", "peak_gib", "host_gib", "failed"),
    "peak": ("what", "row", "predicted_gib", "measured_gib", "error", "planned_host_gib", "host_gib", "pinned_gib")
    + ("step_s", "failed"),
}
"""What the rows of a part say; what a failed one does not know stays empty."""


def llama(sizes: dict[str, Any], length: int) -> nn.Module:
    """Return a Llama of random bfloat16 weights on the device, for rows of a length."""
    torch.manual_seed(0)
    shape = sizes["shape"]
    config = {
        "model_type": "llama",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["feed_forward"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["key_heads"],
        "vocab_size": shape["vocabulary"],
        "max_position_embeddings": length,
        "tie_word_embeddings": False,
    }
    with DEVICE:
        model: nn.Module = load_model(config)
    return model.to(DEVICE, torch.bfloat16).train()


def tokens_of(sizes: dict[str, Any], length: int) -> Tensor:
    """Return one row of tokens."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(sizes["shape"]["vocabulary"], (1, length), generator=generator).to(DEVICE)


# --- link


def link(sizes: dict[str, Any]) -> Iterator[Row]:
    """Measure the copies from and to pinned memory."""
    yield from (link_row(mib * 2**20) for mib in sizes["link_mib"])


def link_row(size_bytes: int, copies: int = 8) -> Row:
    """Measure one size: each way, and both at once on streams of their own."""
    pinned = DEVICE.type == "cuda"
    host_in, host_out = (torch.ones(size_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(2))
    device_in, device_out = (torch.ones(size_bytes, dtype=torch.uint8, device=DEVICE) for _ in range(2))

    def to_device() -> None:
        for _ in range(copies):
            device_in.copy_(host_in, non_blocking=True)

    def to_host() -> None:
        for _ in range(copies):
            host_out.copy_(device_out, non_blocking=True)

    def both() -> None:
        if DEVICE.type != "cuda":
            to_device()
            to_host()
            return
        streams = [torch.cuda.Stream(), torch.cuda.Stream()]
        for stream, copy in zip(streams, (to_device, to_host), strict=True):
            with torch.cuda.stream(stream):
                copy()

    timings = take_turns({"to_device": to_device, "to_host": to_host, "both": both}, rounds=5)
    rates = {name: copies * size_bytes / timing.median_s / GIB for name, timing in timings.items()}
    return {
        "what": f"{size_bytes // 2**20} MiB",
        "to_device_gib_s": round(rates["to_device"], 2),
        "to_host_gib_s": round(rates["to_host"], 2),
        "each_way_of_both_gib_s": round(rates["both"], 2),
        "spread": round(max(timing.spread for timing in timings.values()), 3),
        "assumed_gib_s": round(assumed_link() / GIB, 2),
    }


def assumed_link() -> float:
    """Return the bytes a second to the device that the planner takes for this card; 0 for a CPU."""
    known = Target.of(device=DEVICE).calibration
    return known.h2d_bytes_per_s if known is not None else 0.0


# --- hidden


def hidden(sizes: dict[str, Any]) -> Iterator[Row]:
    """Compare steps with the weights on the host and on the device."""
    for chunk in sizes["chunks"]:
        yield {"what": f"chunks of {chunk}, a row of {sizes['row']}"} | ask(sizes, "hidden", {"chunk": chunk})


def hidden_row(sizes: dict[str, Any], chunk: int) -> Row:
    """Measure one chunk size."""
    rates = link_row(max(sizes["link_mib"]) * 2**20)
    ids, streams = tokens_of(sizes, sizes["row"]), {}
    for place in ("device", "host"):
        model = llama(sizes, sizes["row"])
        streams[place] = layer_major(model, chunk, weights=place, states="device")
    steps = {name: (lambda one=one: one.step({"input_ids": ids, "labels": ids})) for name, one in streams.items()}
    timings = take_turns(steps, rounds=sizes["rounds"])
    weights = streams["host"].layer_weights
    assert weights is not None
    read, written = weights.traffic_bytes()
    there = read / GIB / rates["each_way_of_both_gib_s"]
    back = written / GIB / rates["each_way_of_both_gib_s"]
    shown = timings["host"].median_s - timings["device"].median_s
    return {
        "device_s": round(timings["device"].median_s, 4),
        "host_s": round(timings["host"].median_s, 4),
        "spread": round(max(timing.spread for timing in timings.values()), 3),
        "read_gib": round(read / GIB, 6),
        "written_gib": round(written / GIB, 6),
        "copies_s": round(max(there, back), 4),
        # On a CPU nothing is copied beside the computation.
        "hidden_share": round(1 - shown / max(there, back), 3) if DEVICE.type == "cuda" else "",
        "idle_share_device": round(idle_share(steps["device"]), 4),
        "idle_share_host": round(idle_share(steps["host"]), 4),
    }


def layer_major(model: nn.Module, chunk: int, **places: Any) -> LayerMajor:
    """Return steps of an 8-bit AdamW layer by layer, with MsT inside of a layer."""
    fw.apply(model, fw.MsT())
    optimizer = build_optimizer(model, parse_optimizer({"name": "adamw_8bit", "lr": 1e-4}), seed=0)
    return LayerMajor(model, layerwise(model, optimizer), chunk_tokens=chunk, inputs="host", **places)


def idle_share(step: Callable[[], Any]) -> float:
    """Return the share of a step in which the device computes nothing, copies left out; of a CPU its Python."""
    kind = torch.profiler.ProfilerActivity.CUDA if DEVICE.type == "cuda" else torch.profiler.ProfilerActivity.CPU
    wanted = torch.autograd.DeviceType.CUDA if DEVICE.type == "cuda" else torch.autograd.DeviceType.CPU
    with torch.profiler.profile(activities=[kind]) as profile:
        step()
        synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events() or []
        if event.device_type == wanted and "Memcpy" not in event.name and "Memset" not in event.name
    )
    busy, behind = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, behind))
        behind = max(behind, end)
    return 1 - busy / (behind - spans[0][0])


# --- tokens

WAYS = ("layer_major", "layer_major_keep", "mst_offload", "checkpointing", "fsdp2_offload")


def tokens(sizes: dict[str, Any]) -> Iterator[Row]:
    """Compare ways of training long rows."""
    for length in sizes["rows"]:
        for way in WAYS:
            yield {"what": way, "row": length} | ask(sizes, "tokens", {"way": way, "length": length})


def tokens_row(sizes: dict[str, Any], way: str, length: int) -> Row:
    """Train one way and measure."""
    step = step_of(sizes, way, length)
    step()
    reset_peak()
    seconds = [timed(step) for _ in range(sizes["rounds"])]
    median = statistics.median(seconds)
    return {
        "tokens_s": round(length / median, 1),
        "spread": round((max(seconds) - min(seconds)) / median, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 3) if DEVICE.type == "cuda" else "",
        "host_gib": round(resident_bytes() / GIB, 2),
    }


def step_of(sizes: dict[str, Any], way: str, length: int) -> Callable[[], Any]:
    """Return the training step of one way, updates included."""
    model, ids = llama(sizes, length), tokens_of(sizes, length)
    if way.startswith("layer_major"):
        attention = "keep" if way.endswith("keep") else "repeat"
        stream = layer_major(model, max(sizes["chunks"]), weights="host", states="host", attention=attention)
        return lambda: stream.step({"input_ids": ids, "labels": ids})
    if way == "fsdp2_offload":
        return fsdp2_step(model, ids)
    if way == "mst_offload":
        fw.apply(model, fw.MsT(checkpoint="offload", tokenwise=True, chunk_size=max(sizes["chunks"])))
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    layerwise(model, build_optimizer(model, parse_optimizer({"name": "adamw_8bit", "lr": 1e-4}), seed=0))
    return lambda: model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


def fsdp2_step(model: nn.Module, ids: Tensor) -> Callable[[], Any]:
    """Return a step of torch's own offload: weights, gradients and AdamW on the host, layers checkpointed."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    backend = "cpu:gloo,cuda:nccl" if DEVICE.type == "cuda" else "gloo"
    store = distributed.HashStore()
    distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    mesh = init_device_mesh(DEVICE.type, (1,))
    policy = CPUOffloadPolicy(pin_memory=DEVICE.type == "cuda")
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    for layer in model.get_submodule("model.layers"):  # type: ignore[union-attr]
        fully_shard(layer, mesh=mesh, offload_policy=policy)
    fully_shard(model, mesh=mesh, offload_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


# --- peak


def peak(sizes: dict[str, Any]) -> Iterator[Row]:
    """Compare simulated peaks and host bytes with those of a run; simulated here, run in another process."""
    for model, name, length in sizes["peaks"]:
        recipe = recipe_of(model, name, length)
        target = Target.of(device=DEVICE)
        need, host = need_of(estimate_memory(None, recipe, device=target.device), target), host_need(recipe)
        found = ask(sizes, "peak", {"model": model, "name": name, "length": length})
        error = round(need.allocated_bytes / found["measured"] - 1, 5) if "measured" in found else ""
        yield {
            "what": f"{model}, {name}",
            "row": length,
            "predicted_gib": round(need.allocated_bytes / GIB, 4),
            "planned_host_gib": round(host.total_bytes / GIB, 2),
            "measured_gib": round(found.pop("measured") / GIB, 4) if "measured" in found else "",
            "error": error,
            **found,
        }


def recipe_of(model: str, name: str, length: int) -> Recipe:
    """Return a recipe whose steps go layer by layer, weights and states on the host."""
    stretched = [] if model == "tiny" else [f"task.max_positions={length}"]
    base = base_recipe(model, None, 1024).override([*stretched, f"task.seq_len={length}", "memory_steps=[]"])
    return layered_recipe(base, family_called(name), "both")


def peak_row(sizes: dict[str, Any], model: str, name: str, length: int) -> Row:
    """Run two steps of a recipe."""
    recipe = recipe_of(model, name, length)
    loop = Loop(recipe, task=recipe.task_class.skeleton(recipe.task_config(), seed=recipe.seed))
    reset_peak()
    if DEVICE.type == "cuda":
        seconds = [timed(loop.step) for _ in range(2)]
        measured = torch.cuda.max_memory_allocated()
    else:
        with measure_memory(loop.model, loop.optimizer) as memory:
            seconds = [timed(loop.step) for _ in range(2)]
        measured = memory.peak_bytes
    return {
        "measured": measured,
        "host_gib": round(resident_bytes() / GIB, 2),
        "pinned_gib": round(pinned_bytes() / GIB, 2),
        "step_s": round(min(seconds), 3),
    }


def timed(step: Callable[[], Any]) -> float:
    """Return the seconds of one call."""
    synchronize()
    began = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - began


def reset_peak() -> None:
    """Begin a measurement of the device's peak."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def pinned_bytes() -> int:
    """Return the most pinned memory that torch has held."""
    return int(torch.cuda.host_memory_stats()["allocated_bytes.peak"]) if DEVICE.type == "cuda" else 0


def resident_bytes() -> int:
    """Return the most host memory that the system has given to this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- main

PARTS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "link": link,
    "hidden": hidden,
    "tokens": tokens,
    "peak": peak,
}
ROWS: dict[str, Callable[..., Row]] = {"hidden": hidden_row, "tokens": tokens_row, "peak": peak_row}


def ask(sizes: dict[str, Any], part: str, what: dict[str, Any]) -> Row:
    """Measure one row in a process that does nothing else; one that fails says why, as far as it can."""
    command = [sys.executable, __file__, "--parts", part, "--one", json.dumps(what)]
    done = subprocess.run(command + ["--smoke"] * (sizes is SMOKE), capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return {"failed": f"{said[-1] if said else 'no word'} (status {done.returncode})"}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    """Measure the wanted parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, no rows: does every part run?")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = SMOKE if options.smoke else CARD
    if options.one:
        print(json.dumps(ROWS[options.parts[0]](sizes, **json.loads(options.one))))
        return
    if DEVICE.type != "cuda" and not options.smoke:
        raise SystemExit("bench frontier_card: no GPU is here; expected one. --smoke runs the same code on a CPU.")
    for part in options.parts:
        for found in PARTS[part](sizes):
            row = {name: found.get(name, "") for name in COLUMNS[part]}
            print(row, flush=True)
            if not options.smoke:
                write_rows(f"frontier_card_{part}", [row])


if __name__ == "__main__":
    main()
