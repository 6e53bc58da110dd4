"""One decision for all processes: ranks that each measures by itself could differ by rounding."""

import torch
import torch.distributed as dist


def ranks_of_first_process(ranks: dict[str, int], device: torch.device) -> dict[str, int]:
    """Let all processes take the ranks of the first one: they could differ by rounding."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return ranks
    values = torch.tensor(list(ranks.values()), device=device)
    dist.broadcast(values, 0)
    return dict(zip(ranks, values.tolist(), strict=True))
