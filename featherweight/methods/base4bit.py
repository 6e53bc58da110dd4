"""Four bits a frozen weight (QLoRA): ``methods: [base4bit, lora]`` or ``methods: [base4bit, s2ft]`` in a recipe.

The linear layers of a model become NF4 codes of bitsandbytes; head, embeddings, norms and biases stay. Nothing of that
is trained, so a method that trains something of its own beside it follows. The run folder gets an ordinary model.
Source: Dettmers et al., QLoRA, arXiv 2305.14314, section 3 (NF4, double quantisation).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.import_hook import without_kernel_advice
from featherweight.methods.method import Method
from featherweight.methods.options import Base4bitOptions
from featherweight.methods.peft_adapter import require_no_adapter
from featherweight.nn.module_tree import replace_module, shared_parameters
from featherweight.report import Report
from featherweight.selection import select_modules

_TRAINED_BEFORE = "_featherweight_trained_before_base4bit"


class Base4bit(Base4bitOptions, Method):
    """Options of frozen 4-bit weights; apply them before the adapter: ``fw.apply(model, fw.Base4bit())``.

    Needs the extra `base4bit` (bitsandbytes, on GPUs and CPUs).

    Example:
        >>> import featherweight as fw
        >>> from featherweight.models import load_model
        >>> model = load_model("tiny")
        >>> report = fw.apply(model, fw.Base4bit())
        >>> report = fw.apply(model, fw.LoRA(r=4))
        >>> model.model.layers[0].mlp.up_proj.base_layer.weight.dtype
        torch.uint8
    """

    def apply(self, model: nn.Module, calibration: Any = None) -> Report:
        """Freeze a model in place and quantise its layers; see `fw.apply`. One float weight after the other is freed.

        Raises:
            ConfigError: if nothing can be changed, or another method has changed the model.
            MissingExtraError: without bitsandbytes.
        """
        make = _require_bitsandbytes()
        require_no_adapter(model, "Base4bit")
        chosen, left = self._judge(model)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        rows: list[list[str | float | None]] = []
        before = after = 0
        for name, module in chosen.items():
            size = module.weight.nbytes
            new = make(module)
            replace_module(model, name, new)
            packed = _bytes_of(new)
            rows.append([name, "NF4", size, packed])
            before, after = before + size, after + packed
            del module
        model.requires_grad_(False)
        setattr(model, _TRAINED_BEFORE, trained)
        rows += [[name, f"left alone: {reason}", None, None] for name, reason in left.items()]
        report = Report("4-bit weights")
        report.add_facts({"4-bit weights": len(chosen), "before (bytes)": before, "after (bytes)": after})
        report.add_table("Modules", ["module", "what happens", "before (bytes)", "after (bytes)"], rows)
        return report

    def remove(self, model: nn.Module) -> None:
        """Give the modules float weights again, with the values of the codes; see `fw.remove`."""
        for name, layer in frozen_layers(model).items():
            replace_module(model, name, layer.to_linear())
        trained = set(getattr(model, _TRAINED_BEFORE))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        delattr(model, _TRAINED_BEFORE)

    @contextmanager
    def saving(self, model: nn.Module, folder: Path) -> Iterator[None]:
        """Let the layers be ordinary ones in the block, so that adapters merge into floats, and no change is rounded.

        Cost: the float weights of the changed layers, in memory at once.
        """
        layers = frozen_layers(model)
        for name, layer in layers.items():
            replace_module(model, name, layer.to_linear())
        try:
            yield
        finally:
            for name, layer in layers.items():
                replace_module(model, name, layer)

    def _judge(self, model: nn.Module) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the modules to change, and the reasons for those that are left alone."""
        shared = shared_parameters(model)
        chosen, left = {}, {}
        for name, module in select_modules(model, self.target_modules, self.exclude_modules).items():
            if type(module) is not nn.Linear:
                left[name] = f"a {type(module).__name__} has no 4-bit form"
            elif id(module.weight) in shared:
                left[name] = "shares its weight with another module"
            elif "forward" in vars(module):
                raise ConfigError(
                    f"Base4bit: module '{name}' has another forward already; expected a model whose linear layers are "
                    "as their class made them. Apply Base4bit before other methods."
                )
            else:
                chosen[name] = module
        if not chosen:
            reasons = "; ".join(sorted(set(left.values()))) or "none was selected"
            raise ConfigError(
                f"Base4bit: model={type(model).__name__} has no weight that can be frozen in 4 bits ({reasons}); "
                "expected nn.Linear. Select other modules."
            )
        return chosen, left


def frozen_layers(model: nn.Module) -> dict[str, Any]:
    """Return the 4-bit layers that `Base4bit` has made in a model, by name; those inside adapters, too."""
    _require_bitsandbytes()
    from featherweight.nn.frozen_linear4bit import FrozenLinear4bit

    return {name: module for name, module in model.named_modules() if isinstance(module, FrozenLinear4bit)}


def _bytes_of(layer: Any) -> int:
    from featherweight.quant.weight4bit import statistics_of

    return int(layer.weight.nbytes + sum(one.nbytes for one in statistics_of(layer.weight).values()))


def _require_bitsandbytes() -> Any:
    without_kernel_advice()
    try:
        from featherweight.nn.frozen_linear4bit import FrozenLinear4bit
    except ImportError as error:
        raise MissingExtraError(
            "Base4bit: package=bitsandbytes is not installed; expected it for 4-bit weights. Install it: "
            "pip install 'featherweight[base4bit]'."
        ) from error
    return FrozenLinear4bit.of
