"""One of several processes that hold rows and sum cores in place of gradients; argv: where to save, kind, checks."""

import sys
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from distributed_fsdp2 import Stack, values
from distributed_fsdp2 import stack as float_stack
from ranks import COLLECTIVE_TIMEOUT_S
from shared_training import MICRO, train
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import featherweight as fw
from featherweight.distributed.fsdp2 import collectives_of
from featherweight.distributed.int8_rows import store_codes_as_parameters
from featherweight.distributed.run import bytes_at_hand, traffic_of
from featherweight.distributed.whole import whole_weights
from featherweight.training.footprint import predict_bytes

STEPS = 14
MATRICES = ["0", "2", "odd", "even"]
CLIPS: dict[str, dict[str, Any]] = {
    "none": {},
    "delayed": {"max_grad_norm": 0.05},
    "projected": {"clip": "projected", "max_grad_norm": 0.05},
    "per_tensor": {"clip": "per_tensor", "max_grad_norm": 0.02},
    "norm_growth": {"clip": "norm_growth"},
}
SIDES = ("right", "left", "std")
NAMES = [f"{side} {clip}" for side in SIDES for clip in CLIPS if side == "std" or clip in ("none", "delayed")]
FEW = ["right delayed", "left none", "std projected"]
"""What more processes and copies train."""


class Whole:
    """The reducer of one process that makes the steps of several: what is summed here is their mean already."""

    world_size = 2

    def mean_(self, tensors: Any) -> None:
        pass

    def require_same(self, names: Any) -> None:
        pass


def stack(dtype: torch.dtype = torch.float64) -> Stack:
    model = float_stack(dtype)
    fw.apply(model, fw.CoreGradient(target_modules=MATRICES, prefer="memory"))
    return model


def optimizer_for(model: nn.Module, side: str, **options: Any) -> Any:
    keys = {"rank": 3, "update_proj_gap": 4, "proj_type": side, **options}
    return fw.optim.GaLoreAdamW(fw.optim.param_groups(model, MATRICES, min_numel=1, **keys), lr=1e-2)


def sharded(kind: str, side: str, **options: Any) -> tuple[Stack, Any]:
    model = stack()
    fw.distributed.shard(model, kind, shard_size=2 if kind == "hsdp" else None)
    return model, optimizer_for(model, side, **options)


def trained(kind: str, rank: int, size: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in NAMES if size == 2 else FEW:
        side, clip = name.split()
        model, optimizer = sharded(kind, side)
        train(model, optimizer, rank=rank, world_size=size, steps=STEPS, layerwise=CLIPS[clip])
        shapes: Counter[tuple[int, ...]] = Counter()
        for traffic in traffic_of(model).values():
            shapes.update(traffic.shapes)
        found[name] = {
            "values": values(model),
            "shapes": {shape for shape in shapes if len(shape) > 1},
            "gradients": [name for name, one in model.named_parameters() if one.grad is not None],
        }
    return found


def traffic(kind: str, rank: int, size: int) -> dict[str, Any]:
    """What is sent in each of five steps; all bases are due in the first and the fifth."""
    found = {}
    for side in ("right", "left"):
        model, optimizer = sharded(kind, side, stagger=False)
        steps = []
        for step in range(5):
            before = {words: dict(one.payload_bytes) for words, one in traffic_of(model).items()}
            train(model, optimizer, rank=rank, world_size=size, steps=1, start=step, layerwise={})
            steps.append(
                {
                    words: {key: count - before[words].get(key, 0) for key, count in one.payload_bytes.items()}
                    for words, one in traffic_of(model).items()
                }
            )
        found[side] = steps
    return found


def not_finite(kind: str, rank: int, size: int) -> dict[str, Any]:
    """A NaN in the micro-batch of one process reaches the cores of all, and in one row of a gradient its owner."""
    model, optimizer = sharded(kind, "right")

    def spoil(step: int, number: int) -> float:
        return float("nan") if step == 2 and number == 0 else 1.0

    train(model, optimizer, rank=rank, world_size=size, steps=4, layerwise={}, spoil=spoil)
    return {"skipped": optimizer.skipped_steps, "values": values(model)}


class Codes(nn.Module):
    """Rows of 300 are a whole group of 256 and a shorter one; 7 rows are uneven on two and three processes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 300)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(300, 7), nn.Tanh(), nn.Linear(7, 300)) for _ in range(2))
        self.head = nn.Linear(300, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return self.head(hidden)


def codes(*, cores: bool = True) -> Codes:
    torch.manual_seed(0)
    model = Codes()
    fw.apply(model, fw.Int8(embeddings=True))
    if cores:
        fw.apply(model, fw.CoreGradient(prefer="memory"))
    return model


def q_galore(model: nn.Module, side: str) -> Any:
    keys = {"rank": 3, "update_proj_gap": 4, "proj_type": side}
    groups = fw.optim.param_groups(model, ["0", "2", "head"], min_numel=1, **keys)
    return fw.optim.QGaLoreAdamW(groups, lr=1e-2, basis_bits=32, state_bits=32)


def train_codes(model: nn.Module, optimizer: Any, *, rank: int, size: int, steps: int, **options: Any) -> list[float]:
    """Train on micro-batches of six tokens; a process that is short of one repeats its last with weight 0."""
    mine = [number for number in range(MICRO) if number % size == rank]
    passes, losses = -(-MICRO // size), []
    with fw.optim.layerwise(model, optimizer, accumulation_steps=passes, **options):
        for step in range(steps):
            total = 0.0
            for turn in range(passes):
                number = step * MICRO + mine[min(turn, len(mine) - 1)]
                tokens = torch.randint(0, 20, (6,), generator=torch.Generator().manual_seed(number))
                loss = model(tokens).square().mean() * (1.0 if turn < len(mine) else 0.0)
                total += float(loss.detach())
                (loss * size / MICRO).backward()
            losses.append(total)
    return losses


def int8(kind: str, rank: int, size: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side in ("right", "left"):
        for steps in (1, 20):
            model = codes()
            fw.distributed.shard(model, kind)
            optimizer = q_galore(model, side)
            losses = torch.tensor(train_codes(model, optimizer, rank=rank, size=size, steps=steps))
            dist.all_reduce(losses)
            found[f"{side} {steps}"] = {"weights": whole_weights(model), "losses": losses}
    local = sum(one.to_local().nbytes for one in model.parameters() if hasattr(one, "to_local"))
    found["bytes"] = local
    found["counted"], found["planned"] = bytes_at_hand(model, optimizer), predict_bytes(model, optimizer)
    found["shapes"] = set(collectives_of(model).traffic.shapes)
    found["policy"] = under_policy()
    model = codes(cores=False)
    fw.distributed.shard(model, kind)
    optimizer = q_galore(model, "right")
    model(torch.arange(6)).square().mean().backward()
    try:
        optimizer.step()
        found["refused"] = "no error"
    except fw.errors.ConfigError as error:
        found["refused"] = str(error)
    return found


def under_policy() -> dict[str, bool]:
    """Whether codes and scales are gathered as they are under a policy that casts what is gathered to bfloat16."""
    model, found = codes(cores=False), {}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    handles, policy = set(store_codes_as_parameters(model)), MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    fully_shard(model, mp_policy=policy, ignored_params=handles)
    model.unshard()
    for name, tensor in model.named_parameters():
        if name.endswith(("_codes", "_scale")):
            bits = tensor.view(torch.float32) if name.endswith("_scale") else tensor
            found[name] = torch.equal(bits, before[name])
        elif tensor not in handles:
            found[name] = tensor.dtype == torch.bfloat16  # the policy is in force
    return found


def main() -> None:
    torch.set_num_threads(1)
    fw.distributed.start(timeout_s=COLLECTIVE_TIMEOUT_S)
    rank, size = fw.distributed.rank(), fw.distributed.world_size()
    kind, wanted = sys.argv[2], sys.argv[3].split(",")
    checks = {check.__name__: check for check in (trained, traffic, not_finite, int8)}
    torch.save({name: checks[name](kind, rank, size) for name in wanted}, f"{sys.argv[1]}-{rank}")
    fw.distributed.stop()


if __name__ == "__main__":
    main()
