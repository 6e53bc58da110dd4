"""GGUF files for llama.cpp and Ollama: models of the llama and Qwen families in float16 or in blocks of 8 or 4 bits.

One tensor after the other is converted and written, so the file costs no memory beside the model. Vectors (norms) stay
in float32, as in llama.cpp's own conversion.
Shapes: H heads, K head dimension, N columns.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; order of rows of rotary projections as in llama.cpp.
"""

import importlib.util
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featherweight.config.files import new_file
from featherweight.errors import ConfigError, MissingExtraError
from featherweight.models.export import cannot_write, count_parameters, dense_model, require_new, require_room
from featherweight.models.facts import model_configuration
from featherweight.models.gguf_family import FAMILY, require_family, require_gguf_source
from featherweight.models.gguf_tokenizer import GgufTokenizer, read_tokenizer
from featherweight.models.place import ADAPTER_FILE

BYTES_PER_WEIGHT = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Types of a file, and what a weight of a matrix takes: a block of 32 has a factor in float16."""

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def export_gguf(source: str, file: Path, *, kind: str, base: str | None = None) -> dict[str, Any]:
    """Write a model of the llama or Qwen family as one GGUF file, which appears complete or not at all.

    Args:
        source: as for `featherweight.models.export.dense_model`.
        file: to write; it must not exist.
        kind: f16, q8_0 or q4_0. A matrix whose rows do not fill blocks of 32 is written in float16.
        base: as for `dense_model`.

    Returns:
        Facts: the file, parameters, bytes, the tokenizer's rule.

    Raises:
        ConfigError: if the model has another architecture or something that the format cannot say, its tokenizer is no
            byte-level BPE, or the file cannot be written.
        MissingExtraError: if the package gguf is missing.

    Cost: memory of the model in float32.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(
            "export: --to gguf needs the package gguf, which is not installed; expected it. Run: pip install "
            "'featherweight[demo]'"
        )
    require_new(file)
    require_gguf_source(source, base)
    if not (Path(source).expanduser() / ADAPTER_FILE).exists():
        require_family(model_configuration(source).to_dict(), source)
    require_room(file, count_parameters(source, base) * BYTES_PER_WEIGHT[kind])
    model, tokenizer = dense_model(source, base=base)
    require_family(model.config.to_dict(), source)
    words = read_tokenizer(tokenizer, model.get_input_embeddings().num_embeddings, where=source)
    try:
        with new_file(file) as temporary:
            _write(model, words, temporary, kind, Path(source).name)
    except OSError as error:
        raise cannot_write(file, error) from error
    return {
        "file": str(file),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": file.stat().st_size,
        "tokenizer": f"BPE, {words.pre}",
        "chat template": "yes" if words.template else "none",
    }


def _write(model: Any, words: GgufTokenizer, file: Path, kind: str, name: str) -> None:
    import gguf
    import numpy as np

    kinds = {"f16": ("MOSTLY_F16", "F16"), "q8_0": ("MOSTLY_Q8_0", "Q8_0"), "q4_0": ("MOSTLY_Q4_0", "Q4_0")}
    file_type, matrix_type = kinds[kind]
    writer = gguf.GGUFWriter(file, FAMILY[model.config.model_type])
    try:
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType[file_type])
        if kind != "f16":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, model.config)
        _add_tokenizer(writer, words)
        kept = list(_tensors(model))
        types = {new: _type_of(tensor, matrix_type) for new, tensor in kept}
        for new, tensor in kept:
            # In bytes, as the writer takes what is in blocks.
            shape = gguf.quant_shape_to_byte_shape(tuple(tensor.shape), types[new])
            writer.add_tensor_info(new, shape, np.dtype(np.uint8), torch.Size(shape).numel(), raw_dtype=types[new])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for new, tensor in kept:
            writer.write_tensor_data(gguf.quants.quantize(_ordered(new, tensor, model.config), types[new]))
    finally:
        writer.close()


def _add_shape(writer: Any, config: Any) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", getattr(config, "rope_theta", 10000.0))))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer: Any, words: GgufTokenizer) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    writer.add_token_merges(words.merges)
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(words.adds_bos)
    adders = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "eot": writer.add_eot_token_id,
        "unknown": writer.add_unk_token_id,
        "padding": writer.add_pad_token_id,
    }
    for name, index in words.ids.items():
        adders[name](index)
    if words.template is not None:
        writer.add_chat_template(words.template)


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor under the name it has in the file; a head that is tied is not written."""
    if (factors := _rope_factors(model.config)) is not None:
        yield "rope_freqs.weight", factors
    for name, tensor in model.state_dict().items():
        stem, _, last = name.rpartition(".")
        if stem == "lm_head" and model.config.tie_word_embeddings:
            continue
        if found := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem):
            yield f"blk.{found[1]}.{_known(found[2], name)}.{last}", tensor
        else:
            yield f"{_known(stem, name)}.{last}", tensor


def _rope_factors(config: Any) -> Tensor | None:
    """Return by what llama.cpp divides the frequencies of a head, (K/2,); None where they stay as they are.

    Long waves are stretched by the factor, short ones are not, and those between by a mean of both.
    Source: rotary embeddings of Llama 3.1, as transformers computes them.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "llama3":
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    waves = 2 * math.pi * float(rope["rope_theta"]) ** exponents
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(rope["original_max_position_embeddings"]) / waves
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - share) / factor + share)).float()


def _known(stem: str, name: str) -> str:
    if stem not in _NAMES:
        raise ConfigError(
            f"export: tensor='{name}' has no place in a GGUF file of its family; expected a plain llama or Qwen. Write "
            "a dense copy: --to hf:bf16."
        )
    return _NAMES[stem]


def _type_of(tensor: Tensor, wanted: str) -> Any:
    import gguf

    if tensor.ndim == 1:
        return gguf.GGMLQuantizationType.F32
    kind = gguf.GGMLQuantizationType[wanted]
    return kind if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else gguf.GGMLQuantizationType.F16


def _ordered(name: str, tensor: Tensor, config: Any) -> Any:
    """Return the numbers of a tensor in float32, rows of rotary projections in the order of llama.cpp.

    transformers turns entry i of a head with entry i + K/2, llama.cpp that of a llama with its neighbour:
    (H, 2, K/2, N) becomes (H, K/2, 2, N). For Qwen it turns them as transformers does.
    """
    numbers = tensor.detach().float()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is not None and FAMILY[config.model_type] == "llama":
        rows = numbers.shape[0]
        numbers = numbers.view(heads, 2, rows // heads // 2, -1).transpose(1, 2).reshape(rows, -1)
    return numbers.contiguous().numpy()
