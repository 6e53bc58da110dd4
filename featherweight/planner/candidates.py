"""The recipes among which a plan chooses: what is trained and how, times how activations are kept.

The first choice decides about quality, the second one about time alone: every way of keeping activations computes the
same gradients.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from featherweight.errors import LISTED, ConfigError, did_you_mean
from featherweight.training.recipe import Recipe

TAGS = {
    "bf16-weights": "weights in bfloat16, written with stochastic rounding",
    "8-bit-states": "moments in 8 or 4 bits",
    "low-rank": "moments of matrices in a subspace of the gradient",
    "int8-weights": "weights in int8",
    "4bit-weights": "frozen weights in 4 bits",
    "few-parameters": "a small part of the parameters is trained",
}
"""What a recipe gives up against float32 AdamW of all parameters, in words; all but these compute the same numbers."""


@dataclass(frozen=True)
class Family:
    """What is trained, and by which optimizer."""

    name: str
    """As tables show it."""
    optimizer: Mapping[str, Any]
    """As a recipe takes it, without a learning rate."""
    tags: tuple[str, ...] = ()
    """What is given up: keys of `TAGS`."""
    methods: tuple[Any, ...] = ()
    """Changes of the model, before those of `ActivationStrategy`."""
    precision: str = "bf16"
    """As a recipe takes it."""
    lr: float = 1e-3
    """Where to begin with a new model."""
    tuning_lr: float = 2e-5
    """Where to begin with a pretrained one."""


_GALORE = {"name": "galore_8bit", "rank": 0.25, "layerwise": True, "proj_type": "std"}
FAMILIES = (
    Family("AdamW, float32 weights", {"name": "adamw"}, precision="bf16_autocast"),
    Family("AdamW", {"name": "adamw"}, ("bf16-weights",)),
    Family("AdamW 8-bit", {"name": "adamw_8bit"}, ("bf16-weights", "8-bit-states")),
    Family("AdamW 8-bit, layer-wise", {"name": "adamw_8bit", "layerwise": True}, ("bf16-weights", "8-bit-states")),
    Family("GaLore 8-bit, rank 1/4", _GALORE, ("bf16-weights", "8-bit-states", "low-rank"), lr=1e-2, tuning_lr=1e-4),
    Family(
        "Q-GaLore, rank 1/4",
        {"name": "q_galore", "rank": 0.25, "layerwise": True},
        ("int8-weights", "8-bit-states", "low-rank"),
        ("core_gradient",),
        lr=5e-3,
        tuning_lr=1e-4,
    ),
    Family(
        "Q-GaLore, rank 1/16, 4-bit, int8 embeddings",
        {"name": "q_galore", "rank": 0.0625, "layerwise": True, "state_bits": 4},
        ("int8-weights", "8-bit-states", "low-rank"),
        ({"int8": {"embeddings": True}}, "core_gradient"),
        lr=5e-3,
        tuning_lr=1e-4,
    ),
    Family("S2FT", {"name": "adamw"}, ("bf16-weights", "few-parameters"), ("s2ft",), tuning_lr=1e-3),
    Family("LoRA, rank 16", {"name": "adamw"}, ("bf16-weights", "few-parameters"), ("lora",), tuning_lr=2e-4),
    Family(
        "LoRA, rank 16, int8 weights",
        {"name": "adamw"},
        ("int8-weights", "few-parameters"),
        ("int8", "lora"),
        tuning_lr=2e-4,
    ),
    Family(
        "LoRA, rank 16, 4-bit weights",
        {"name": "adamw"},
        ("4bit-weights", "few-parameters"),
        ("base4bit", "lora"),
        tuning_lr=2e-4,
    ),
)
"""From the most faithful to the smallest."""


def _in_16_bits(family: Family) -> Family:
    """Return a family with moments of 16 bits: twice the bytes of 8, half of the time of the update on a CPU."""
    name = str(family.optimizer["name"]).removesuffix("_8bit")
    optimizer = {**family.optimizer, "name": name, "state_bits": 16}
    if name == "galore":
        optimizer["basis_bits"] = 16  # what galore_8bit means, too
    tags = tuple(tag for tag in family.tags if tag != "8-bit-states")
    return replace(family, name=family.name.replace("8-bit", "16-bit"), optimizer=optimizer, tags=tags)


CPU_TWINS = {family.name: _in_16_bits(family) for family in FAMILIES if "8-bit" in family.name}
"""What a CPU prefers to a family, by its name, where the memory is there."""


@dataclass(frozen=True)
class ActivationStrategy:
    """How activations are kept until the backward pass; exact, so a matter of memory and time alone."""

    name: str
    """As tables show it."""
    methods: tuple[Any, ...] = ()
    """Methods of a recipe."""
    activation_checkpointing: bool = False
    """As a recipe takes it."""


ACTIVATION_STRATEGIES = (
    ActivationStrategy("all kept"),
    ActivationStrategy("chunks", ({"mst": {}},)),
    ActivationStrategy("checkpointing", (), True),
    ActivationStrategy("chunks, checkpointing", ({"mst": {"checkpoint": True}},)),
    ActivationStrategy("chunks of whole layers, checkpointing", ({"mst": {"checkpoint": True, "tokenwise": True}},)),
    ActivationStrategy("chunks of whole layers, offloaded", ({"mst": {"checkpoint": "offload", "tokenwise": True}},)),
)
"""From the fastest to the smallest, as far as one can say without a model."""


def recipe_of(base: Recipe, family: Family, strategy: ActivationStrategy, *, is_pretrained: bool) -> Recipe:
    """Return a recipe of a family, with data, steps and batch of another one."""
    optimizer = {**family.optimizer, "lr": family.tuning_lr if is_pretrained else family.lr}
    changes = {
        "optimizer": optimizer,
        "methods": [*family.methods, *strategy.methods],
        "precision": family.precision,
        "activation_checkpointing": strategy.activation_checkpointing,
    }
    return Recipe.parse({**base.to_dict(), **changes}, where="recipe")


def families_without(exclude: Collection[str], *, on_cpu: bool = False) -> list[list[Family]]:
    """Return the families that give up nothing of what is listed, each with what is tried before it.

    Args:
        exclude: tags.
        on_cpu: whether moments of 16 bits come before those of 8, whose update takes a CPU twice the time.
    Raises:
        ConfigError: if a tag is unknown.
    """
    for tag in exclude:
        if tag not in TAGS:
            raise ConfigError(
                f"plan: exclude={tag!r} is no tag; expected some of {', '.join(TAGS)}. "
                f"{did_you_mean(tag, TAGS, otherwise=LISTED)}"
            )
    tried = [[*([CPU_TWINS[one.name]] if on_cpu and one.name in CPU_TWINS else []), one] for one in FAMILIES]
    allowed = [[family for family in choices if not set(family.tags) & set(exclude)] for choices in tried]
    return [choices for choices in allowed if choices]


def family_called(name: str) -> Family:
    """Return a family by the name that tables show."""
    return next(family for family in (*FAMILIES, *CPU_TWINS.values()) if family.name == name)
