"""Five chat templates as their models have them, and what each of them writes, by hand.

`by_hand` returns pieces (text, is_learnt): the slow reference for masks. A piece that is learnt is the assistant's,
with the mark that ends it.
"""

from collections.abc import Sequence
from typing import Any

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% "
    "endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif "
    "%}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
QWEN = (
    "{%- if messages[0]['role'] == 'system' -%}{{ '<|im_start|>system\n' + messages[0]['content'] }}"
    "{%- else -%}{{ '<|im_start|>system\nYou are a helpful assistant.' }}{%- endif -%}"
    "{%- if tools -%}{{ '\n\n# Tools\n' }}{%- for tool in tools -%}{{ tool | tojson }}{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'user' or message.role == 'tool' or (message.role == 'assistant' and not "
    "message.tool_calls) -%}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' -%}{{ '<|im_start|>assistant' }}"
    "{%- for call in message.tool_calls -%}"
    "{{ '\n<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}{%- endfor -%}{{ '<|im_end|>\n' }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
TEMPLATES = {"smollm2": SMOLLM2, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA, "qwen": QWEN}
SPECIAL_TOKENS = {
    "smollm2": ["<|im_start|>", "<|im_end|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "mistral": ["[INST]", "[/INST]"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "qwen": ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"],
}
WITHOUT_SYSTEM = ("mistral", "gemma")
END = "<|endoftext|>"
"""Begin and end of text of the byte tokenizer, which all five are tried on."""


def tokenizer_with(name: str) -> Any:
    """Return a byte tokenizer with a template and its special tokens."""
    from featherweight.models.tokenizer import byte_tokenizer

    tokenizer: Any = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS[name]})
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def by_hand(name: str, messages: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Return what a template writes, in pieces, without running it. Turns of system, user and assistant only."""
    pieces: list[tuple[str, bool]] = []

    def add(text: str, is_learnt: bool = False) -> None:
        pieces.append((text, is_learnt))

    if name == "smollm2" and messages[0]["role"] != "system":
        add("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n")
    if name == "qwen" and messages[0]["role"] != "system":
        add("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    if name in ("llama3", "mistral", "gemma"):
        add(END)
    for message in messages:
        role, text = message["role"], message["content"]
        is_learnt = role == "assistant"
        if name in ("smollm2", "qwen"):
            add(f"<|im_start|>{role}\n")
            add(f"{text}<|im_end|>", is_learnt)
            add("\n")
        elif name == "llama3":
            add(f"<|start_header_id|>{role}<|end_header_id|>\n\n")
            add(f"{text.strip()}<|eot_id|>", is_learnt)
        elif name == "gemma":
            add(f"<start_of_turn>{'model' if is_learnt else role}\n")
            add(f"{text.strip()}<end_of_turn>", is_learnt)
            add("\n")
        else:
            add(f"{text}{END}" if is_learnt else f"[INST] {text} [/INST]", is_learnt)
    return pieces
