"""A small Llama and its ordinary training, beside which layer-wise updates are held."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from featherweight.optim import (
    build_optimizer,
    parse_optimizer,
)

VOCABULARY = 60


GAP = 3


def llama(dtype=torch.float32, seed=0, **options):
    torch.manual_seed(seed)
    settings = {
        "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": VOCABULARY, "tie_word_embeddings": True,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**{**settings, **options})).to(dtype).train()


def batches(count, rows=3, length=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (rows, length), generator=generator) for _ in range(count)]


def loss_of(model, tokens):
    logits = model(tokens).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="sum")


def build(name, model, **options):
    low_rank = {} if name.startswith(("adamw", "scale")) else {"update_proj_gap": GAP}
    if low_rank and name != "apollo_mini":
        low_rank["rank"] = 6
    config = parse_optimizer({"name": name, "lr": 1e-2, "weight_decay": 0.1, **low_rank, **options})
    return build_optimizer(model, config, seed=3)


def train_ordinary(model, optimizer, data, *, clip=None):
    norms = []
    for tokens in data:
        (loss_of(model, tokens) / tokens[:, 1:].numel()).backward()
        if clip is not None:
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip)))
        optimizer.step()
        optimizer.zero_grad()
    return norms


def assert_same_run(one, other, rtol=0.0, atol=0.0):
    (model, optimizer), (twin, twin_optimizer) = one, other
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")
        if rtol == atol == 0:
            states = optimizer.state[a], twin_optimizer.state[b]
            assert states[0].keys() == states[1].keys()
            assert all(torch.equal(value, states[1][key]) for key, value in states[0].items()), name


def stagger_free(optimizer):
    """Put every refresh far away."""
    for state in optimizer.state.values():
        if "next_refresh" in state:
            state["next_refresh"].fill_(1000)


class Tower(nn.Module):
    """One layer that is applied several times, with or without checkpointing, and a tied output."""

    def __init__(self, use_reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        self.use_reentrant = use_reentrant
        self.embedding = nn.Embedding(VOCABULARY, 24)
        self.shared = nn.Linear(24, 24)
        self.single = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.head = nn.Linear(24, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        hidden = self.embedding(tokens)
        for block in (self.shared, self.single, self.shared, self.shared):
            if self.use_reentrant is None:
                hidden = hidden + torch.tanh(block(hidden))
            else:
                hidden = hidden + torch.tanh(checkpoint(block, hidden, use_reentrant=self.use_reentrant))
        return self.head(hidden)


def tower_loss(model, tokens):
    return nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
