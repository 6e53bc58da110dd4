"""Q-GaLore: int8 weights, 8-bit moments, a packed 4-bit basis, and rare refreshes in one step."""

import torch
from torch import nn

import featherweight as fw
from featherweight.optim import QGaLoreAdamW


def test_the_state_of_an_int8_layer_is_packed_and_learns_as_galore_does():
    torch.manual_seed(0)
    start, target, x = torch.randn(512, 256) / 16, torch.randn(512, 256) / 16, torch.randn(256, 256)
    losses = {}
    for name in ("galore", "q_galore"):
        model = nn.Sequential(nn.Linear(256, 512, bias=False))
        model[0].weight.data.copy_(start)
        if name == "q_galore":
            fw.apply(model, fw.Int8())
        weight = model[0].weight
        kind = QGaLoreAdamW if name == "q_galore" else fw.optim.GaLoreAdamW
        optimizer = kind([{"params": [weight], "rank": 64}], lr=0.02, update_proj_gap=5)
        for _ in range(20):
            loss = (model(x) - x @ target.T).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses[name] = float(loss.detach())
        state = optimizer.state[weight]
    packed = {key: state[key].dtype for key in ("exp_avg_codes", "exp_avg_sq_codes", "basis_right_codes")}
    assert set(packed.values()) == {torch.uint8}
    assert state["exp_avg_codes"].numel() == 512 * 64 and state["basis_right_codes"].numel() == 256 * 64 // 2
    assert optimizer.state_bytes() == sum(part.nbytes for part in state.values())
    # Measured 0.2 % apart; a basis read with the wrong nibble, or an update that vanishes in the codes, stays near 2.
    assert abs(losses["q_galore"] / losses["galore"] - 1) < 0.05 and losses["galore"] < 1
