"""Where do the bytes of a training step go? Measure weights, gradients, optimizer state and activations.

python examples/measure_memory.py
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import featherweight as fw


def main() -> None:
    """Measure two steps of a small Llama with AdamW and with 8-bit GaLore."""
    config = LlamaConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, vocab_size=4096
    )
    for name in ("adamw", "galore_8bit"):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        options = {"name": name, "rank": 64} if name.startswith("galore") else {"name": name}
        optimizer = fw.optim.build_optimizer(model, fw.optim.parse_optimizer(options))
        tokens = torch.randint(0, 4096, (4, 128))

        with fw.measure_memory(model, optimizer) as memory:
            for _ in range(2):
                model(input_ids=tokens, labels=tokens).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        print(f"\n{name}: predicted optimizer state {optimizer.state_bytes():,} bytes")
        memory.report().print_terminal()


if __name__ == "__main__":
    main()
