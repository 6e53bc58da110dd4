"""S2FT: memory of training, switching of adapters, and mixed batches, against PEFT's LoRA.

    scripts/bench s2ft [memory|switch|mixed|card] [--rounds 7]

1. `memory`: layers of SmolLM2 shapes in bfloat16, 1024 tokens: bytes that the forward pass keeps for the backward pass
   (distinct storages, parameters aside) and the tracker's peak of a whole step, for a frozen network, S2FT, LoRA, full.
2. `switch`: exchanging the adapter of a 4096 x 4096 weight in float32, 64 channels, against adding a LoRA product of
   rank 32, which has as many parameters; a switch of LoRA subtracts another such product first.
3. `mixed`: one decoding step of 64 rows, each with an adapter of its own, of one 4096 x 4096 layer: the layers of
PEFT and
   of this package, and both computed from stacked adapters in batched products.
4. `card`: on a GPU, Llama-3.2-3B shapes with random weights in bfloat16, 4 x 768 tokens: seconds and peak of a step.
   `--shape tiny` runs the same code on small shapes anywhere.
"""

import argparse
import contextlib
from collections.abc import Callable
from typing import Any

import peft
import torch
from measurement import machine, synchronize, take_turns, write_rows
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import featherweight as fw
from featherweight.methods.s2ft.base_slices import ChannelChange
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.methods.s2ft.merge import switch_times
from featherweight.nn.channel_delta import mixed_delta

SMOLLM2 = {
    "vocab_size": 4096,  # the head is the same for all; a small one keeps it from hiding the layers
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
LLAMA_3B = {
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
TINY = {**SMOLLM2, "vocab_size": 256, "num_hidden_layers": 2}
OUTPUTS = ["o_proj", "down_proj"]


def frozen(model: nn.Module) -> nn.Module:
    """Return a model that trains nothing but sends gradients as far back as S2FT needs them."""
    model.requires_grad_(False)
    first = model.model.layers[0].self_attn.o_proj
    first.register_forward_hook(lambda module, args, output: output.requires_grad_())
    return model


def setups(rank: int) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """Return what is compared: name -> function from a plain model to the one that is trained."""
    return {
        "frozen": frozen,
        "S2FT": lambda m: peft.get_peft_model(m, fw.S2FTConfig(r_equivalent=rank)),
        "S2FT in place": lambda m: peft.get_peft_model(m, fw.S2FTConfig(r_equivalent=rank, update="inplace")),
        "LoRA, same modules": lambda m: peft.get_peft_model(m, peft.LoraConfig(r=rank, target_modules=OUTPUTS)),
        "LoRA q, v": lambda m: peft.get_peft_model(m, peft.LoraConfig(r=rank, target_modules=["q_proj", "v_proj"])),
        "LoRA MLP": lambda m: peft.get_peft_model(
            m, peft.LoraConfig(r=rank, target_modules=["gate_proj", "up_proj", "down_proj"])
        ),
        "full": lambda m: m,
    }


def kept_bytes(model: nn.Module, tokens: Tensor) -> int:
    """Return the bytes of the distinct storages that a forward pass keeps, parameters and buffers aside."""
    known = {one.untyped_storage().data_ptr() for one in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            alive.append(tensor)
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=tokens, use_cache=False)
    return sum(kept.values())


def build(shape: dict[str, Any]) -> nn.Module:
    """Return a model in bfloat16 with random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, **shape)).to(torch.bfloat16).train()


def bench_memory(rounds: int) -> list[dict[str, Any]]:
    """Measure bytes; nothing here is random, so one round says it."""
    tokens = torch.arange(1024).view(2, 512) % 256
    rows: list[dict[str, Any]] = []
    for name, make in setups(rank=8).items():
        model = make(build({**SMOLLM2, "num_hidden_layers": 4}))
        kept = kept_bytes(model, tokens)
        trained = [one for one in model.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(trained) if trained else None
        for measured in (False, True):  # the state of the optimizer is there from the second step
            context = fw.measure_memory(model, optimizer) if measured else contextlib.nullcontext()
            with context as memory:
                model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
                if optimizer is not None:
                    optimizer.step()
                model.zero_grad()
        first = rows[0] if rows else {"kept_mib": kept / 2**20, "peak_mib": memory.peak_bytes / 2**20}
        rows.append(
            {
                "what": "memory",
                "setup": name,
                "trained_parameters": sum(one.numel() for one in trained),
                "kept_mib": round(kept / 2**20, 2),
                "kept_over_frozen": round(kept / 2**20 / first["kept_mib"], 4),
                "peak_mib": round(memory.peak_bytes / 2**20, 2),
                "peak_over_frozen": round(memory.peak_bytes / 2**20 / first["peak_mib"], 4),
            }
        )
    return rows


def bench_switch(rounds: int) -> list[dict[str, Any]]:
    """Time switches, fastest runs."""
    rows = []
    size, channels = 4096, 64
    indices = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:channels].sort().values
    change = ChannelChange("input", indices, torch.randn(channels, size))
    times = switch_times(change, size, lora_rank=channels // 2, rounds=rounds)
    for name in ("lora_merge", "standard", "channel_major"):
        rows.append(
            {
                "what": f"switch at {size} x {size}",
                "setup": {"lora_merge": "LoRA merge, rank 32", "standard": "S2FT", "channel_major": "S2FT, by channel"}[
                    name
                ],
                "fastest_ms": round(1e3 * times[name], 3),
                "faster_than_lora": round(times["lora_merge"] / times[name], 1),
            }
        )
    return rows


def bench_mixed(rounds: int) -> list[dict[str, Any]]:
    """Time one decoding step of a batch in which each row has its own adapter."""
    adapters, size, rank = 64, 4096, 16
    names = [f"a{number}" for number in range(adapters)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(adapters, 1, size, generator=generator)
    base = nn.Sequential(nn.Linear(size, size, bias=False)).requires_grad_(False)

    def with_adapters(make: Callable[[int], Any]) -> nn.Module:
        model = peft.get_peft_model(nn.Sequential(base[0]), make(0), adapter_name=names[0])
        for number, name in enumerate(names[1:], start=1):
            model.add_adapter(name, make(number))
        return model.eval()

    lora = with_adapters(lambda _: peft.LoraConfig(r=rank, target_modules=["0"])).base_model.model[0]
    options = {"num_channels": 2 * rank, "target_modules": ["0"], "axis_pattern": {"0": "input"}}
    s2ft = with_adapters(lambda seed: fw.S2FTConfig(seed=seed, **options))
    (layer,) = s2ft_layers(s2ft).values()
    down = torch.stack([lora.lora_A[name].weight.detach().t() for name in names])
    up = torch.stack([lora.lora_B[name].weight.detach().t() for name in names])
    deltas = torch.stack([layer.s2ft_delta[name].detach() for name in names])
    indices = torch.stack([layer.s2ft_indices[name].long() for name in names])
    candidates = {
        "base alone": lambda: base(x),
        "PEFT LoRA layer": lambda: lora(x, adapter_names=names),
        "S2FT layer": lambda: layer(x, adapter_names=names),
        "LoRA, stacked, without the base": lambda: torch.bmm(torch.bmm(x, down), up),
        "S2FT, stacked, without the base": lambda: mixed_delta(x, deltas, indices),
    }
    with torch.inference_mode():
        timings = take_turns(candidates, rounds)
    return [
        {
            "what": f"{adapters} adapters, one decoding step, {size} x {size}, LoRA rank {rank}, {2 * rank} channels",
            "setup": name,
            "median_ms": round(1e3 * timing.median_s, 3),
            "fastest_ms": round(1e3 * timing.fastest_s, 3),
            "spread": round(timing.spread, 3),
            "over_base_ms": round(
                1e3 * (timing.fastest_s - ("without" not in name) * timings["base alone"].fastest_s), 3
            ),
        }
        for name, timing in timings.items()
    ]


def bench_card(rounds: int, shape: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure steps on a GPU (or, with small shapes, anywhere)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = torch.randint(256, (4, 768), device=device)
    rows = []
    for name, make in {**setups(rank=32), "LoRA MLP": setups(rank=10)["LoRA MLP"]}.items():
        with device:
            model = make(build(shape))
        model.to(device)
        trained = [one for one in model.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(trained) if trained else None

        def step(model: nn.Module = model, optimizer: Any = optimizer) -> None:
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
            if optimizer is not None:
                optimizer.step()
            model.zero_grad()

        step()
        if device.type == "cuda":
            synchronize()
            torch.cuda.reset_peak_memory_stats()
        timing = take_turns({name: step}, rounds)[name]
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        rows.append(
            {
                "what": f"step of 4 x 768 tokens, {shape['num_hidden_layers']} layers of {shape['hidden_size']}",
                "setup": name,
                "trained_parameters": sum(one.numel() for one in trained),
                "median_s": round(timing.median_s, 4),
                "spread": round(timing.spread, 3),
                "peak_mib": peak and round(peak / 2**20, 1),
            }
        )
        del model, optimizer, trained, step
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["memory", "switch", "mixed", "card", []], default=[])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shape", choices=["3b", "tiny"], default="3b")
    options = parser.parse_args()
    print(machine())
    for what in options.what or ["memory", "switch", "mixed"]:
        if what == "card":
            rows = bench_card(options.rounds, LLAMA_3B if options.shape == "3b" else TINY)
        else:
            rows = {"memory": bench_memory, "switch": bench_switch, "mixed": bench_mixed}[what](options.rounds)
        print(write_rows(f"s2ft_{what}", rows))
        for row in rows:
            print(row)


if __name__ == "__main__":
    main()
