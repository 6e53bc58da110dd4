"""Two workers of Ray Train run a recipe together: `python examples/launch_ray.py`, with `pip install "ray[train]"`.

Ray sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its workers; `fw.train` needs nothing else.
"""

import sys
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

import featherweight as fw


def work(config: dict[str, Any]) -> None:
    """Train in one worker; all of them make the same call."""
    fw.train(config["recipe"], overrides=["sharding=fsdp2"], out=config["out"])


if __name__ == "__main__":
    recipe, out = sys.argv[1:3]
    scaling = ray.train.ScalingConfig(num_workers=2, use_gpu=False)
    TorchTrainer(work, train_loop_config={"recipe": recipe, "out": out}, scaling_config=scaling).fit()
