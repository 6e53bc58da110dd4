"""`fw chat`: talk to a model, in a terminal or through a pipe."""

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from featherweight.cli import answer
from featherweight.cli.data import Template
from featherweight.cli.given import require_template
from featherweight.errors import ConfigError, FeatherweightError

if TYPE_CHECKING:
    from featherweight.models.chat import Chat

_HELP = """\
/reset        begin a new conversation
/save FILE    write the conversation as one line of JSON, which fw train reads
/help         show this
/exit         end (also Ctrl-D)
Ctrl-C ends an answer; a second one ends the chat."""


def chat(
    model: answer.Model,
    system: Annotated[str | None, typer.Option("--system", help="Text of the system turn.")] = None,
    template: Template = None,
    temperature: answer.Temperature = 0.0,
    top_p: answer.TopP = None,
    seed: answer.Seed = 0,
    max_new_tokens: answer.MaxNewTokens = 512,
    dtype: answer.Dtype = None,
    guard: answer.GuardFolder = None,
) -> None:
    """Talk to a model. It sees its own chat template, and its answers end where the template ends them.

    From a pipe, every line is a turn of the user, and the answers are plain text.

    [bold]Examples[/bold]

    fw chat runs/chat/model --system "You answer in one sentence."

    echo "What is the capital of France?" | fw chat smollm2
    """
    answer.require_sampling(temperature, top_p, dtype)
    answer.require_unicode(system or "", "fw chat: --system")
    if template is None:
        require_template(model)
    from featherweight.cli.screen import leave_cleanly
    from featherweight.models.chat import Chat
    from featherweight.models.templates import choose_template

    with leave_cleanly("chat", [model]), answer.quiet_pipe():
        loaded, tokenizer = answer.load(model, dtype)
        choose_template(tokenizer, template, where="fw chat")
        options = answer.options_of(temperature, top_p, seed, max_new_tokens)
        gate = answer.gate_of(guard, loaded, tokenizer)
        conversation = Chat(loaded, tokenizer, system=system, options=options, gate=gate)
        Session(conversation, is_terminal=sys.stdin.isatty() and sys.stdout.isatty()).run(model)


class Session:
    """What happens between a person, or a pipe, and a conversation.

    Args:
        conversation: with whom.
        is_terminal: prompt, colours and facts; without it, only the answers are written.
    """

    def __init__(self, conversation: "Chat", *, is_terminal: bool) -> None:
        self._chat = conversation
        self._is_terminal = is_terminal
        self._console = Console()
        self._saved: set[Path] = set()

    def run(self, name: str) -> None:
        """Read turns until there are no more."""
        if self._is_terminal:
            _enable_line_editing()
            self._console.print(f"Talking to {name}. /help shows what else there is.", highlight=False, markup=False)
        while (line := self._read()) is not None:
            if line.startswith("/"):
                if not self._command(line):
                    return
            elif line:
                self._answer(line)

    def _read(self) -> str | None:
        where = "fw chat: standard input"
        if not self._is_terminal:
            with answer.unicode_input(where):
                line = sys.stdin.readline()
            return answer.require_unicode(line, where).strip() if line else None
        try:
            with answer.unicode_input(where):
                return answer.require_unicode(self._console.input("[bold cyan]> [/]"), where).strip()
        except (EOFError, KeyboardInterrupt):
            self._console.print()
            return None
        except ConfigError as error:
            self._complain(str(error))
            return ""

    def _answer(self, question: str) -> None:
        try:
            with closing(self._chat.ask(question)) as pieces:
                answer.show(pieces, plain=not self._is_terminal)
        except KeyboardInterrupt:
            if not self._is_terminal:
                raise
            self._console.print()
        except FeatherweightError as error:
            # In a terminal the conversation can still be saved or begun anew.
            if not self._is_terminal:
                raise
            self._complain(str(error))
            return
        if self._is_terminal:
            answer.show_facts(self._chat.facts, self._console)

    def _command(self, line: str) -> bool:
        """Do what a command says; return whether to go on."""
        word, _, rest = line.partition(" ")
        if word in ("/exit", "/quit", "/bye"):
            return False
        if word == "/reset":
            self._chat.reset()
            self._say("A new conversation begins.")
        elif word == "/save":
            try:
                self._say(f"Wrote {self._save(rest.strip())}.")
            except ConfigError as error:
                if not self._is_terminal:
                    raise
                self._complain(str(error))
        elif word == "/help":
            self._say(_HELP)
        else:
            unknown = f"fw chat: command={word} is unknown; expected one of /reset, /save, /help, /exit. Write /help."
            if not self._is_terminal:
                raise ConfigError(unknown)
            self._complain(unknown)
        return True

    def _save(self, name: str) -> Path:
        from featherweight.config.files import write_atomically

        if not name:
            raise ConfigError("fw chat: /save names no file; expected one. Write /save chat.jsonl.")
        path = Path(name).expanduser()
        if path.exists() and path.resolve() not in self._saved:
            raise ConfigError(f"fw chat: file={path} is there already; expected a new file. Choose another name.")
        line = json.dumps({"messages": self._chat.messages}, ensure_ascii=False)
        write_atomically(path, line + "\n")
        self._saved.add(path.resolve())
        return path

    def _say(self, text: str) -> None:
        """Tell a person something; in a pipe only answers are written."""
        if self._is_terminal:
            self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    def _complain(self, sentence: str) -> None:
        from featherweight.cli.screen import print_error

        print_error(sentence)


def _enable_line_editing() -> None:
    """Give the prompt arrow keys and a history, where the system has them (not on Windows)."""
    import importlib

    try:
        importlib.import_module("readline")
    except ImportError:
        pass
