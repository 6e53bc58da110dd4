import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig

from featherweight.errors import ConfigError
from featherweight.models.tokenizer import byte_tokenizer, encode_documents, end_of_text_id

TOKENIZER = byte_tokenizer()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text())
def test_ids_are_the_bytes_of_utf8_and_decode_to_the_same_text(text):
    ids = TOKENIZER([text])["input_ids"][0]
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text


def test_every_byte_has_the_id_of_its_value():
    # Together these texts hold every byte that occurs in UTF-8 (0xC0, 0xC1 and 0xF5-0xFF never do).
    texts = ["".join(map(chr, range(0x800))), "".join(map(chr, range(0x800, 0xD800, 64))), "\U00010000\U00040000"]
    seen = set()
    for text in [*texts, "\U00080000\U000c0000\U00100000"]:
        assert TOKENIZER([text])["input_ids"][0] == list(text.encode())
        seen |= set(text.encode())
    assert len(seen) > 200


def test_vocabulary_is_256_bytes_and_the_end_of_text():
    assert len(TOKENIZER) == 257
    assert TOKENIZER.eos_token_id == 256
    assert TOKENIZER(["a<|endoftext|>b"])["input_ids"] == [[97, 256, 98]]


def test_saved_tokenizer_opens_as_auto_tokenizer_beside_a_llama_configuration(tmp_path):
    # The model_type of the folder must not make AutoTokenizer build a Llama tokenizer of its own.
    LlamaConfig(vocab_size=257).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(str(tmp_path))
    opened = AutoTokenizer.from_pretrained(tmp_path)
    text = "  två\r\n\tlines, 's 😀\x00 <0x41>"
    assert opened.encode(text) == list(text.encode())
    assert opened.decode(opened.encode(text)) == text
    assert (opened.eos_token_id, opened.pad_token_id, len(opened)) == (256, 256, 257)


def test_encode_documents_keeps_order_over_batches_and_is_lazy():
    documents = [str(number) for number in range(10)]
    encoded = encode_documents(TOKENIZER, documents, batch_size=3)
    assert next(encoded) == [48]
    assert [48, *(ids[0] for ids in encoded)] == list(range(48, 58))


class _BracketingTokenizer:
    """Puts 1 before and 2 behind each text, as some tokenizers do."""

    eos_token_id = 2

    def __call__(self, text):
        return {"input_ids": [[1, *document.encode(), 2] for document in text]}


def test_encode_documents_keeps_the_leading_and_drops_the_trailing_special_token():
    assert list(encode_documents(_BracketingTokenizer(), ["a", ""])) == [[1, 97], [1]]


def test_tokenizer_without_end_of_text_is_refused():
    class Endless:
        eos_token_id = None

    with pytest.raises(ConfigError, match="tokenizer=gibberish has no end-of-text token"):
        end_of_text_id(Endless(), name="gibberish")


def test_long_document_is_encoded_without_a_warning(caplog):
    from transformers.utils import logging as transformers_logging

    # Two, because transformers gives this advice once per tokenizer.
    tokenizer, warning_tokenizer = byte_tokenizer(), byte_tokenizer()
    tokenizer.model_max_length = warning_tokenizer.model_max_length = 4
    transformers_logging.enable_propagation()  # so that caplog sees what users would see
    try:
        with caplog.at_level(logging.WARNING):
            warning_tokenizer(["too long for it"])
            assert "longer than the specified maximum" in caplog.text  # the warning that has to go
            caplog.clear()
            list(encode_documents(tokenizer, ["too long for it"]))
            assert caplog.text == ""
    finally:
        transformers_logging.disable_propagation()
