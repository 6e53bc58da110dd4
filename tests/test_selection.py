"""Selection of modules and weights by PEFT's rules."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from featherweight.errors import ConfigError
from featherweight.optim import param_groups
from featherweight.selection import select_embeddings, select_matrices, select_modules


@pytest.fixture(scope="module")
def llama():
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=40)
    )


def test_all_linear_takes_every_projection_but_the_head(llama):
    names = {name.rsplit(".", 1)[-1] for name in select_modules(llama)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(select_modules(llama)) == 14


def test_names_match_whole_components_and_regular_expressions_the_whole_name(llama):
    assert len(select_modules(llama, ["q_proj", "layers.1.mlp.up_proj"])) == 3
    assert len(select_modules(llama, r".*\.(q|v)_proj")) == 4
    assert len(select_modules(llama, ["proj"] + ["q_proj"])) == 2  # "proj" alone is no component
    assert len(select_modules(llama, exclude_modules=["q_proj"])) == 12
    assert len(select_modules(llama, exclude_modules=r".*layers\.0\..*")) == 7


def test_gpt2_conv1d_layers_are_linear_and_its_tied_head_is_not_selected():
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30))
    assert {n.rsplit(".", 1)[-1] for n in select_modules(model)} == {"c_attn", "c_proj", "c_fc"}
    assert set(select_embeddings(model)) == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert select_matrices(model, ["lm_head", "c_fc"]).keys() == {"transformer.h.0.mlp.c_fc.weight"}


def test_fused_experts_are_selected_with_all_linear():
    model = MixtralForCausalLM(
        MixtralConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=30,
            num_local_experts=3,
        )  # fmt: skip
    )
    stacked = {n: p.shape for n, p in select_matrices(model).items() if p.ndim == 3}
    assert len(stacked) == 2 and all(shape[0] == 3 for shape in stacked.values())


def test_frozen_and_small_weights_are_left_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(40, 40))
    assert select_matrices(model, min_numel=100).keys() == {"1.weight"}
    model[1].requires_grad_(False)
    assert select_matrices(model).keys() == {"0.weight"}


def test_nothing_selected_lists_the_nearest_names(llama):
    with pytest.raises(ConfigError, match=r"target_modules=\['qproj'\] matches no module.*q_proj"):
        select_modules(llama, ["qproj"])


# Mutation: a hint that only repeats the name that was given leaves its reader where they were.
@pytest.mark.parametrize(
    ("target_modules", "hint", "written"),
    [
        ("mlp", r"must match the whole name, such as 'model.layers.0.mlp'. Write \['mlp'\], .* or '\.\*mlp'", ".*mlp"),
        ("layers.0", r"Write \['layers.0'\]", ["layers.0"]),
        ("q_proj|v_proj", r"such as 'model.layers.0.self_attn.q_proj'. Write '\.\*\(q_proj\|v_proj\)\.\*'", None),
        (["self_attn.q"], r"Nearest names: .* A list of names, such as \['", None),
        (
            [".*_proj"],
            r"Names of a list are no regular expressions. Write '\.\*\(\.\*_proj\)\.\*' without",
            ".*(.*_proj).*",
        ),
        (
            ["xyz"],
            r"Names in this model: .*, q_proj.* A list of names matches the end",
            None,
        ),
    ],
)
def test_a_pattern_that_matches_nothing_is_told_how_it_would_match(llama, target_modules, hint, written):
    with pytest.raises(ConfigError, match=f"matches no module; expected .*{hint}") as caught:
        select_modules(llama, target_modules)
    assert "\n" not in str(caught.value)
    if written is not None:
        assert select_modules(llama, written)


class Embeddings(nn.Module):
    """As in a ViT: 3-D parameters that are no stack of matrices."""

    def __init__(self):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.positions = nn.Parameter(torch.zeros(1, 50, 16))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_proj = nn.Parameter(torch.zeros(8, 24, 16))
        self.up_proj_bias = nn.Parameter(torch.zeros(8, 24))


def test_position_embeddings_and_biases_of_experts_are_no_matrices():
    model = nn.ModuleDict({"embeddings": Embeddings(), "experts": Experts(), "mlp": nn.Linear(16, 16)})
    assert select_matrices(model).keys() == {"experts.up_proj", "mlp.weight"}


def test_excluding_everything_is_refused(llama):
    with pytest.raises(ConfigError, match=r"exclude_modules=\['q_proj'\] leaves none of the 2 modules"):
        select_modules(llama, ["q_proj"], ["q_proj"])


def test_a_wrong_regular_expression_is_named(llama):
    with pytest.raises(ConfigError, match=r"pattern='\*q' is no regular expression"):
        select_modules(llama, "*q")


@pytest.mark.parametrize(
    "options", [{"target_modules": ["norm"]}, {"target_modules": ["embed_tokens"]}, {"min_numel": 10**9}]
)
def test_groups_without_a_single_projected_matrix_are_refused(llama, options):
    with pytest.raises(ConfigError, match="selects no trainable matrix"):
        param_groups(llama, rank=4, **options)
