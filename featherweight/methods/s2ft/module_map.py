"""Which modules of an architecture S2FT trains by default, along which axis, and which of them consist of heads.

Attention outputs and last feed-forward matrices read an inner dimension (heads, channels) that nothing else reads, so
a few of their input channels are a dense slice, and training them keeps a slice of the input alone.
Source: arXiv 2412.06289, section 3; the names are those of `transformers`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featherweight.errors import ConfigError
from featherweight.nn.channel_delta import Axis


@dataclass(frozen=True)
class Targets:
    """Default modules of an architecture, as regular expressions of the whole module name."""

    attention: str
    """Attention outputs; their input channels are heads."""
    feed_forward: str
    """Last matrices of feed-forward layers."""

    @property
    def pattern(self) -> str:
        """One regular expression for both."""
        return f"(?:{self.attention})|(?:{self.feed_forward})"


def _ends(attention: str, feed_forward: str) -> Targets:
    return Targets(rf"(?:.*\.)?{attention}", rf"(?:.*\.)?{feed_forward}")


_LLAMA = _ends(r"self_attn\.o_proj", r"mlp\.down_proj")
_NEOX = _ends(r"(?:attention|self_attention)\.dense", r"mlp\.dense_4h_to_h")
_BERT = _ends(r"attention\.output\.dense", r"(?<!attention\.)output\.dense")

TARGETS: dict[str, Targets] = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo", "olmo2", "olmo3"),
            *("cohere", "cohere2", "granite", "smollm3", "glm", "glm4", "exaone4", "ministral"),
        ),
        _LLAMA,
    ),
    "gpt2": _ends(r"attn\.c_proj", r"mlp\.c_proj"),
    "opt": _ends(r"self_attn\.out_proj", "fc2"),
    "phi": _ends(r"self_attn\.dense", r"mlp\.fc2"),
    "starcoder2": _ends(r"self_attn\.o_proj", r"mlp\.c_proj"),
    **dict.fromkeys(("gpt_neox", "bloom", "falcon"), _NEOX),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), _BERT),
    "vit": _ends(r"attention\.o_proj", r"mlp\.fc2"),
    **dict.fromkeys(("t5", "mt5", "umt5"), _ends(r"(?:SelfAttention|EncDecAttention)\.o", r"DenseReluDense\.wo")),
}
"""Default modules by `config.model_type`."""

EXPERT_MODELS = frozenset({"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3", "granitemoe"})
"""Architectures whose feed-forward weights are stacks of experts."""

_INPUT_ENDS = re.compile(
    r"(?:.*\.)?(?:o_proj|out_proj|down_proj|fc2|c_proj|wo|EncDecAttention\.o|SelfAttention\.o|dense_4h_to_h"
    r"|(?:attention|self_attention|self_attn|output)\.dense)"
)
_ATTENTION_ENDS = re.compile(
    r"(?:.*\.)?(?:o_proj|out_proj|attn\.c_proj|(?:attention|self_attention|self_attn)\.dense|attention\.output\.dense"
    r"|EncDecAttention\.o|SelfAttention\.o)"
)


def default_targets(model_type: str | None) -> Targets:
    """Return the default modules of an architecture.

    Raises:
        ConfigError: for a mixture of experts, and for an architecture that is not in `TARGETS`.
    """
    if model_type in TARGETS:
        return TARGETS[model_type]
    if model_type in EXPERT_MODELS:
        raise ConfigError(
            f"S2FTConfig: target_modules=None does not suit model_type={model_type!r}, whose feed-forward weights are "
            "stacks of experts in one tensor; expected the names of linear layers. Train attention alone with "
            "target_modules=['o_proj']."
        )
    raise ConfigError(
        f"S2FTConfig: target_modules=None has no default for model_type={model_type!r}; expected one of "
        f"{', '.join(sorted(TARGETS))}, or names. Set target_modules, for example to 'all-linear'."
    )


def default_axis(name: str) -> Axis:
    """Return the axis of a module by the end of its name.

    Example:
        >>> default_axis("model.layers.0.mlp.down_proj"), default_axis("model.layers.0.mlp.up_proj")
        ('input', 'output')
    """
    return "input" if _INPUT_ENDS.fullmatch(name) else "output"


def is_attention_output(name: str) -> bool:
    """Tell by its name whether a module is the output matrix of an attention layer."""
    return _ATTENTION_ENDS.fullmatch(name) is not None


def head_dim(name: str, model_config: Mapping[str, Any], channels: int) -> int | None:
    """Return how many channels a head of this module's input has, or None if its input does not consist of heads.

    Args:
        name: full name of the module.
        model_config: `config.to_dict()` of the model.
        channels: input features of the module.
    """
    if not is_attention_output(name):
        return None
    config = model_config.get("text_config") or model_config
    heads = next((config[key] for key in ("num_attention_heads", "n_head", "num_heads") if config.get(key)), None)
    size = config.get("head_dim") or config.get("d_kv")
    if heads is None:
        return None
    if size is None and channels % heads == 0:
        size = channels // heads
    return int(size) if size and size * heads == channels else None
