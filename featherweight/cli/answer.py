"""What `fw chat` and `fw generate` share: how a model is loaded, how pieces of text reach a screen or a pipe."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from featherweight.cli.given import require_exportable
from featherweight.errors import ConfigError

if TYPE_CHECKING:
    from featherweight.models.chat import AnswerFacts, AnswerOptions, Gate

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model folder, an adapter folder, a .gguf file, or a name such as smollm2.",
        show_default=False,
        callback=require_exportable,
    ),
]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0, help="0 takes the likeliest token; 0.7 varies, 1 varies more.")
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", help="Draw from the likeliest tokens of this probability; needs --temperature."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the random numbers: the same seed, the same words.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="An answer has at most so many tokens.")]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="fp32, bf16 or fp16; default: fp32 on a CPU, bf16 elsewhere.")
]

GuardFolder = Annotated[
    Path | None,
    typer.Option("--guard", help="Refuse what the guard in this folder flags; see fw guard.", show_default=False),
]


def require_sampling(temperature: float, top_p: float | None, dtype: str | None) -> None:
    """Refuse options that do not fit together, before anything heavy is imported."""
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"--top-p: top_p={top_p} is out of range; expected 0 < top_p <= 1. Write --top-p 0.9.")
    if top_p is not None and temperature == 0:
        raise ConfigError(
            f"--top-p: top_p={top_p} has no effect at temperature=0, which takes the likeliest token; expected a "
            "temperature above 0. Add --temperature 0.7."
        )
    if dtype not in (None, "fp32", "bf16", "fp16"):
        raise ConfigError(f"--dtype: dtype={dtype!r} is unknown; expected fp32, bf16 or fp16. Write --dtype bf16.")


def options_of(temperature: float, top_p: float | None, seed: int, max_new_tokens: int) -> "AnswerOptions":
    """Return the options of an answer."""
    from featherweight.models.chat import AnswerOptions

    return AnswerOptions(temperature=temperature, top_p=top_p, seed=seed, max_new_tokens=max_new_tokens)


def load(source: str, dtype: str | None) -> tuple[Any, Any]:
    """Return model and tokenizer, on the accelerator if there is one; an adapter is merged into its base model."""
    import torch

    from featherweight.models.load import load_model, load_tokenizer

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    default = torch.float32 if device is None or device.type == "cpu" else torch.bfloat16
    wanted = names[dtype] if dtype else default
    if (Path(source).expanduser() / "adapter_config.json").exists():
        from featherweight.models.export import dense_model

        model, tokenizer = dense_model(source, dtype=wanted)
        return model.to(device).eval(), tokenizer
    tokenizer = load_tokenizer(source)
    model = load_model(source, dtype=wanted, tokenizer=tokenizer)
    return model.to(device).eval(), tokenizer


def gate_of(folder: Path | None, model: Any, tokenizer: Any, *, text: str | None = None) -> "Gate | None":
    """Return what is asked before each answer: the guard or the ensemble of a folder, or None.

    Args:
        folder: of the guard.
        model: of the guard.
        tokenizer: its own.
        text: to be continued without a chat template; it is judged as the turn of a user.

    Raises:
        CheckpointError: if it is damaged, or of another model.
    """
    if folder is None:
        return None
    from featherweight.guard.ensemble import open_guard
    from featherweight.guard.gate import Gate

    return Gate(open_guard([folder]).bind(model, tokenizer), model, tokenizer, text=text)


def require_unicode(text: str, where: str) -> str:
    """Return a text if it is one: what is no UTF-8 reaches Python as halves of characters, and no tokenizer takes them.

    Args:
        text: as it was typed, or came through a pipe.
        where: opens the message, such as "fw chat: standard input".

    Raises:
        ConfigError: if it holds such halves.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _no_unicode(where) from None
    return text


@contextmanager
def unicode_input(where: str) -> Iterator[None]:
    """Turn bytes that are no UTF-8, met while the block reads, into a sentence.

    Args:
        where: opens the message.

    Raises:
        ConfigError: if there are such bytes.
    """
    try:
        yield
    except UnicodeDecodeError:
        raise _no_unicode(where) from None


def _no_unicode(where: str) -> ConfigError:
    return ConfigError(
        f"{where} holds bytes that are no UTF-8; expected text in UTF-8. Convert it, for example with: "
        "iconv -f latin1 -t utf-8"
    )


@contextmanager
def quiet_pipe() -> Iterator[None]:
    """End the command without a word when nobody reads its output any more, as `head` does."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would flush once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def show(pieces: Iterable[str], *, plain: bool) -> None:
    """Write an answer as it comes, and end its line.

    Args:
        pieces: of the answer.
        plain: as they are, for a pipe; otherwise without what could steer a terminal.
    """
    ends_line = False
    for piece in pieces:
        shown = piece if plain else visible(piece)
        sys.stdout.write(shown)
        sys.stdout.flush()
        ends_line = shown.endswith("\n") if shown else ends_line
    if not ends_line:
        sys.stdout.write("\n")
    sys.stdout.flush()


def visible(text: str) -> str:
    """Return a text without control characters: a model must not move the cursor or rename the window."""
    return "".join(one for one in text if one in "\n\t" or (ord(one) >= 32 and not 127 <= ord(one) < 160))


def show_facts(facts: "AnswerFacts", console: Console) -> None:
    """Say under an answer what it took."""
    cut = ", cut short" if facts.is_cut else ""
    line = f"{facts.new_tokens} tokens, {facts.tokens_per_s:.1f} tokens/s{cut}"
    console.print(line, style="dim", highlight=False)
