"""Peaks of training steps of large models, by the storage tracker on fake tensors: no arithmetic is done.

With checkpointing the peak is a straight line in the number of layers, so models of 2 and 3 layers tell that of all; it
is one for plain training too. Host memory of offloaded inputs is not in it. The CPU's attention path is followed, and
autograd's sum of two gradients is counted as a third one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaForCausalLM, masking_utils

import featherweight as fw
from featherweight.nn import offload

SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
GIB = 2**30


@dataclass(frozen=True)
class Setup:
    """How a model is trained."""

    name: str
    method: fw.MsT | None = None
    checkpoint: bool = False
    """Checkpointing of the model's own."""
    layerwise: bool = False
    """Gradients are consumed as soon as they are complete."""


def setups(chunk_size: Any = "auto", head_chunk_size: Any = "auto") -> list[Setup]:
    """Return the recipes from plain to shortest of memory."""

    def mst(**options: Any) -> fw.MsT:
        return fw.MsT(chunk_size=chunk_size, head_chunk_size=head_chunk_size, **options)

    return [
        Setup("stock"),
        Setup("stock + checkpointing", checkpoint=True),
        Setup("MsT", mst()),
        Setup("loss in chunks + checkpointing", mst(mlp=False, checkpoint=True)),
        Setup("MsT + checkpointing", mst(checkpoint=True)),
        Setup("MsT + checkpointing, layer-wise", mst(checkpoint=True), layerwise=True),
        Setup("MsT tokenwise + checkpointing", mst(checkpoint=True, tokenwise=True)),
        Setup("MsT + offload", mst(checkpoint="offload")),
        Setup("MsT tokenwise + offload", mst(checkpoint="offload", tokenwise=True)),
        Setup("MsT tokenwise + offload, layer-wise", mst(checkpoint="offload", tokenwise=True), layerwise=True),
    ]


def build(config: LlamaConfig, dtype: torch.dtype) -> nn.Module:
    """Return a model whose weights have a dtype from the start."""
    torch.set_default_dtype(dtype)
    try:
        return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)


def prepare(model: nn.Module, setup: Setup) -> nn.Module:
    """Bring a model into the state of a recipe."""
    model.train()
    if setup.checkpoint:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if setup.method is not None:
        fw.apply(model, setup.method)
    if setup.layerwise:
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", None))
    return model


def step(model: nn.Module, tokens: torch.Tensor) -> None:
    """Make a forward and a backward pass; gradients go."""
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    model.zero_grad()


def numel(shape: dict[str, Any]) -> int:
    """Return the number of parameters of a shape."""
    with FakeTensorMode():
        return sum(parameter.numel() for parameter in LlamaForCausalLM(LlamaConfig(**shape)).parameters())


def simulated_peak(shape: dict[str, Any], dtype: torch.dtype, setup: Setup, sequence: int) -> int:
    """Return the peak of forward and backward of the whole model in bytes, weights and gradients included."""
    two, three = (peak_of_layers({**shape, "num_hidden_layers": n}, dtype, setup, sequence) for n in (2, 3))
    return three + (three - two) * (shape["num_hidden_layers"] - 3)


def peak_of_layers(shape: dict[str, Any], dtype: torch.dtype, setup: Setup, sequence: int) -> int:
    """Return the tracker's peak of a step on fake tensors, in bytes."""
    config = LlamaConfig(max_position_embeddings=2**22, **shape)
    with FakeTensorMode():
        model = prepare(build(config, dtype), setup)
        tokens = torch.zeros(1, sequence, dtype=torch.int64)
        # Made before the measurement, host memory is not among what it counts.
        size = (1, sequence, config.hidden_size)
        host = [torch.empty(size, dtype=dtype) for _ in range(config.num_hidden_layers)]
        originals = offload._host_memory, masking_utils.find_packed_sequence_indices
        offload._host_memory = lambda tensor: host.pop()
        # It cannot look at fake position ids and would make an (L, L) mask that a real step does without.
        masking_utils.find_packed_sequence_indices = lambda position_ids: None
        try:
            with fw.memory.StorageTracker(model) as tracker:
                step(model, tokens)
        finally:
            offload._host_memory, masking_utils.find_packed_sequence_indices = originals
    return tracker.peak_bytes


def longest_sequence(
    shape: dict[str, Any], dtype: torch.dtype, setup: Setup, budget_bytes: int, start: tuple[int, int]
) -> tuple[int, int, float]:
    """Return the longest sequence whose step fits a budget, its peak in bytes, and the bytes of one more token.

    Two lengths give a straight line; its solution is simulated and corrected until it is within the budget and near
    it, because the peak may move to another moment of the step.
    """
    points = [(tokens, simulated_peak(shape, dtype, setup, tokens)) for tokens in start]
    while True:
        (a, peak_a), (b, peak_b) = points[-2:]
        slope = (peak_b - peak_a) / (b - a)
        solved = max(256, int(b + (budget_bytes - peak_b) / slope) // 256 * 256)
        is_near = 0 <= budget_bytes - peak_b < 0.01 * budget_bytes
        if is_near or solved == b or len(points) == 7:
            return b, peak_b, slope
        points.append((solved, simulated_peak(shape, dtype, setup, solved)))
