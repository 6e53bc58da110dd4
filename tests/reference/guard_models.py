"""Guards of tiny models with random weights: what they say means nothing, how they say it must be right."""

from functools import cache

import torch
from tiny_models import VOCABULARY, prompt, tiny_model

from featherweight.guard.decoding import read_probe
from featherweight.guard.evidence import Evidence
from featherweight.guard.guard import PrefixGuard
from featherweight.guard.linear import Linear
from featherweight.guard.options import GuardOptions, default_layers
from featherweight.guard.probe import Probe
from featherweight.models.generation import prefill

PREFIX = (5, 9, 14, 20)
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + ' end ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
)


@cache
def word_tokenizer():
    """A tokenizer of 64 words, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["end", "user", "assistant", "system", "unknown", *(f"w{index}" for index in range(VOCABULARY - 5))]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="unknown"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="unknown", eos_token="end", pad_token="end", chat_template=TEMPLATE
    )


def random_guard(name, tier="probe_hidden", *, probe_tokens=5, **options):
    """A guard of a tiny model that flags about half of all prompts."""
    model = tiny_model(name)
    settings = {
        "prefix_text": "w0 w4 w9 w15",
        "prefix_ids": PREFIX,
        "layers": default_layers(model.config.num_hidden_layers),
        "probe_tokens": probe_tokens,
        "refusal_text": "w7 w8",
        "branch": "sequential",
        **options,
    }
    vocabulary = torch.arange(8)
    bare = PrefixGuard(GuardOptions(**settings, stages=[{"tier": tier}]), {}, vocabulary=vocabulary)
    bare.bind(model, word_tokenizer())
    evidence = all_evidence(bare, model, prompt(24, 9, seed=7))
    features = bare._scoring.features(tier, evidence)
    weight = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(1))
    std = torch.where(features.std(dim=0) > 0, features.std(dim=0), torch.ones(()))
    score = Linear(features.mean(dim=0), std, weight, torch.zeros(()))
    stages = [{"tier": tier, "flag_above": float(score(features).median())}]
    guard = PrefixGuard(GuardOptions(**settings, stages=stages), {tier: score}, vocabulary=vocabulary)
    return guard.bind(model, word_tokenizer())


def all_evidence(guard, model, ids, mask=None, stops=()) -> Evidence:
    """What every tier reads of prompts."""
    probe = Probe(guard, len(ids), stops, decides=False)
    decoding = prefill(model, ids, mask, output_hidden_states=True)
    probe.read_prompt(decoding.logits, decoding.hidden_states, decoding.tokens)
    read_probe(decoding, probe, guard.options.forced_ids)
    return probe.evidence
