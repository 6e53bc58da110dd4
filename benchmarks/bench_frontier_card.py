"""Steps layer by layer on a real card: what the link carries, what of the copies is hidden, tokens a second, peaks.

    scripts/bench frontier_card                        # all parts; each in a process of its own, rows as they come
    scripts/bench frontier_card --parts link hidden    # some of them
    scripts/bench frontier_card --smoke                # the same code with tiny sizes, on a CPU, too; writes no rows

link: GiB/s to the device, from it, and both at once, from pinned memory, beside what the planner assumes.
hidden: a step with the weights on the host against one with them on the device, in alternating rounds, chunks of 2048
    and 8192 tokens. Hidden is the share of the copies' own time, bytes over the rates of `link`, that does not appear
    in the step. And the share of the step in which no kernel runs, by torch's profiler.
tokens: tokens a second and peak of the device: layer by layer (weights, states, inputs on the host; attention repeated
    and kept), MsT with `tokenwise` and offloaded inputs, activation checkpointing, FSDP2's own offload with
    checkpointing; in alternating rounds. What does not fit says so.
peak: simulated against measured peaks, and host bytes against the plan: Llama-3-8B with Q-GaLore, one row of 131,072
    tokens, and Llama-3-70B with Q-GaLore of rank 1/16, one row of 8192, if the host holds it.

Rows go to results/frontier_card_PART.csv with the name of the card.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from measurement import synchronize, take_turns, write_rows
from torch import Tensor, nn

import featherweight as fw
from featherweight.errors import FeatherweightError
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


def link(sizes: dict[str, Any]) -> list[Row]:
    """Measure the copies from and to pinned memory."""
    return [link_row(mib * 2**20) for mib in sizes["link_mib"]]


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
        "part": "link",
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


def hidden(sizes: dict[str, Any]) -> list[Row]:
    """Compare steps with the weights on the host and on the device."""
    rates = link_row(max(sizes["link_mib"]) * 2**20)
    return [hidden_row(sizes, chunk, rates) for chunk in sizes["chunks"]]


def hidden_row(sizes: dict[str, Any], chunk: int, rates: Row) -> Row:
    """Measure one chunk size."""
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
        "part": "hidden",
        "what": f"chunks of {chunk}, a row of {sizes['row']}",
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


def tokens(sizes: dict[str, Any]) -> list[Row]:
    """Compare ways of training long rows; each in a process of its own, as one that does not fit leaves no trace."""
    return [ask(sizes, {"way": way, "length": length}) for length in sizes["rows"] for way in WAYS]


def tokens_row(sizes: dict[str, Any], way: str, length: int) -> Row:
    """Train one way and measure."""
    base = {"part": "tokens", "what": way, "row": length}
    try:
        step = step_of(sizes, way, length)
        step()
        reset_peak()
        began, peak = time.perf_counter(), 0
        for _ in range(sizes["rounds"]):
            step()
            synchronize()
        seconds = (time.perf_counter() - began) / sizes["rounds"]
        peak = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0
    except torch.OutOfMemoryError:
        return {**base, "fits": False, "tokens_s": "", "peak_gib": "", "host_gib": ""}
    return {
        **base,
        "fits": True,
        "tokens_s": round(length / seconds, 1),
        "peak_gib": round(peak / GIB, 3),
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


def peak(sizes: dict[str, Any]) -> list[Row]:
    """Compare simulated peaks and host bytes with those of a run; each in a process of its own."""
    return [
        ask(sizes, {"model": model, "recipe": recipe, "length": length}) for model, recipe, length in sizes["peaks"]
    ]


def peak_row(model: str, recipe: str, length: int) -> Row:
    """Simulate and run two steps."""
    stretched = [] if model == "tiny" else [f"task.max_positions={length}"]
    base = base_recipe(model, None, 1024).override([*stretched, f"task.seq_len={length}", "memory_steps=[]"])
    full = layered_recipe(base, family_called(recipe), "both")
    target = Target.of(device=DEVICE)
    need, host = need_of(estimate_memory(None, full, device=target.device), target), host_need(full)
    before = resident_bytes()
    row = {"part": "peak", "what": f"{model}, {recipe}", "row": length}
    unknown = ("measured_gib", "host_gib", "pinned_gib", "step_s")
    row |= {"predicted_gib": round(need.allocated_bytes / GIB, 4), "planned_host_gib": round(host.total_bytes / GIB, 2)}
    try:
        loop = Loop(full, task=full.task_class.skeleton(full.task_config(), seed=full.seed))
        if DEVICE.type == "cuda":
            reset_peak()
            seconds = [timed(loop.step) for _ in range(2)]
            measured = torch.cuda.max_memory_allocated()
        else:
            with measure_memory(loop.model, loop.optimizer) as memory:
                seconds = [timed(loop.step) for _ in range(2)]
            measured = memory.peak_bytes
    except (torch.OutOfMemoryError, FeatherweightError) as error:
        return {**row, "error": str(error).partition(". ")[0], **dict.fromkeys(unknown, "")}
    grown = resident_bytes() - before
    return {
        **row,
        "measured_gib": round(measured / GIB, 4),
        "error": round(need.allocated_bytes / measured - 1, 5),
        "host_gib": round(grown / GIB, 2),
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

PARTS: dict[str, Callable[[dict[str, Any]], list[Row]]] = {
    "link": link,
    "hidden": hidden,
    "tokens": tokens,
    "peak": peak,
}


def ask(sizes: dict[str, Any], what: dict[str, Any]) -> Row:
    """Measure one row in a process that does nothing else."""
    command = [sys.executable, __file__, "--one", json.dumps(what)] + (["--smoke"] if sizes is SMOKE else [])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench frontier_card: {what} failed.\n{done.stderr[-3000:]}")
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
        what = json.loads(options.one)
        print(json.dumps(tokens_row(sizes, **what) if "way" in what else peak_row(**what)))
        return
    if DEVICE.type != "cuda" and not options.smoke:
        raise SystemExit("bench frontier_card: no GPU is here; expected one. --smoke runs the same code on a CPU.")
    for part in options.parts:
        for row in PARTS[part](sizes):
            print(row, flush=True)
            if not options.smoke:
                write_rows(f"frontier_card_{part}", [row])


if __name__ == "__main__":
    main()
