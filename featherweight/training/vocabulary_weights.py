"""Embedding and head of a model on the host during steps that go layer by layer: each comes for its phase alone.

The embedding is needed before the first layer and after the last backward pass, the head between the two; so they are
never on the device together, and neither is there while layers compute. Between steps both are on the device, so that
evaluations, generation and checkpoints see an ordinary model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from featherweight.nn.host_tensors import HostTensors
from featherweight.nn.offload import require_host_bytes
from featherweight.nn.weight_slots import tensors_of, trained_of
from featherweight.simulated import simulated_device
from featherweight.training.separate_layers import SeparateLayers


class VocabularyWeights:
    """Moves embedding and head to the host and back in the course of a step.

    Args:
        separate: the model.
        device: where they are used.
    Raises:
        DeviceError: if the host cannot hold them.
    """

    def __init__(self, separate: SeparateLayers, device: torch.device) -> None:
        embedding, head = separate.vocabulary()
        self.embedding, self.head = tensors_of(embedding), [] if head is None else tensors_of(head)
        self.is_tied = bool({id(one) for one in self.embedding} & {id(one) for one in self.head})
        trained = {id(p) for p in separate.outside() if p.requires_grad}
        self.trains_outside = bool(trained)
        """Whether a gradient reaches anything before the layers or behind them."""
        self.head_changes = head is not None and not self.is_tied and bool(trained_of(head, self.head))
        self.waiting = HostTensors(device)
        if device.type == "cuda" and simulated_device() is None:  # elsewhere they are in this memory already
            way_out = "Use fw.Int8(embeddings=True) or a smaller vocabulary, or leave the weights on the device."
            require_host_bytes("LayerMajor", "embedding and head", self.host_bytes, way_out)

    @property
    def host_bytes(self) -> int:
        """Bytes of host memory that both take, a shared one once."""
        return sum(one.nbytes for one in {id(one): one for one in (*self.embedding, *self.head)}.values())

    def traffic_bytes(self) -> tuple[int, int]:
        """Return what a step copies in and out."""
        embedding, head = (sum(one.nbytes for one in each) for each in (self.embedding, self.head))
        if self.is_tied:
            return 2 * embedding, embedding
        return embedding + 2 * head, embedding + head + (head if self.head_changes else 0)

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Begin and end a step: with the embedding on the device; at the end, after an exception, too, with both."""
        if not self.is_tied:
            self.waiting.leave(self.head)
        try:
            yield
        finally:
            self.waiting.come((*self.embedding, *self.head))

    def between(self) -> None:
        """Let the embedding wait, once the first layer has its input."""
        self.waiting.leave(self.embedding)

    @contextmanager
    def bound_head(self) -> Iterator[None]:
        """Have the head on the device for a while; one that is shared with the embedding moves later."""
        self.waiting.come(self.head)
        try:
            yield
        finally:
            self.waiting.leave(self.head, changed=self.head_changes)

    def bind_embedding(self) -> None:
        """Have the embedding on the device for its backward pass; it stays."""
        self.waiting.come(self.embedding)
