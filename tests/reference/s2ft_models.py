"""Small models with S2FT adapters whose changes have values, as after some training."""

import peft
import torch
from causal_models import batch, causal_model

import featherweight as fw
from featherweight.methods.s2ft.layer import s2ft_layers


def filled(model, names=None, seed=0, size=0.1):
    """Give some adapters, or all, random values; return the model."""
    generator = torch.Generator().manual_seed(seed)
    for layer in s2ft_layers(model).values():
        for name in sorted(layer.s2ft_delta) if names is None else names:
            if name in layer.s2ft_delta:
                delta = layer.s2ft_delta[name]
                delta.data.copy_(torch.randn(delta.shape, generator=generator, dtype=torch.float64) * size)
    return model


def with_adapters(architecture="llama", dtype=torch.float32, **configs):
    """Return a model in evaluation mode with an adapter for each entry, of random values."""
    model = None
    for name, options in configs.items():
        config = fw.S2FTConfig(**{"num_channels": 8, **options})
        if model is None:
            model = peft.get_peft_model(causal_model(architecture, dtype), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    return filled(model, list(configs)).eval()


def s2ft(model, **options):
    """Return a model with one fresh adapter of 8 channels, or as the options say."""
    return peft.get_peft_model(model, fw.S2FTConfig(**{"num_channels": 8, **options}))


def adapted(base=None, **options):
    """Return a small Llama, or another model, with one fresh adapter of 8 channels."""
    return s2ft(causal_model("llama") if base is None else base, **options)


def logits(model, **options):
    """Return a model's logits of one fixed batch."""
    with torch.no_grad():
        return model(input_ids=batch()["input_ids"], **options).logits


def indices_of(model, name="default"):
    """Return the channels of an adapter by module."""
    return {place: layer.s2ft_indices[name].tolist() for place, layer in s2ft_layers(model).items()}


def selecting(architecture="llama", **options):
    """Return a small model with one fresh adapter, of which the options say all."""
    return peft.get_peft_model(causal_model(architecture), fw.S2FTConfig(**options))


def weights_of(model):
    """Return copies of the base weights by module."""
    return {name: layer.get_base_layer().weight.detach().clone() for name, layer in s2ft_layers(model).items()}


def run_steps(model, optimizer, steps, micro_batches=1):
    """Train a model for some steps of four rows each and return the losses."""
    losses = []
    for step in range(steps):
        inputs = batch(rows=4, seed=step)
        for part in range(micro_batches):
            rows = slice(part * 4 // micro_batches, (part + 1) * 4 // micro_batches)
            count = int((inputs["labels"][:, 1:] != -100).sum())
            piece = {name: tensor[rows] for name, tensor in inputs.items()}
            loss = model(**piece, use_cache=False, num_items_in_batch=count).loss
            loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses
