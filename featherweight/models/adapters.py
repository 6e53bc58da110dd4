"""Generation with an adapter for each prompt: prompts become tokens, a bank of adapters serves the rows.

For a token at a time, run the loop of `featherweight.models.generation` inside `bank.using(names)`.
Shapes: B prompts, L tokens, padding on the left included.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from featherweight.errors import ConfigError
from featherweight.methods.s2ft.bank import AdapterBank
from featherweight.methods.s2ft.layer import BASE


def generate_with_adapters(
    bank: AdapterBank,
    prompts: Sequence[str] | Tensor,
    *,
    adapters: Sequence[str],
    tokenizer: Any = None,
    **options: Any,
) -> Any:
    """Generate with an adapter for each prompt.

    Args:
        bank: of the base model that generates.
        prompts: texts, with a tokenizer, or token ids (B, L).
        adapters: a name for each prompt; "__base__" takes none.
        tokenizer: of transformers; turns texts into tokens and back.
        options: of `transformers`' generate: max_new_tokens, num_beams, attention_mask, ...
    Returns:
        Texts of what was added for texts, else what `generate` returns: prompts and what was added.
    Raises:
        ConfigError: if texts come without a tokenizer, or the numbers of prompts and adapters differ.
    """
    if len(adapters) != len(prompts):
        raise ConfigError(
            f"AdapterBank: adapters={len(adapters)} names for {len(prompts)} prompts; expected one for each. Use "
            f"'{BASE}' for prompts without an adapter."
        )
    if isinstance(prompts, Tensor):
        with bank.using(adapters) as model:
            return model.generate(prompts, **options)  # type: ignore[operator]
    if tokenizer is None:
        raise ConfigError(
            "AdapterBank: tokenizer=None cannot read text; expected the tokenizer of the base. Give it to "
            "AdapterBank, or give token ids."
        )
    encoded = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    encoded = {name: tensor.to(next(bank.base.parameters()).device) for name, tensor in encoded.items()}
    with bank.using(adapters) as model:
        ids = model.generate(**encoded, **options)  # type: ignore[operator]
    return tokenizer.batch_decode(ids[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
