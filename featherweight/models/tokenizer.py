"""Text to token ids: the byte tokenizer, and the encoding of a corpus.

Every tokenizer here is a tokenizer of `transformers`, so that a saved folder opens in any tool of that ecosystem.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

from featherweight.errors import ConfigError
from featherweight.models.quiet import quiet_transformers

END_OF_TEXT = "<|endoftext|>"
"""The only special token of the byte tokenizer; its id is 256."""


class Tokenizer(Protocol):
    """What the text task asks of a tokenizer; those of `transformers` fulfil it."""

    eos_token_id: int | None

    def __len__(self) -> int: ...

    def __call__(self, text: list[str]) -> Any:
        """Return a mapping whose "input_ids" holds one list of ids per text."""

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of some ids."""
        ...

    def save_pretrained(self, save_directory: str) -> object:
        """Write the files that `AutoTokenizer.from_pretrained` reads."""
        ...


def byte_tokenizer() -> Tokenizer:
    """Return the tokenizer whose ids 0-255 are the bytes of UTF-8, and 256 the end of a text.

    It has no unknown text and nothing to train. `decode(encode(text))` returns every text unchanged. As with every
    tokenizer of `transformers`, a text that spells out "<|endoftext|>" gets the special token there.

    Returns:
        A `transformers.PreTrainedTokenizerFast` with 257 ids; pad, bos and eos are the same token.
    Example:
        >>> tokenizer = byte_tokenizer()
        >>> tokenizer(["né"])["input_ids"]
        [[110, 195, 169]]
        >>> tokenizer.decode([110, 195, 169]), tokenizer.eos_token_id, len(tokenizer)
        ('né', 256, 257)
    """
    from tokenizers import Tokenizer as TokenizerOfBytes
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # A merge-free BPE over the printable stand-ins of the byte-level pre-tokenizer is a table of bytes.
    backend = TokenizerOfBytes(models.BPE(vocab={_stand_in(byte): byte for byte in range(256)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )
    return cast(Tokenizer, tokenizer)


def _stand_in(byte: int) -> str:
    """Return the printable character by which byte-level tokenizers write a byte (the table of GPT-2).

    Bytes that print in Latin-1 stand for themselves; the others get the code points from 256 on, in their order.
    """
    return chr(byte if _prints(byte) else 256 + sum(not _prints(lower) for lower in range(byte)))


def _prints(byte: int) -> bool:
    return 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255


def end_of_text_id(tokenizer: Tokenizer, *, name: str) -> int:
    """Return the id that ends a document.

    Args:
        tokenizer: any tokenizer.
        name: what to call it in a message.
    Raises:
        ConfigError: if the tokenizer has no such token.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"text task: tokenizer={name} has no end-of-text token; expected one with eos_token set. "
            "Set eos_token in its tokenizer_config.json, or choose tokenizer: bytes for a model that starts from "
            "nothing."
        )
    return tokenizer.eos_token_id


def encode_documents(tokenizer: Tokenizer, documents: Sequence[str], *, batch_size: int = 256) -> Iterator[list[int]]:
    """Encode documents lazily, each as the tokenizer would encode it alone.

    A token that the tokenizer itself puts before a text (bos) stays, because models that were trained with it need it;
    one that it puts behind (eos) goes, because packing adds it.

    Args:
        tokenizer: any tokenizer.
        documents: texts.
        batch_size: how many documents to encode at once at most (fast tokenizers share them out to threads). The first
            batches are smaller, so that whoever needs a few tokens does not wait for many.
    Yields:
        The token ids of each document, in order.
    """
    start, size = 0, min(4, batch_size)
    while start < len(documents):
        # Quiet: a document may be longer than the model's context, because packing cuts it.
        with quiet_transformers():
            token_ids_of_batch = tokenizer(list(documents[start : start + size]))["input_ids"]
        start, size = start + size, min(2 * size, batch_size)
        for token_ids in token_ids_of_batch:
            yield token_ids[:-1] if token_ids and token_ids[-1] == tokenizer.eos_token_id else token_ids
