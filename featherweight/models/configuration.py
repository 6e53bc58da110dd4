"""Configurations of models: read at a place, or checked and completed from settings; models made from them alone."""

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from featherweight.errors import ConfigError, did_you_mean
from featherweight.methods.low_rank_model import build_low_rank
from featherweight.methods.sealed_folder import RECORD, read_folder_configuration
from featherweight.models.place import Place
from featherweight.models.tokenizer import Tokenizer, byte_tokenizer


def read_configuration(place: Place, tokenizer: Tokenizer | None) -> Any:
    """Return the `transformers` configuration at a place."""
    from transformers import AutoConfig

    if place.settings is None:
        if place.path is not None and place.gguf_file is None:
            return read_folder_configuration(place.path)
        return AutoConfig.from_pretrained(**place.arguments)
    tokenizer = tokenizer or byte_tokenizer()
    # No pad token: torch keeps the gradient of a padding row at zero, and here that row would be the end of text.
    open_settings = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    settings = {**open_settings, **place.settings}
    model_type = settings.pop("model_type", None)
    if model_type is None:
        raise ConfigError(
            f"load_model: model_type is missing in source={place.name}; expected the name of an architecture. Add "
            "model_type: llama, for example."
        )
    _check_known(place, model_type, settings)
    return AutoConfig.for_model(model_type, **settings)


def new_model(configuration: Any) -> nn.Module:
    """Return a model of a configuration, with random weights on whatever device or mode is on."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(configuration)
    if record := getattr(configuration, RECORD, None):
        build_low_rank(model, record)
    return cast(nn.Module, model)


def _check_known(place: Place, model_type: str, settings: Mapping[str, Any]) -> None:
    """Refuse misspelt architectures and settings: transformers would keep an unknown setting and use its default."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        close = did_you_mean(model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise ConfigError(
            f"load_model: model_type={model_type} in source={place.name} is no causal language model of transformers; "
            "expected an architecture such as llama, gpt2 or qwen3. "
            f"{close if close.startswith('Did') else 'Correct the name.'}"
        )
    defaults = AutoConfig.for_model(model_type)
    known = [*defaults.to_dict(), *defaults.attribute_map, "architectures", "transformers_version", "torch_dtype"]
    unknown = [name for name in settings if name not in known]
    # An older name (rope_theta, partial_rotary_factor) goes into a setting of today; one without meaning is only kept.
    kept = AutoConfig.for_model(model_type, **settings).to_dict() if unknown else {}
    for name in unknown:
        if name in kept:
            value = settings[name]
            raise ConfigError(
                f"load_model: {name}={value!r} in source={place.name} is no setting of {model_type}; expected a known "
                f"setting. {did_you_mean(name, known)}"
            )
