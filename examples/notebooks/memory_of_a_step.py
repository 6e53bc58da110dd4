# %% [markdown]
# # Where the memory of a step goes
#
# Four terms fill a device while a model trains: weights, gradients, optimizer state, activations. `fw.measure_memory` books every tensor of a real
# step under one of them. This notebook needs no GPU and no download.

# %%
import torch

import featherweight as fw
from featherweight.models import load_model
from featherweight.report import Report

torch.manual_seed(0)
tokens = torch.randint(0, 250, (2, 256))


def measured(make_optimizer):
    """Measure the second step, in which the state exists from the start."""
    model = load_model("tiny").train()
    optimizer = make_optimizer(model)
    for _ in range(2):
        with fw.measure_memory(model, optimizer) as memory:
            model(tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return memory


# %% [markdown]
# ## AdamW
# Two moments of four bytes for each weight: the state is twice the weights.

# %%
adamw = measured(lambda model: fw.optim.AdamW(model.parameters(), lr=1e-3))
adamw.report()

# %% [markdown]
# ## GaLore in eight bits
# The moments live in a subspace of the gradient, one byte each.

# %%
galore = measured(lambda model: fw.optim.GaLoreAdamW(fw.optim.param_groups(model, rank=32), lr=1e-2, state_bits=8))
galore.report()

# %% [markdown]
# ## Side by side

# %%
comparison = Report("One step of a small Llama")
rows = {"AdamW": adamw, "GaLore, 8 bits": galore}
kib = {name: {term: size / 2**10 for term, size in one.peak_by_category.items() if size} for name, one in rows.items()}
comparison.add_bars("Memory at the peak", "memory (KiB)", kib)
comparison

# %%
assert kib["GaLore, 8 bits"]["optimizer_state"] < kib["AdamW"]["optimizer_state"] / 2
