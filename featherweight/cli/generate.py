"""`fw generate`: let a model continue a text."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from featherweight.cli import answer
from featherweight.errors import ConfigError

_INPUT = "fw generate: standard input"


def generate(
    model: answer.Model,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The text to continue; default: standard input.")
    ] = None,
    temperature: answer.Temperature = 0.0,
    top_p: answer.TopP = None,
    seed: answer.Seed = 0,
    max_new_tokens: answer.MaxNewTokens = 128,
    dtype: answer.Dtype = None,
    guard: answer.GuardFolder = None,
) -> None:
    """Continue a text, as it stands: without a chat template, which fw chat puts around it.

    The continuation appears token by token; in a pipe it is plain text and nothing else.

    [bold]Examples[/bold]

    fw generate runs/demo/model --prompt "Once upon a time"

    echo "Once upon a time" | fw generate smollm2 --temperature 0.8 --top-p 0.95 --seed 1
    """
    answer.require_sampling(temperature, top_p, dtype)
    if prompt is None and sys.stdin.isatty():
        raise ConfigError(
            'fw generate: prompt=None, and standard input is a terminal; expected a text. Add --prompt "...", or pipe '
            "one in."
        )
    with answer.unicode_input(_INPUT):
        text = prompt if prompt is not None else sys.stdin.read().removesuffix("\n")
    answer.require_unicode(text, "fw generate: --prompt" if prompt is not None else _INPUT)
    from featherweight.cli.screen import leave_cleanly
    from featherweight.models.chat import Writer, encode_text

    with leave_cleanly("generate", [model]), answer.quiet_pipe():
        loaded, tokenizer = answer.load(model, dtype)
        gate = answer.gate_of(guard, loaded, tokenizer, text=text)
        writer = Writer(loaded, tokenizer, answer.options_of(temperature, top_p, seed, max_new_tokens), gate=gate)
        plain = not sys.stdout.isatty()
        answer.show(writer.write(encode_text(tokenizer, text)), plain=plain)
        if not plain:
            answer.show_facts(writer.facts, Console())
