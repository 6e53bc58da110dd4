"""8-bit GaLore with layer-wise updates in transformers.Trainer, with accumulation, clipping and a report.

python examples/huggingface_trainer.py [--steps 60]
"""

import argparse
import tempfile
from pathlib import Path

import torch
import transformers

import featherweight as fw


def main() -> None:
    """Teach a small Llama to continue sequences that repeat themselves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=352, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    model = transformers.LlamaForCausalLM(config)
    halves = torch.randint(0, 64, (512, 16))
    data = [{"input_ids": row, "labels": row} for row in torch.cat([halves, halves], dim=1)]

    folder = Path(tempfile.mkdtemp())
    args = transformers.TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
        learning_rate=1e-2,
        max_grad_norm=1.0,
        logging_steps=max(steps // 6, 1),
        save_strategy="no",
        dataloader_pin_memory=False,
        report_to=[],
        disable_tqdm=True,
    )
    optimizer = fw.training.trainer_optimizer("galore_8bit", model, rank=32, scale=1.0, layerwise=True)
    report = fw.training.ReportCallback()
    trainer = transformers.Trainer(model, args, train_dataset=data, callbacks=[report], **optimizer)
    trainer.train()

    ours = trainer.optimizer.optimizer
    print(f"gradients at the peak: {ours.gradient_bytes():,} bytes, those of all weights: ", end="")
    print(f"{sum(p.nbytes for p in model.parameters()):,}; optimizer state {ours.state_bytes():,}")
    print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    main()
