"""Folders for Ollama: a GGUF file and the Modelfile that says how a conversation is written and where answers end.

Ollama writes conversations by templates of Go, not of Jinja. Most chat templates put fixed words before and behind each
turn: these words are found by rendering conversations, and the Go template made of them is proved on others. A
template that does more is refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featherweight.config.files import new_folder
from featherweight.errors import ConfigError
from featherweight.models.export import cannot_write, require_new
from featherweight.models.gguf_export import export_gguf
from featherweight.models.load import load_tokenizer
from featherweight.models.templates import choose_template, render, stop_ids

_SYSTEM, _USER, _ANSWER, _NEXT = "\ue000S", "\ue000U", "\ue000A", "\ue000V"
"""Texts that stand in no template."""


@dataclass(frozen=True)
class TurnWords:
    """The fixed words around the turns of a conversation."""

    before_system: str
    after_system: str
    before_user: str
    after_user: str
    """Up to where the answer begins."""
    after_answer: str
    default_system: str | None
    """What the template says where nobody gives a system turn."""

    def write(self, system: str | None, turns: list[str]) -> str:
        """Return a conversation, questions and answers by turns, up to where the next answer begins.

        This is what the template of `go_template` writes.
        """
        system = self.default_system if system is None else system
        text = "" if system is None else self.before_system + system + self.after_system
        for index, turn in enumerate(turns):
            words = (self.before_user, self.after_user) if index % 2 == 0 else ("", self.after_answer)
            text += words[0] + turn + words[1]
        return text

    def go_template(self) -> str:
        """Return the template in Ollama's language."""
        system = "{{ if .System }}" + self.before_system + "{{ .System }}" + self.after_system + "{{ end }}"
        user = "{{ if .Prompt }}" + self.before_user + "{{ .Prompt }}" + self.after_user + "{{ end }}"
        return system + user + "{{ .Response }}" + self.after_answer


def turn_words(tokenizer: Any, *, where: str) -> TurnWords:
    """Return the fixed words around turns under a tokenizer's template, proved on conversations.

    Args:
        tokenizer: with a chat template.
        where: its name, for messages.

    Raises:
        ConfigError: if there is no template, or it does more than to put fixed words around turns.
    """
    choose_template(tokenizer, None, where=where)
    first = {"role": "user", "content": _USER}
    answered = [first, {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _NEXT}]
    refused = ConfigError(
        f"export: the chat template of {where} does more than to put fixed words around turns; expected one that "
        "Ollama's language can say. Write the GGUF file alone (--to gguf:q8_0), which carries the template itself."
    )
    # Ollama lets llama.cpp put the token that begins a text.
    bos = tokenizer.bos_token if tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else None

    def text_of(messages: list[dict[str, str]]) -> str:
        text = render(tokenizer, messages, add_generation_prompt=True)
        return text.removeprefix(bos) if bos else text

    alone, several = text_of([first]), text_of(answered)
    if not all(part in several for part in (_USER, _ANSWER, _NEXT)) or _USER not in alone:
        raise refused
    opening, after_user = alone.split(_USER)
    between = several.split(_ANSWER)[1].split(_NEXT)[0]
    try:
        with_system = text_of([{"role": "system", "content": _SYSTEM}, first])
    except ConfigError:
        with_system = ""  # a template that knows no system turn
    default = None
    before_user, before_system, after_system = opening, "", ""
    if _SYSTEM in with_system:
        before_system, _, rest = with_system.partition(_SYSTEM)
        between_system = rest.partition(_USER)[0]
        if opening.startswith(before_system) and opening.endswith(between_system) and opening not in between:
            # The opening is a system turn that the template brings along.
            default = opening[len(before_system) : len(opening) - len(between_system)]
            before_user = _common_end(between_system, between)
        after_system = between_system.removesuffix(before_user)
    words = TurnWords(
        before_system, after_system, before_user, after_user, between.removesuffix(before_user), default or None
    )
    trial = ["one", "two\n2", "three", "four", "five"]
    messages = [
        {"role": "user" if index % 2 == 0 else "assistant", "content": turn} for index, turn in enumerate(trial)
    ]
    systems = [None, "Be brief."] if with_system else [None]
    for system in systems:
        head = [] if system is None else [{"role": "system", "content": system}]
        for count in (1, 3, 5):
            if words.write(system, trial[:count]) != text_of(head + messages[:count]):
                raise refused
    return words


def modelfile(words: TurnWords, stops: list[str], name: str) -> str:
    """Return the text of a Modelfile.

    Args:
        words: of the template.
        stops: texts that end an answer.
        name: of the GGUF file beside it.
    """
    lines = [f"FROM ./{name}", f'TEMPLATE """{words.go_template()}"""']
    if words.default_system:
        lines.append(f'SYSTEM """{words.default_system}"""')
    quoted = [stop.replace("\\", "\\\\").replace('"', '\\"') for stop in stops]
    return "\n".join([*lines, *(f'PARAMETER stop "{stop}"' for stop in quoted)]) + "\n"


def export_ollama(source: str, out: Path, *, kind: str = "q8_0", base: str | None = None) -> dict[str, Any]:
    """Write a folder that `ollama create NAME -f Modelfile` reads.

    Args:
        source: as for `export_gguf`.
        out: the folder to make; it must not exist, or be empty.
        kind: of the GGUF file.
        base: as for `export_gguf`.

    Raises:
        ConfigError: as `export_gguf` and `turn_words`.
    """
    require_new(out)
    has_tokenizer = (Path(source).expanduser() / "tokenizer_config.json").exists()
    tokenizer = load_tokenizer(base if base is not None and not has_tokenizer else source)
    words = turn_words(tokenizer, where=source)
    stops = [str(one) for one in tokenizer.convert_ids_to_tokens(stop_ids(tokenizer))]  # type: ignore[attr-defined]
    try:
        with new_folder(out) as folder:
            facts = export_gguf(source, folder / "model.gguf", kind=kind, base=base)
            (folder / "Modelfile").write_text(modelfile(words, stops, "model.gguf"), encoding="utf-8")
    except OSError as error:
        raise cannot_write(out, error) from error
    return {**facts, "file": str(out / "model.gguf"), "next": f"ollama create NAME -f {out / 'Modelfile'}"}


def _common_end(one: str, other: str) -> str:
    """Return the longest text with which both end."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return one[len(one) - count :]
