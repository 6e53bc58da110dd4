"""The decoder layers of a causal language model apart from what stands around them, all by the model's own code.

`inputs` runs the model up to its layers and catches what each is called with; `run` calls one layer for one chunk of
the sequence; `loss` runs the model with layers that hand a given tensor through: norm, head and loss are its own. So
nothing of an architecture is written down here: scaled embeddings, learned positions, rotary embeddings, caps come
along. Attention reaches the earlier chunks through `featherweight.nn.streamed_attention`.
Shapes: S tokens of a row, C of a chunk, D hidden. Rows are run one at a time.
"""

import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.methods.fused_head import find_causal_model
from featherweight.methods.layer_arguments import CACHES, bound_arguments, per_token, rebuilt
from featherweight.methods.layer_structure import decoder_layers, find_layer
from featherweight.nn.prefix_store import AttentionResults, KeyValueStore
from featherweight.nn.streamed_attention import Visibility, in_autocast, streamed_attention

_NAME = "featherweight_streamed"  # of the attention function, for transformers
_WORK = "_featherweight_stream"  # where an attention module finds what it works on
_UNKNOWN_TO_US = ("s_aux", "position_bias", "head_mask", "encoder_hidden_states")

Arguments = dict[str, Any]


class _Caught(Exception):
    """All layers have been called."""


class _Filled(Exception):
    """Keys and values of a chunk are in the store."""


@dataclass
class Stream:
    """What the attention of one layer works on, for one row."""

    store: KeyValueStore
    documents: Tensor | None
    """(S,) on the CPU; see `Visibility`."""
    chunk: int = 0
    fills: bool = False
    """Whether only keys and values are wanted."""
    results: AttentionResults | None = None
    """What a repetition need not compute again; None: it does."""

    @contextmanager
    def until_done(self) -> Iterator[None]:
        """Free what is kept at the end, whatever comes: a graph that an exception has broken off would keep it."""
        try:
            yield
        finally:
            self.store.clear()
            if self.results is not None:
                self.results.clear()


class SeparateLayers:
    """The layers of a model, and the model without them.

    Args:
        model: causal language model of transformers; PEFT may stand around it.
    Raises:
        ConfigError: for a model whose layers cannot be called alone; says why.
    """

    def __init__(self, model: nn.Module) -> None:
        found = find_causal_model(model)
        if found is None:
            raise ConfigError(
                f"LayerMajor: model={type(model).__name__} is no causal language model of transformers; expected one. "
                "Use fw.MsT for others."
            )
        self.model: Any = found[1]
        self.layers = [layer for _, layer in decoder_layers(self.model)]
        self.attentions = [self._attention(layer) for layer in self.layers]
        self.returns_tuple = False
        """Whether layers return a tuple; known when one has been called."""
        self._require_plain()

    def _attention(self, layer: nn.Module) -> nn.Module:
        structure = find_layer(layer)
        if isinstance(structure, str):
            raise ConfigError(
                f"LayerMajor: {type(layer).__name__} has {structure}; expected a decoder layer with one attention that "
                "calls transformers' attention function. Use fw.MsT for this model."
            )
        attention: nn.Module = getattr(layer, structure.attention)
        return attention

    def _require_plain(self) -> None:
        model, config = self.model, self.model.config
        reasons = {
            "it has no decoder layers": not self.layers,
            "its layers stand in several stacks": not any(
                isinstance(stack, nn.ModuleList) and list(stack) == self.layers for stack in model.modules()
            ),
            "it has an encoder": bool(getattr(config, "is_encoder_decoder", False)),
            "its attention is not causal": any(getattr(one, "is_causal", True) is False for one in self.attentions),
            "its attention is cut in fixed pieces": "chunked_attention" in (getattr(config, "layer_types", None) or ()),
            "its loss counts what routers do (output_router_logits)": bool(
                getattr(config, "output_router_logits", False)
            ),
            f"its loss is {getattr(model.loss_function, '__name__', 'its own')}": (
                getattr(model.loss_function, "__name__", "") != "ForCausalLMLoss"
            ),
        }
        inside = [p for layer in self.layers for p in set(layer.parameters())]
        reasons["several layers, or a layer and the rest, share parameters"] = len(set(inside)) != len(inside) or bool(
            set(inside) & set(self.outside())
        )
        for reason, holds in reasons.items():
            if holds:
                raise ConfigError(
                    f"LayerMajor: model={type(model).__name__} cannot be run layer by layer, because {reason}; "
                    "expected a causal model of ordinary decoder layers. Use fw.MsT for this model."
                )

    def outside(self) -> list[nn.Parameter]:
        """Return the parameters that belong to no layer."""
        inside = {id(module) for layer in self.layers for module in layer.modules()}
        found = [p for module in self.model.modules() if id(module) not in inside for p in module.parameters(False)]
        return list(dict.fromkeys(found))

    def vocabulary(self) -> tuple[nn.Module, nn.Module | None]:
        """Return the embedding of the tokens and the head; None for a model that names none."""
        return self.model.get_input_embeddings(), self.model.get_output_embeddings()

    def tied(self) -> frozenset[nn.Parameter]:
        """Return the trained parameters outside of the layers that stand at several places, such as a tied head."""
        names = [p for _, p in self.model.named_parameters(remove_duplicate=False) if p.requires_grad]
        return frozenset(p for p in self.outside() if sum(p is one for one in names) > 1)

    # ---- attention

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """Let all attention of the model go through `Stream`s, and run layers without checkpoints, for a while."""
        from transformers import AttentionInterface

        AttentionInterface.register(_NAME, _attend)
        configs: dict[int, Any] = {
            id(module.config): module.config
            for module in self.model.modules()
            if hasattr(getattr(module, "config", None), "_attn_implementation_internal")
        }
        with ExitStack() as stack:
            for config in configs.values():
                stack.callback(setattr, config, "_attn_implementation_internal", config._attn_implementation_internal)
                config._attn_implementation_internal = _NAME
            for layer in self.layers:
                stack.enter_context(_attribute(layer, "gradient_checkpointing", False))
            yield

    # ---- the model around its layers

    def inputs(self, tokens: Mapping[str, Tensor]) -> tuple[Tensor, list[Arguments]]:
        """Run the model up to its layers.

        Args:
            tokens: arguments of the model for one row, `input_ids` (1, S) among them.
        Returns:
            (1, S, D) hidden states and what each layer is called with beside them.
        """
        caught: list[tuple[Tensor, Arguments]] = []

        def record(index: int) -> Any:
            own = types.MethodType(type(self.layers[index]).forward, self.layers[index])

            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden, arguments = bound_arguments(own, args, kwargs)
                caught.append(
                    (hidden, {n: None if n in (*CACHES, "attention_mask") else v for n, v in arguments.items()})
                )
                if index + 1 == len(self.layers):
                    raise _Caught
                return (hidden,) if self.returns_tuple else hidden

            return forward

        with self._replaced([record(index) for index in range(len(self.layers))]):
            try:
                self.model(**tokens, use_cache=False)
            except _Caught:
                pass
        if any(hidden is not caught[0][0] for hidden, _ in caught) and not self.returns_tuple:
            self.returns_tuple = True  # the model takes the first of what a layer returns
            return self.inputs(tokens)
        return caught[0][0], [arguments for _, arguments in caught]

    def loss(
        self,
        hidden: Tensor,
        tokens: Mapping[str, Tensor],
        targets: Tensor,
        items: int | float,
        *,
        embeds: bool = True,
    ) -> Tensor:
        """Run what comes behind the layers.

        Args:
            hidden: (1, C, D), of the last layer.
            tokens: arguments of the model for these tokens.
            targets: (1, C) tokens to predict, shifted already; -100 for none.
            items: what the sum of the losses is divided by.
            embeds: whether the embedding is there; it computes what nobody reads.
        """
        if not embeds:
            tokens = {name: one for name, one in tokens.items() if name != "input_ids"}
            tokens["inputs_embeds"] = hidden.detach()

        def hand_through(*args: Any, **kwargs: Any) -> Any:
            return (hidden,) if self.returns_tuple else hidden

        with self._replaced([hand_through] * len(self.layers)):
            output = self.model(
                **tokens, labels=targets, shift_labels=targets, num_items_in_batch=items, use_cache=False
            )
        loss: Tensor = output.loss
        return loss

    @contextmanager
    def _replaced(self, forwards: Sequence[Any]) -> Iterator[None]:
        with ExitStack() as stack:
            for layer, forward in zip(self.layers, forwards, strict=True):
                stack.enter_context(_attribute(layer, "forward", forward))
            yield

    # ---- one layer

    def run(self, index: int, hidden: Tensor, arguments: Arguments, stream: Stream) -> Tensor:
        """Call a layer for one chunk.

        Args:
            index: of the layer.
            hidden: (1, C, D).
            arguments: of the whole row, from `inputs`.
            stream: `stream.chunk` is the chunk.
        """
        bounds = stream.store.bounds[stream.chunk]
        names, tensors = per_token(arguments)
        cut = rebuilt(names, tuple(one[:, slice(*bounds)] for one in tensors))
        with _attribute(self.attentions[index], _WORK, stream):
            output = self.layers[index](hidden, **{**arguments, **cut})
        if isinstance(output, tuple):
            self.returns_tuple = True
            output = output[0]
        if len(stream.store) == 0 and not stream.fills:
            raise ConfigError(
                f"LayerMajor: {type(self.attentions[index]).__name__} does not call transformers' attention function; "
                "expected one that does. Use fw.MsT for this model."
            )
        result: Tensor = output
        return result

    def fill(self, index: int, hidden: Tensor, arguments: Arguments, stream: Stream) -> None:
        """Put keys and values of a chunk into the store: what a layer does before attention; arguments as for `run`."""
        stream.fills = True
        try:
            self.run(index, hidden, arguments, stream)
        except _Filled:
            pass
        finally:
            stream.fills = False


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What transformers calls in the place of an attention function."""
    stream: Stream | None = vars(module).get(_WORK)
    name = type(module).__name__
    if stream is None:
        raise ConfigError(
            f"LayerMajor: {name} attends outside of the decoder layers; expected attention in layers alone. Use fw.MsT "
            "for this model."
        )
    if options.get("dropout"):
        raise ConfigError(
            f"LayerMajor: {name} has attention dropout={options['dropout']}; expected 0, as chunks would draw other "
            "masks. Set attention_dropout (attn_pdrop) to 0 in the model's configuration."
        )
    if attention_mask is not None or (odd := [one for one in _UNKNOWN_TO_US if options.get(one) is not None]):
        what = "a mask of its own" if attention_mask is not None else odd[0]
        raise ConfigError(
            f"LayerMajor: {name} attends with {what}; expected causal attention, by documents or with a window. Use "
            "fw.MsT for this model."
        )
    if stream.fills:
        stream.store.put(stream.chunk, *in_autocast(key, value))
        raise _Filled
    scale = options.get("scaling")
    output = streamed_attention(
        query,
        key,
        value,
        stream.store,
        stream.chunk,
        Visibility(stream.documents, options.get("sliding_window")),
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        softcap=options.get("softcap"),
        results=stream.results,
    )
    return output.transpose(1, 2).contiguous(), None


@contextmanager
def _attribute(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """Give a module an attribute of its own for a while."""
    had, previous = name in vars(module), vars(module).get(name)
    object.__setattr__(module, name, value)
    try:
        yield
    finally:
        if had:
            object.__setattr__(module, name, previous)
        else:
            object.__delattr__(module, name)
