"""Every private part of torch, transformers and PEFT that the package leans on: one assertion for each.

An upgrade that takes one away fails here, with its name, before it fails somewhere in a training step. The way out of
each stands in docs/architecture.md. A new use of a private name fails `test_every_private_name_has_its_line` until it
has an assertion here and a line there.
"""

import ast
import copy
import inspect
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch import nn
from torch.autograd import Variable

ROOT = Path(__file__).parents[1]

NAMES = {
    "torch._C._are_functorch_transforms_active",
    "torch._C._autograd",
    "torch._C._current_graph_task_id",
    "torch._C._will_engine_execute_node",
    "torch._C.DisableTorchFunctionSubclass",
    "torch._foreach_*",
    "torch._guards.active_fake_mode",
    "torch._has_compatible_shallow_copy_type",
    "torch._ops.OpOverload",
    "torch._ops.OpOverloadPacket",
    "torch._subclasses.fake_tensor",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.utils._python_dispatch._disable_current_modes",
    "torch.utils._python_dispatch.is_traceable_wrapper_subclass_type",
    "torch.utils._pytree.tree_leaves",
    "peft.tuners._buffer_dict.BufferDict",
    "peft.tuners.tuners_utils._maybe_include_all_linear_layers",
    "transformers.utils.output_capturing._active_collector",
}
"""Private names that stand in an import or behind `torch.`, as the scan below finds them."""


def private_names(path):
    """The private names of other packages that a source imports, or reaches through `torch.`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("torch", "transformers", "peft"):
            for one in node.names:
                name = f"{node.module}.{one.name}"
                if any(part.startswith("_") for part in name.split(".")):
                    found.add(node.module if node.module.endswith("fake_tensor") else name)
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            # Operators of torch.ops.aten are the work of torch.export and documented as a set.
            if (
                name.startswith("torch.")
                and not name.startswith("torch.ops.")
                and any(part.startswith("_") and part[1] != "_" for part in name.split("."))
            ):
                found.add("torch._foreach_*" if name.startswith("torch._foreach_") else name)
    # Of torch._C.a and torch._C.a.b only the whole is a use.
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def test_every_private_name_has_its_line():
    used = set().union(*(private_names(path) for path in (ROOT / "featherweight").rglob("*.py")))
    assert used <= NAMES, f"without an assertion in this file: {sorted(used - NAMES)}"
    assert used >= NAMES, f"no longer used, to be taken off the list: {sorted(NAMES - used)}"


def test_every_private_name_stands_with_its_way_out_in_the_docs():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [name for name in sorted(NAMES) if f"`{name.rsplit('.', 1)[-1]}`" not in page]
    assert missing == []


# ---- torch: the running backward pass -------------------------------------------------------------------------------


def in_backward(ask):
    """What a function returns inside of a backward pass."""
    answers = []
    x = torch.ones(1, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: answers.append(ask()))
    y.backward()
    return answers[0]


def test_current_graph_task_id_tells_inside_of_a_backward_pass_from_outside():
    assert torch._C._current_graph_task_id() == -1
    assert in_backward(torch._C._current_graph_task_id) >= 0


def test_functorch_says_whether_one_of_its_transforms_runs():
    inside = []
    torch.func.grad(lambda x: inside.append(torch._C._are_functorch_transforms_active()) or x.sum())(torch.ones(1))
    assert inside == [True] and not torch._C._are_functorch_transforms_active()


def test_queue_callback_runs_at_the_end_of_the_backward_pass():
    order = []
    x = torch.ones(1, requires_grad=True)
    y = x * 2
    y.register_hook(lambda grad: Variable._execution_engine.queue_callback(lambda: order.append("end")))
    x.register_hook(lambda grad: order.append("gradient"))
    y.backward()
    assert order == ["gradient", "end"]


def test_get_current_graph_task_keep_graph_tells_of_retain_graph():
    assert in_backward(torch._C._autograd._get_current_graph_task_keep_graph) is False


def test_will_engine_execute_node_knows_which_leaves_are_wanted():
    answers = []

    class Ask(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            return x * w

        @staticmethod
        def backward(ctx, grad):
            answers.append([torch._C._will_engine_execute_node(one[0]) for one in ctx.next_functions])
            return grad, grad

    x, w = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    Ask.apply(x * 1, w * 1).backward(inputs=[x])
    assert answers == [[True, False]]


def test_a_checkpoint_runs_backward_in_a_function_of_this_name_and_file():
    def find():
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name == "backward" and frame.f_code.co_filename == torch.utils.checkpoint.__file__:
                return True
            frame = frame.f_back
        return False

    found = []

    def run(x):
        y = x * 2
        if y.requires_grad:
            y.register_hook(lambda grad: found.append(find()))
        return y

    import torch.utils.checkpoint

    torch.utils.checkpoint.checkpoint(run, torch.ones(1, requires_grad=True), use_reentrant=True).backward()
    assert found == [True]
    assert in_backward(find) is False


# ---- torch: tensors, parameters and modules -------------------------------------------------------------------------


def test_foreach_operators_do_to_lists_what_their_twins_do_to_tensors():
    lists = [torch.tensor([4.0]), torch.tensor([9.0])]
    assert [one.item() for one in torch._foreach_sqrt(lists)] == [2.0, 3.0]
    for name in "norm lerp_ mul mul_ addcmul_ div div_ add_ rsqrt reciprocal_".split():
        assert callable(getattr(torch, f"_foreach_{name}")), name


def test_version_counts_writes_in_place():
    x = torch.zeros(1)
    before = x._version
    x.add_(1)
    assert x._version == before + 1


def test_cdata_of_a_storage_is_equal_for_its_views():
    x = torch.zeros(4)
    assert x.untyped_storage()._cdata == x[1:].untyped_storage()._cdata
    assert x.untyped_storage()._cdata != torch.zeros(4).untyped_storage()._cdata


def test_nnz_of_an_empty_sparse_gradient_is_zero():
    assert torch.sparse_coo_tensor(size=(2, 2), check_invariants=False)._nnz() == 0


def test_hooks_on_gradients_stand_in_ordered_tables():
    x = nn.Parameter(torch.zeros(1))
    assert x._post_accumulate_grad_hooks is None and x._backward_hooks is None
    hook = x.register_post_accumulate_grad_hook(print)
    assert list(x._post_accumulate_grad_hooks) == [hook.id]
    x.register_hook(print)
    assert len(x._backward_hooks) == 1


def test_modules_keep_their_hooks_and_parameters_in_tables_of_these_names():
    module = nn.Linear(1, 1)
    for table in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks):
        assert len(table) == 0
    # What exchanges a parameter for the time of a call writes here, past __setattr__.
    plain = torch.ones(1, 1)
    module._parameters["weight"] = plain
    assert module.weight is plain


def test_data_of_another_device_asks_for_a_compatible_tensor():
    assert torch._has_compatible_shallow_copy_type(torch.zeros(1), torch.zeros(2, dtype=torch.float64))
    assert not torch._has_compatible_shallow_copy_type(torch.zeros(1, device="meta"), torch.zeros(1))


def test_the_class_of_a_module_and_of_a_parameter_can_be_exchanged():
    class Other(nn.Linear):
        pass

    class Handle(nn.Parameter):
        pass

    module = nn.Linear(1, 1)
    module.__class__ = Other
    module.weight.__class__ = Handle
    assert isinstance(module, Other) and isinstance(copy.copy(module).weight, Handle)


def test_disabled_torch_function_sees_plain_operators():
    with torch._C.DisableTorchFunctionSubclass():
        assert torch.add(torch.ones(1), 1).item() == 2


def test_operators_have_overloads_and_schemas():
    assert isinstance(torch.ops.aten.add.Tensor, torch._ops.OpOverload)
    assert isinstance(torch.ops.aten.add, torch._ops.OpOverloadPacket)
    schema = torch.ops.aten.add_.Tensor._schema
    assert (schema.name, schema.arguments[0].alias_info.is_write) == ("aten::add_", True)


def test_a_dispatch_mode_sees_every_operator_and_can_be_left():
    from torch.utils._python_dispatch import (
        TorchDispatchMode,
        _disable_current_modes,
        is_traceable_wrapper_subclass_type,
    )

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        torch.ones(1)
        with _disable_current_modes():
            torch.zeros(1)
    assert seen == [torch.ops.aten.ones.default]
    assert not is_traceable_wrapper_subclass_type(torch.Tensor)


def test_the_leaves_of_nested_containers_come_in_order():
    from torch.utils._pytree import tree_leaves

    assert tree_leaves({"a": [1, (2,)], "b": 3}) == [1, 2, 3]


# ---- torch: optimizers and compilation ------------------------------------------------------------------------------


def test_a_scheduler_takes_the_mark_of_a_step_for_one():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    optimizer._opt_called = True
    schedule.step()  # would warn, and warnings are errors in these tests


def test_grad_scaler_asks_optimizers_whether_they_take_its_scale():
    assert "_step_supports_amp_scaling" in inspect.getsource(torch.amp.GradScaler.step)


# ---- torch: tensors without memory ----------------------------------------------------------------------------------


def test_fake_tensors_can_be_made_from_meta_tensors_and_tell_their_constant():
    from torch._guards import active_fake_mode
    from torch._subclasses import fake_tensor

    mode = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    assert active_fake_mode() is None
    with mode:
        assert active_fake_mode() is mode
        fake = fake_tensor.FakeTensor(mode, torch.empty(2, device="meta"), torch.device("cpu"))
        assert (fake.fake_device, fake.constant, fake.fake_mode) == (torch.device("cpu"), None, mode)
        with fake_tensor.in_kernel_invocation_manager(mode):
            assert fake.device.type == "meta"
    for name in ("DataDependentOutput", "DynamicOutputShape", "UnsupportedFakeTensor"):
        assert issubclass(getattr(fake_tensor, f"{name}Exception"), Exception)


def test_modules_are_moved_by_a_method_to_that_can_be_patched():
    assert inspect.isfunction(nn.Module.to)


# ---- transformers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama():
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=8, **shape))


def test_the_attention_function_is_named_by_a_private_field_of_the_configuration(llama):
    config = copy.copy(llama.config)
    config._attn_implementation_internal = "another"
    assert config._attn_implementation == "another"


def test_modules_of_models_find_attention_functions_in_a_table_of_their_file(llama):
    home = vars(sys.modules[type(llama).__module__])
    assert callable(home["eager_attention_forward"])
    assert callable(home["ALL_ATTENTION_FUNCTIONS"].get_interface)


def test_the_collector_of_attention_weights_is_a_context_variable():
    from transformers.utils.output_capturing import _active_collector

    assert _active_collector.get() is None


def test_a_loss_function_put_on_a_model_is_the_one_it_uses(llama):
    ids = torch.zeros(1, 2, dtype=torch.int64)
    llama._loss_function = lambda **arguments: torch.tensor(42.0)
    try:
        assert llama(input_ids=ids, labels=ids).loss.item() == 42
    finally:
        del llama._loss_function


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_disable:FutureWarning")
def test_checkpointing_goes_through_a_function_on_each_layer(llama):
    llama.gradient_checkpointing_enable()
    try:
        assert callable(llama.model.layers[0]._gradient_checkpointing_func)
    finally:
        llama.gradient_checkpointing_disable()


def test_models_end_their_construction_with_post_init():
    assert inspect.isfunction(transformers.PreTrainedModel.post_init)
    assert "self.post_init()" in inspect.getsource(transformers.LlamaForCausalLM.__init__)


def test_masks_look_for_packed_sequences_by_a_function_of_their_module():
    from transformers import masking_utils

    assert callable(masking_utils.find_packed_sequence_indices)


def test_layers_of_a_cache_say_whether_they_remember_what_fell_out_of_a_window():
    from transformers.cache_utils import DynamicSlidingWindowLayer

    layer = DynamicSlidingWindowLayer(sliding_window=2)
    assert layer.record_past is False
    layer.activate_past_recording()
    assert layer.record_past is True


# ---- PEFT -----------------------------------------------------------------------------------------------------------


def test_the_list_of_methods_is_an_enumeration_with_these_tables():
    from peft.utils import PeftType

    assert {"LORA"} <= set(PeftType._member_names_) & set(PeftType._member_map_) & set(PeftType._value2member_map_)
    assert PeftType.LORA._value_ == PeftType.LORA._name_ == "LORA"


def test_tensors_of_adapters_that_are_not_trained_live_in_a_buffer_dict():
    from peft.tuners._buffer_dict import BufferDict

    one = BufferDict()
    one["a"] = torch.zeros(1)
    assert list(one.keys()) == ["a"]


def test_tuners_are_extended_by_methods_of_these_names():
    from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers

    assert callable(_maybe_include_all_linear_layers)
    for name in ("_create_and_replace", "_replace_module", "_unload_and_optionally_merge"):
        assert inspect.isfunction(getattr(BaseTuner, name)), name
    # The one door through which `adapter_names` of a forward pass come.
    assert "self.base_model._enable_peft_forward_hooks" in inspect.getsource(peft.PeftModel)


def test_a_lora_layer_merges_into_a_copy_of_its_base():
    model = peft.get_peft_model(nn.Sequential(nn.Linear(2, 2)), peft.LoraConfig(r=1, target_modules=["0"]))
    layer = model.base_model.model[0]
    assert layer._caches == {} and layer.merged_adapters == []
    assert "base_layer" in layer._modules
