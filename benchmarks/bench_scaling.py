"""Several processes: bytes sent, processor time and loss of a step, beside DDP, PowerSGD and FSDP2.

    scripts/bench scaling [--processes 2] [--steps 12] [--scale strong|weak]
    torchrun --nproc-per-node 8 benchmarks/bench_scaling.py      # on GPUs, by NCCL

A small Llama of random weights learns a fixed batch of random tokens. Strong scaling splits the same tokens of a step
over the processes, weak scaling gives each as many. On one machine without GPUs the processes share the cores, so that
only bytes and losses say something there; seconds are those of the processor of rank 0, of steps after the first two.

Bytes are those that a rank sends at least, ``2 (W-1)/W`` of what an all-reduce is handed and ``(W-1)/W`` of its halves:
those of our reducers and hooks and of FSDP2 are counted, those of DistributedDataParallel follow from their sizes.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measurement import machine, write_rows
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

import featherweight as fw
from featherweight.distributed.run import traffic_of

RANK, ROWS, SEQ_LEN, GAP, WARM_UP = 32, 4, 64, 200, 2
SHAPE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
Training = tuple[nn.Module, Callable[[], Any], Callable[[], float]]
"""The model to call, what follows the backward pass, and the bytes sent since it was built."""


def llama() -> nn.Module:
    """Return a Llama of random weights, the same in all processes."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=2048, tie_word_embeddings=True, num_key_value_heads=4, **SHAPE)
    return LlamaForCausalLM(config).to(fw.distributed.start())


def galore(model: nn.Module, proj_type: str = "std") -> Any:
    """Return the low-rank optimizer of a model."""
    groups = fw.optim.param_groups(model, rank=RANK, update_proj_gap=GAP, proj_type=proj_type)
    return fw.optim.GaLoreAdamW(groups, lr=1e-3)


def gradients(model: nn.Module) -> int:
    """Return the bytes of all gradients in float32."""
    return sum(one.numel() * 4 for one in model.parameters())


def ordinary(optimizer: Any) -> Callable[[], None]:
    """Return what follows the backward pass of an optimizer that is not layer-wise."""

    def finish() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return finish


class Counted:
    """Bytes of something that is all-reduced in every step."""

    def __init__(self, each: int) -> None:
        self.each, self.steps = each * all_reduced(), 0

    def __call__(self) -> float:
        """Return the bytes of all steps, this one included."""
        self.steps += 1
        return float(self.each * self.steps)


def all_reduced() -> float:
    """Return what a rank sends of each byte of an all-reduce."""
    size = fw.distributed.world_size()
    return 2 * (size - 1) / size


def sent_by(model: nn.Module) -> Callable[[], float]:
    """Return what a model that `fw.distributed.shard` has shared has sent, counted."""
    found, size = list(traffic_of(model).values()), fw.distributed.world_size()
    return lambda: sum(one.wire_bytes(size) for one in found)


def ddp_adamw() -> Training:
    """PyTorch's own: whole gradients in buckets."""
    model = llama()
    wrapped = DistributedDataParallel(model)
    return wrapped, ordinary(torch.optim.AdamW(model.parameters(), lr=1e-3)), Counted(gradients(model))


def ddp_power_sgd() -> Training:
    """PyTorch's hook that sends two factors of each gradient, with error feedback."""
    model = llama()
    # One bucket: the second sums of several are begun by threads, over gloo now and then in another order on each rank.
    wrapped = DistributedDataParallel(model, bucket_cap_mb=1024)
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=RANK, start_powerSGD_iter=2)
    wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    factors = [sum(one.shape) * RANK for one in model.parameters() if one.ndim == 2]
    vectors = [one.numel() for one in model.parameters() if one.ndim != 2]
    return wrapped, ordinary(torch.optim.AdamW(model.parameters(), lr=1e-3)), Counted(4 * sum(factors + vectors))


def ddp_hook() -> Training:
    """DistributedDataParallel with our hook."""
    model = llama()
    wrapped, optimizer = DistributedDataParallel(model), galore(model)
    state, hook = fw.distributed.core_hook(optimizer)
    wrapped.register_comm_hook(state, hook)
    return wrapped, ordinary(optimizer), lambda: state.traffic.wire_bytes(fw.distributed.world_size())


def ddp_cores() -> Training:
    """Layer-wise replicas that exchange cores."""
    model = llama()
    fw.apply(model, fw.CoreGradient())
    fw.distributed.shard(model, "ddp")
    optimizer = galore(model)
    handle = fw.optim.layerwise(model, optimizer)
    return model, lambda: handle.steps, sent_by(model)


def fsdp2(build: Callable[[nn.Module], Any]) -> Training:
    """Shares of rows, with an optimizer of the sharded model."""
    model = llama()
    fw.distributed.shard(model, "fsdp2")
    return model, ordinary(build(model)), sent_by(model)


def fsdp2_cores(*methods: Any, kind: str = "fsdp2") -> Training:
    """Shares of rows that sum cores in place of gradients, layer-wise."""
    model = llama()
    for method in (*methods, fw.CoreGradient()):
        fw.apply(model, method)
    fw.distributed.shard(model, kind, shard_size=fw.distributed.world_size() // 2 if kind == "hsdp" else None)
    groups = fw.optim.param_groups(model, rank=RANK, update_proj_gap=GAP, proj_type="right")
    optimizer = (
        fw.optim.QGaLoreAdamW(groups, lr=1e-3, state_bits=32, basis_bits=32) if methods else galore(model, "right")
    )
    handle = fw.optim.layerwise(model, optimizer)
    return model, lambda: handle.steps, sent_by(model)


METHODS: dict[str, Callable[[], Training]] = {
    "DDP, AdamW": ddp_adamw,
    "DDP, AdamW, PowerSGD": ddp_power_sgd,
    "DDP, GaLore, core hook": ddp_hook,
    "ddp, GaLore, cores": ddp_cores,
    "FSDP2, AdamW": lambda: fsdp2(lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3)),
    "fsdp2, GaLore, right": lambda: fsdp2(lambda model: galore(model, "right")),
    "fsdp2, GaLore, cores": fsdp2_cores,
    "fsdp2, Q-GaLore, int8, cores": lambda: fsdp2_cores(fw.Int8()),
}


def measure(name: str, steps: int, scale: str) -> dict[str, Any]:
    """Return bytes, seconds and loss of one method."""
    rank, size = fw.distributed.rank(), fw.distributed.world_size()
    model, finish, sent = METHODS[name]()
    rows = ROWS if scale == "weak" else max(1, ROWS // size)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 2048, (rows * size, SEQ_LEN), generator=generator)[rank * rows : (rank + 1) * rows]
    tokens = tokens.to(next(model.parameters()).device)
    seconds, before, bytes_sent, loss = [], 0.0, 0.0, torch.zeros(())
    for _ in range(steps):
        started = time.process_time()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        finish()
        loss = loss.detach()
        seconds.append(time.process_time() - started)
        total = sent()
        before, bytes_sent = total, total - before
    (mean_loss,) = (one / size for one in fw.distributed.World().sums(float(loss)))
    return {
        "method": name,
        "processes": size,
        "scale": scale,
        "bytes_per_step": int(bytes_sent),
        "processor_s_per_step": round(statistics.median(seconds[WARM_UP:]), 4),
        "loss": round(mean_loss, 4),
    }


def main() -> None:
    """Measure all methods, in the processes of a launcher or in some of our own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--scale", choices=("strong", "weak"), default="weak")
    options = parser.parse_args()
    if "WORLD_SIZE" not in os.environ:
        sys.exit(start_processes(options.processes))
    torch.set_num_threads(1)
    fw.distributed.start()
    rows = []
    for name in METHODS:
        row = measure(name, options.steps, options.scale)
        if fw.distributed.is_first():
            print(row, flush=True)
        rows.append({**row, **machine()})
    if fw.distributed.is_first():
        write_rows("scaling", rows)
    fw.distributed.stop()


def start_processes(count: int) -> int:
    """Start this program several times on this machine, and return an exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__)), *sys.argv[1:]],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    return max(process.wait() for process in processes)


if __name__ == "__main__":
    main()
