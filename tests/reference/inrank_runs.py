"""Short runs of InRank on small models."""

from causal_models import batch

# Ranks that grow within a few steps: those of the product, which a random start sets.
FAST = {
    "buffer": 4, "every": 2, "warmup": 1, "init_rank": 1,
    "init": "kaiming", "buffer_init": "random", "growth": "product",
}  # fmt: skip


def train(model, method, optimizer, steps, start=0):
    """Train a model on three batches in turn; return the losses."""
    losses = []
    for step in range(start + 1, start + steps + 1):
        loss = model(**batch(seed=step % 3)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(model, optimizer, step)
        losses.append(loss.item())
    return losses
