"""What the shell offers where a word begins; asked at each press of the tab key, so nothing heavy is imported.

`fw --install-completion` switches it on for bash, zsh, fish and PowerShell. File names are the shell's own.
"""

from collections.abc import Callable, Iterable

from featherweight.cli.examples import example_recipes
from featherweight.memory.cards import CARDS
from featherweight.models.place import ALIASES
from featherweight.models.shapes import SHAPES


def one_of(words: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a function that offers the words that go on as the given one begins."""
    known = list(words)
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]


def list_of(words: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a function that offers the same behind a comma, without the words that stand there already."""
    known = list(words)

    def offer(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = [part.strip() for part in before.split(",")]
        return [f"{before}{comma}{word}" for word in known if word.startswith(last.strip()) and word not in given]

    return offer


def models(incomplete: str) -> list[str]:
    """Offer the names of models and shapes; empty where a path begins, which the shell completes."""
    return one_of((*ALIASES, *SHAPES))(incomplete)


def cards(incomplete: str) -> list[str]:
    """Offer the devices that a plan can be for."""
    known = (card.name.lower().replace(" ", "") for card in CARDS)
    return one_of(("cpu", "cuda", *known))(incomplete)


def examples(incomplete: str) -> list[str]:
    """Offer the names of the example recipes."""
    return one_of(example_recipes())(incomplete)


def recipe_keys(incomplete: str) -> list[str]:
    """Offer the keys of a recipe, as far as the equals sign."""
    from featherweight.training.recipe import Recipe

    return one_of(f"{key}=" for key in Recipe.model_fields)(incomplete)
