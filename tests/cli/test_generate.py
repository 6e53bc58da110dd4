"""`fw generate` goes on with a prompt, from an option or a pipe."""

import io
import sys

from featherweight.cli import run
from featherweight.models.load import load_model, load_tokenizer


def test_generate_continues_a_prompt_from_an_option_or_a_pipe(talking_model, monkeypatch, capsys):
    model, tokenizer = load_model(str(talking_model)).eval(), load_tokenizer(str(talking_model))
    inputs = tokenizer("Once upon", return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=10, pad_token_id=256)
    text = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert run(["generate", str(talking_model), "--prompt", "Once upon", "--max-new-tokens", "10"]) == 0
    from_option = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once upon\n"))
    assert run(["generate", str(talking_model), "--max-new-tokens", "10"]) == 0
    assert capsys.readouterr().out == from_option == text + ("" if text.endswith("\n") else "\n")
