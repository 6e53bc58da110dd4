"""Train a small recipe layer by layer with weights on the host, slowly, until somebody kills the process.

python kill_in_layer_step.py FOLDER [--resume]
"""

import sys
import time

from featherweight.training import train
from featherweight.training.events import Callback

MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 260,
    "initializer_range": 0.1,
}
RECIPE = {
    "task": {
        "name": "text",
        "model": MODEL,
        "tokenizer": "bytes",
        "weights": "random",
        "seq_len": 64,
        "max_train_tokens": 4000,
        "max_held_out_tokens": 200,
    },
    "optimizer": {"name": "galore", "rank": 4, "lr": 1e-2, "update_proj_gap": 3, "layerwise": True},
    "schedule": {"order": "layer", "chunk_tokens": 16, "inputs": "host", "weights": "host"},
    "steps": 8,
    "micro_batch_size": 2,
    "memory_steps": [],
    "checkpoint_every": 1,
}


class Slow(Callback):
    """Says where the run is, and gives whoever wants to kill it the time to do so in the middle of a step."""

    def on_progress(self, event):
        sys.stdout.write(f"{event.step} {event.notice}\n")
        sys.stdout.flush()
        time.sleep(0.05)


if __name__ == "__main__":
    from featherweight.training import passes

    passes.SECONDS_BETWEEN_WORDS = 0.0
    is_resumed = "--resume" in sys.argv
    train(RECIPE, out=sys.argv[1], resume=is_resumed, callbacks=[] if is_resumed else [Slow()])
