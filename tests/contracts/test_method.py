"""What every method must do, whoever wrote it: `featherweight.methods.method.Method` names it, the registry lists them.

Methods under the operations that models go through stand in `test_method_operations.py`.
"""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import featherweight as fw
from featherweight.config import Config
from featherweight.errors import ConfigError
from featherweight.methods import Method, applied_methods, construction, methods, parse_methods
from featherweight.methods.welore import WeLore
from featherweight.report import Report

SMALL = {
    "core_gradient": {},
    "mst": {"chunk_size": 5, "checkpoint": True},
    "int8": {},
    "base4bit": {},
    "welore": {"min_dim": 16, "train": "all"},
    "inrank": {"buffer": 4, "warmup": 0, "every": 1},
    "lora": {"r": 4},
    "s2ft": {"num_channels": 8},
}
"""Options that fit the small model below."""

RESTORES = {"core_gradient", "mst", "lora", "s2ft"}
"""Methods after which `remove` gives every weight back bit by bit; of the others rounding, cuts or new factors stay."""

every_method = pytest.mark.parametrize("name", methods.names())


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).train()


def build(name: str) -> Method:
    return methods.get(name).parse(SMALL[name])


def applied(name: str) -> tuple[Method, nn.Module]:
    model, method = llama(), build(name)
    fw.apply(model, method)
    return method, model


def shape_of(model: nn.Module):
    """All that a model is but for the values: classes, names, sizes, and what trains."""
    classes = [(name, type(module), module.training) for name, module in model.named_modules()]
    own = {key for module in model.modules() for key in vars(module) if "featherweight" in key or key == "forward"}
    tensors = [(n, p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()]
    return classes, own, tensors, list(model.state_dict())


def values_of(model: nn.Module):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_method_without_a_way_back_cannot_be_made():
    class Half(Method):
        def apply(self, model, calibration=None):
            return Report("Half")

    with pytest.raises(TypeError, match="abstract"):
        Half()


@every_method
def test_a_method_has_the_members_of_the_base_class_with_their_arguments(name):
    assert issubclass(methods.get(name), Method) and issubclass(methods.get(name), Config)
    for member, function in inspect.getmembers(Method, inspect.isfunction):
        if member in vars(Method) and not member.startswith("_"):
            own = getattr(methods.get(name), member)
            assert list(inspect.signature(own).parameters) == list(inspect.signature(function).parameters), member
    method = build(name)
    for member in ("keeps_parameters", "freezes_model", "needs_pretrained", "needs_layerwise"):
        assert type(getattr(method, member)) is bool and member not in type(method).model_fields
    for member in ("needs_calibration", "checkpoints_activations"):
        assert type(getattr(method, member)) is bool


@every_method
def test_options_come_back_from_yaml_recipes_and_pickle(name, tmp_path):
    method = build(name)
    method.to_file(tmp_path / "method.yaml")
    kind = type(method)
    assert kind.from_file(tmp_path / "method.yaml") == method
    assert parse_methods([{name: method.to_dict()}]) == [method]
    assert pickle.loads(pickle.dumps(method)) == method == copy.deepcopy(method)
    assert parse_methods([name]) == [kind()]


@every_method
def test_options_are_frozen_and_an_unknown_one_is_refused_with_the_nearest_spelling(name):
    method = build(name)
    key = next(reversed(type(method).model_fields))
    with pytest.raises(ConfigError, match=f"{key}=.*frozen"):
        setattr(method, key, None)
    with pytest.raises(ConfigError, match=f"recipe methods {name}: {key}x=1 is unknown.*Did you mean '{key}'"):
        parse_methods([{name: {f"{key}x": 1}}])


@every_method
def test_every_option_has_a_word_about_its_meaning(name):
    for key, field in methods.get(name).model_fields.items():
        assert field.description, key


@every_method
def test_apply_returns_a_report_and_remembers_nothing_in_the_method(name):
    method, before = build(name), build(name)
    for model in (llama(), llama()):  # one set of options may change several models
        report = fw.apply(model, method)
        assert isinstance(report, Report) and report.title and report.sections
        assert Report.from_json(report.to_json()).to_json() == report.to_json()
        assert applied_methods(model) == [method]
    assert method == before


@every_method
def test_remove_gives_the_model_back(name):
    model = llama()
    shape, values = shape_of(model), values_of(model)
    fw.apply(model, build(name))
    changed = values_of(model) if name == "int8" else None
    fw.remove(model, build(name))
    assert shape_of(model) == shape
    assert applied_methods(model) == []
    assert same(values_of(model), values) == (name in RESTORES)
    fw.apply(model, build(name))  # nothing is left that would be in the way
    assert changed is None or same(values_of(model), changed)  # what was rounded is not rounded again


@every_method
def test_a_model_that_cannot_be_changed_stays_as_it_was(name):
    model = nn.Sequential(nn.LayerNorm(4), nn.ReLU())
    shape, values = shape_of(model), values_of(model)
    with pytest.raises(ConfigError):
        fw.apply(model, build(name))
    assert shape_of(model) == shape and same(values_of(model), values) and applied_methods(model) == []


@every_method
def test_what_a_method_says_of_the_parameters_is_so(name):
    model = llama()
    before = {key: id(one) for key, one in model.named_parameters()}
    everything = sum(one.numel() for one in model.parameters())
    method = build(name)
    fw.apply(model, method)
    assert ({key: id(one) for key, one in model.named_parameters()} == before) == method.keeps_parameters
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert (trained < everything / 4) == method.freezes_model


@every_method
def test_the_state_is_plain_and_comes_back(name, tmp_path):
    method, model = applied(name)
    torch.save(method.state_dict(model), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    _, other = applied(name)
    method.load_state_dict(other, state)
    assert method.state_dict(other) == state
    assert method.report(other).to_json() == method.report(model).to_json()


@every_method
def test_saving_changes_the_model_for_the_time_of_the_block_alone(name, tmp_path):
    method, model = applied(name)
    shape, values, identities = shape_of(model), values_of(model), [id(one) for one in model.parameters()]
    for error in (None, OSError("disk")):
        try:
            with method.saving(model, tmp_path / "model"):
                assert all(isinstance(one, torch.Tensor) for one in model.state_dict().values())
                if error is not None:
                    raise error
        except OSError as raised:
            assert raised is error
        assert shape_of(model) == shape and same(values_of(model), values)
        assert [id(one) for one in model.parameters()] == identities
    assert not (tmp_path / "model").exists()  # which is the caller's to write


def test_which_options_need_data_or_bring_checkpointing():
    assert not WeLore().needs_calibration and WeLore(method="refit").needs_calibration
    assert fw.MsT(checkpoint="offload").checkpoints_activations and not fw.MsT().checkpoints_activations


def test_a_method_that_needs_data_says_so_without_them():
    with pytest.raises(ConfigError, match="method=whitened needs data and calibration=None"):
        fw.apply(llama(), WeLore(method="whitened", min_dim=16))
    with pytest.raises(ConfigError, match="needs calibration data"):
        construction.apply_to_new_models(WeLore(method="whitened"))
