"""An optimizer of your own: fw train recipe.yaml --import examples/own_optimizer.py optimizer=lion

Lion moves each weight by the sign of a momentum (Chen et al., arXiv 2302.06675).
"""

import torch
from torch.optim import Optimizer

import featherweight as fw


class Lion(Optimizer):
    """Lion; its arguments are the keys that a recipe may set."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """Make one step."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                update = torch.lerp(parameter.grad, momentum, beta1).sign()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - beta2)


entry = fw.optim.own_optimizer(Lion)
fw.optim.optimizers.register("lion", entry)

if __name__ == "__main__":
    recipe = {
        "task": {"name": "text", "model": "tiny", "seq_len": 32, "max_train_tokens": 4000, "max_held_out_tokens": 500},
        "optimizer": {"name": "lion", "lr": 3e-4},
        "steps": 4,
        "micro_batch_size": 2,
    }
    print(fw.train(recipe, callbacks=[]).report)
