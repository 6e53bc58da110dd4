"""Short runs of InRank on small models."""

from causal_models import batch

# A random buffer, so that ranks grow within a few steps.
FAST = {"buffer": 4, "every": 2, "warmup": 1, "init_rank": 1, "buffer_init": "random"}


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
