# %% [markdown]
# # A model that shrinks
#
# WeLore gives every matrix a rank of its own and stores what was cut in fewer numbers. Random weights, as here, are the hardest case: they have no low rank.
# A trained model loses far less.

# %%
import torch

import featherweight as fw
from featherweight.models import load_model

torch.manual_seed(0)
model = load_model("tiny").eval()
tokens = torch.randint(0, 250, (1, 128))


@torch.no_grad()
def logits_of(model):
    """Return what the model says of every token."""
    return model(tokens).logits


before = logits_of(model)
count = sum(one.numel() for one in model.parameters())

# %%
report = fw.apply(model, fw.WeLore(rank_reduction=0.6))
report

# %% [markdown]
# Saved and loaded, the logits are the same bit by bit; merged, the layers are ordinary ones again.

# %%
after = logits_of(model)
model.save_pretrained("small")
again = fw.load_low_rank("small").eval()
assert torch.equal(logits_of(again), after)
kept = sum(one.numel() for one in model.parameters()) / count
print(f"parameters kept: {kept:.0%}; change of the logits: {float((after - before).norm() / before.norm()):.0%}")

# %%
fw.merge_low_rank(again)
assert sum(one.numel() for one in again.parameters()) == count
