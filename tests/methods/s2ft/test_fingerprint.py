"""Which base an adapter belongs to."""

import peft
import pytest
import torch
from causal_models import causal_model
from s2ft_models import with_adapters

from featherweight.errors import CheckpointError


def test_the_base_of_another_model_is_refused_and_a_rounded_one_is_not(tmp_path):
    with_adapters(default={}).save_pretrained(tmp_path)
    other = causal_model("llama")
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.2)

    with pytest.raises(CheckpointError, match="expected at most 0.25"):
        peft.PeftModel.from_pretrained(other, tmp_path)
    with pytest.raises(CheckpointError, match="shape="):
        peft.PeftModel.from_pretrained(causal_model("llama", intermediate_size=64), tmp_path)
    peft.PeftModel.from_pretrained(causal_model("llama").bfloat16(), tmp_path)
