"""Attention in chunks over a prefix against one call of torch's: errors of bfloat16 against float64, and seconds.

    scripts/bench streamed_attention [--tokens 8192] [--chunk 2048] [--heads 32] [--key-heads 8] [--size 128]

Forward and backward of causal attention on random states, on the GPU if there is one. Errors are relative, in the norm,
of output and gradients; the goal is at most 1.2 times those of one call. Seconds in alternating rounds, of the wall.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measurement import take_turns, write_rows
from torch import Tensor, nn

from featherweight.nn.prefix_store import KeyValueStore
from featherweight.nn.streamed_attention import Visibility, streamed_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rows(tokens: int, chunk: int, heads: int, key_heads: int, size: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each of the two ways."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, count, tokens, size) for count in (heads, key_heads, key_heads)]
    made = [torch.randn(shape, generator=generator).to(DEVICE, torch.bfloat16) for shape in shapes]
    weight = torch.randn(shapes[0], generator=generator).to(DEVICE, torch.bfloat16)

    def run(dtype: torch.dtype, attend: Callable[[list[Tensor]], Tensor]) -> list[Tensor]:
        leaves = [one.to(dtype, copy=True).requires_grad_() for one in made]
        output = attend(leaves)
        output.backward(weight.to(dtype))
        return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    def whole(leaves: list[Tensor]) -> Tensor:
        return nn.functional.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)

    ways = {"one call": whole, "over a prefix": lambda leaves: over_prefix(leaves, chunk)}
    exact = run(torch.float64, over_rows)
    errors = {
        name: [
            float((one.double() - true).norm() / true.norm())
            for one, true in zip(run(torch.bfloat16, attend), exact, strict=True)
        ]
        for name, attend in ways.items()
    }
    candidates = {name: (lambda attend=attend: run(torch.bfloat16, attend)) for name, attend in ways.items()}
    timings = take_turns(candidates, rounds)
    return [
        {
            "way": name,
            "tokens": tokens,
            "chunk": chunk,
            "heads": f"{heads} ({key_heads})",
            "size": size,
            **{
                f"{what}_error": f"{error:.3e}"
                for what, error in zip(("output", "query", "key", "value"), errors[name], strict=True)
            },
            "worst_over_one_call": round(
                max(mine / its for mine, its in zip(errors[name], errors["one call"], strict=True)), 3
            ),
            "seconds": round(timings[name].median_s, 4),
            "spread": round(timings[name].spread, 3),
        }
        for name in ways
    ]


def over_prefix(leaves: list[Tensor], chunk: int) -> Tensor:
    """Attend chunk by chunk; the graph runs the chunks from last to first."""
    query, key, value = leaves
    length = query.shape[2]
    bounds = [(first, min(first + chunk, length)) for first in range(0, length, chunk)]
    store, outputs = KeyValueStore(bounds), []
    for number, (first, behind) in enumerate(bounds):
        mine = [one[:, :, first:behind] for one in leaves]
        outputs.append(
            streamed_attention(*mine, store, number, Visibility(None), scale=query.shape[-1] ** -0.5)  # type: ignore[misc]
        )
    return InOrder.apply(*outputs)  # type: ignore[no-any-return]


class InOrder(torch.autograd.Function):
    """Joins chunks along the tokens; backward they are still nodes of one graph, of which the last one runs first."""

    @staticmethod
    def forward(ctx: Any, *chunks: Tensor) -> Tensor:
        """Join (B, H, T, h) chunks."""
        ctx.sizes = [chunk.shape[2] for chunk in chunks]
        return torch.cat(chunks, dim=2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Cut the gradient."""
        return gradient.split(ctx.sizes, dim=2)


def over_rows(leaves: list[Tensor], tile: int = 256) -> Tensor:
    """Attend a few queries at a time, so that float64 scores fit."""
    query, key, value = leaves
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    outputs = []
    for first in range(0, query.shape[2], tile):
        asked = query[:, :, first : first + tile]
        position = torch.arange(first, first + asked.shape[2], device=query.device)
        scores = asked @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        unseen = torch.arange(key.shape[2], device=query.device) > position[:, None]
        outputs.append(scores.masked_fill(unseen, float("-inf")).softmax(-1) @ value)
    return torch.cat(outputs, dim=2)


def main() -> None:
    """Measure, print, and append the rows to results/streamed_attention.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("tokens", 8192), ("chunk", 2048), ("heads", 32), ("key-heads", 8), ("size", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=5)
    found = rows(**vars(parser.parse_args()))
    for row in found:
        print(row, flush=True)
    write_rows("streamed_attention", found)


if __name__ == "__main__":
    main()
