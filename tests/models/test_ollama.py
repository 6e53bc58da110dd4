"""The words of a chat template become Ollama's, or are refused; a Modelfile says where answers end."""

import re

import pytest
from chat_formats import tokenizer_with
from gguf_models import bpe_tokenizer, write_model
from tokenizers.processors import TemplateProcessing

from featherweight.errors import ConfigError
from featherweight.models.ollama import export_ollama, turn_words
from featherweight.models.templates import choose_template
from featherweight.models.tokenizer import byte_tokenizer


def written_by_ollama(template, system, turns):
    """Return what Ollama writes: the template once for each question, its answer where .Response stands."""
    text = ""
    for index in range(0, len(turns), 2):
        filled = template
        for name, value in ((".System", system if index == 0 else None), (".Prompt", turns[index])):
            pattern = r"{{ if " + re.escape(name) + r" }}(.*?){{ end }}"
            filled = re.sub(pattern, lambda found, value=value: found[1] if value else "", filled, flags=re.DOTALL)
            filled = filled.replace("{{ " + name + " }}", value or "")
        before, _, behind = filled.partition("{{ .Response }}")
        text += before + (turns[index + 1] + behind if index + 1 < len(turns) else "")
    return text


@pytest.mark.parametrize("name", ["smollm2", "llama3", "chatml"])
@pytest.mark.parametrize("system", [None, "You are a pirate."])
def test_ollama_writes_what_the_template_writes(name, system):
    tokenizer = byte_tokenizer() if name == "chatml" else tokenizer_with(name)
    if name == "chatml":
        choose_template(tokenizer, "chatml")
    if name == "llama3":
        # As Llama 3's own: the tokenizer begins every text with bos, and so does Ollama by what the GGUF file says.
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    words = turn_words(tokenizer, where=name)
    turns = ["Hi", "Hello.", "How?", "Well.", "Bye"]
    head = [] if system is None else [{"role": "system", "content": system}]
    messages = head + [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert written_by_ollama(words.go_template(), system or words.default_system, turns) == (
        expected.removeprefix(tokenizer.bos_token) if name == "llama3" else expected
    )


def test_a_template_that_does_more_is_refused():
    tokenizer = byte_tokenizer()
    choose_template(tokenizer, "alpaca")  # its first turn has a preamble that a system turn takes the place of
    tokenizer.chat_template = "{% for m in messages %}{{ loop.index }}:{{ m['content'] | upper }}\n{% endfor %}"
    with pytest.raises(ConfigError, match="does more than to put fixed words around turns"):
        turn_words(tokenizer, where="m")
    with pytest.raises(ConfigError, match="has no chat template"):
        turn_words(byte_tokenizer(), where="m")


def test_a_folder_has_the_model_its_template_and_its_stop_tokens(tmp_path):
    write_model(tmp_path / "model", bpe_tokenizer())
    facts = export_ollama(str(tmp_path / "model"), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Modelfile", "model.gguf"]
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\nTEMPLATE") and 'PARAMETER stop "<|im_end|>"' in text
    assert 'SYSTEM """You are a helpful AI assistant named SmolLM' in text
    assert facts["bytes"] == (tmp_path / "out" / "model.gguf").stat().st_size
    with pytest.raises(ConfigError, match="is there already"):
        export_ollama(str(tmp_path / "model"), tmp_path / "out")
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = None
    write_model(tmp_path / "base", tokenizer)
    with pytest.raises(ConfigError, match="has no chat template"):
        export_ollama(str(tmp_path / "base"), tmp_path / "other")
    assert not (tmp_path / "other").exists()
