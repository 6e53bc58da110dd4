"""Continue a run that galore-torch started: its optimizer state loads without pickle and without galore-torch.

python examples/import_galore_torch.py optimizer.pt        # your file
python examples/import_galore_torch.py                     # makes one first (needs galore-torch)
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

import featherweight as fw
from featherweight.optim.galore_torch import load_galore_torch

KEYS = {"rank": 8, "update_proj_gap": 10, "scale": 0.25, "proj_type": "std"}


def make_official_state(path: Path) -> None:
    """Take three steps with galore-torch and save its optimizer as its users do."""
    from galore_torch import GaLoreAdamW

    model = nn.Linear(64, 32, bias=False)
    optimizer = GaLoreAdamW([{"params": [model.weight], **KEYS}], lr=1e-2, no_deprecation_warning=True)
    for _ in range(3):
        model(torch.randn(16, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(optimizer.state_dict(), path)


def main() -> None:
    """Load the state and take one more step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path)
    path = parser.parse_args().path
    if path is None:
        path = Path(tempfile.mkdtemp()) / "optimizer.pt"
        make_official_state(path)

    model = nn.Linear(64, 32, bias=False)
    optimizer = fw.optim.GaLoreAdamW([{"params": [model.weight], **KEYS}], lr=1e-2)
    load_galore_torch(optimizer, path)
    model(torch.randn(16, 64)).square().mean().backward()
    optimizer.step()
    state = optimizer.state[model.weight]
    print({name: tuple(tensor.shape) or int(tensor) for name, tensor in state.items()})
    torch.save(optimizer.state_dict(), path.with_name("featherweight.pt"))
    torch.load(path.with_name("featherweight.pt"), weights_only=True)
    print("continued at step", int(state["step"]), "and saved again as plain tensors")


if __name__ == "__main__":
    main()
