"""Write a random checkpoint with LLaMA-2 7B's matrices and compress it; argv: folder, layers. Prints the peak memory.

A layer is a shard; the memory of a compression depends on the largest matrix and on the size of a shard of the result,
not on the number of layers.
"""

import json
import resource
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

import featherweight as fw
from featherweight.methods.welore.stream import compress_folder

HIDDEN, WIDE, VOCABULARY = 4096, 11008, 32000


def write(folder: Path, layers: int) -> None:
    sizes = {"hidden_size": HIDDEN, "intermediate_size": WIDE, "num_attention_heads": 32, "vocab_size": VOCABULARY}
    LlamaConfig(num_hidden_layers=layers, tie_word_embeddings=False, **sizes).save_pretrained(folder)
    shapes = {f"self_attn.{kind}_proj": (HIDDEN, HIDDEN) for kind in "qkvo"}
    shapes |= {"mlp.gate_proj": (WIDE, HIDDEN), "mlp.up_proj": (WIDE, HIDDEN), "mlp.down_proj": (HIDDEN, WIDE)}
    generator = torch.Generator().manual_seed(0)
    weight_map = {}

    def shard(number: int, tensors: dict[str, torch.Tensor]) -> None:
        name = f"model-{number:05d}-of-{layers + 1:05d}.safetensors"
        save_file(tensors, str(folder / name), metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(0.02).bfloat16()

    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    for layer in range(layers):
        tensors = {f"model.layers.{layer}.{name}.weight": random(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = ones.clone()
        shard(layer + 1, tensors)
    ends = {name: random(VOCABULARY, HIDDEN) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    shard(layers + 1, {**ends, "model.norm.weight": ones})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def main() -> None:
    folder, layers = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    (folder / "model").mkdir(parents=True)
    write(folder / "model", layers)
    report = compress_folder(folder / "model", folder / "small", fw.WeLore(rank_reduction=0.5))
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sys.stdout.write(json.dumps({"peak_bytes": peak_bytes, **report.section("Totals").facts}))


if __name__ == "__main__":
    main()
