"""Layers of int8 weights beside float layers of the same values."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from featherweight.nn.int8_linear import Int8Embedding, Int8Linear, to_int8_


def layers():
    torch.manual_seed(0)
    model = nn.Sequential(
        Int8Linear(300, 40), Int8Linear(40, 300, bias=False), Int8Embedding(9, 20), to_int8_(Conv1D(6, 7))
    )
    model[0].weight.requires_grad_(False)
    return model
