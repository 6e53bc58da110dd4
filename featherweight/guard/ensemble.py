"""Several guards of one model with different prefixes, as one.

    any     flagged if one member flags; each member gets an equal part of the promised rate of false alarms
    mean    flagged if the mean of the members' log-odds is above a threshold of its own
    random  one member for each request, drawn unseen; who looks for a request that passes cannot know which

It makes it harder to search for requests that pass one fixed prefix; it is no proof against it.
"""

import json
import math
import secrets
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch

from featherweight.config.files import new_folder
from featherweight.errors import CheckpointError, ConfigError
from featherweight.guard.calibration import make_rows, read_sets
from featherweight.guard.guard import PrefixGuard
from featherweight.guard.metrics import conformal_threshold
from featherweight.guard.monitor import Monitor
from featherweight.guard.options import GuardOptions
from featherweight.guard.storage import SETTINGS as GUARD_SETTINGS
from featherweight.guard.verdict import Verdict

Combination = Literal["any", "mean", "random"]
SETTINGS = "ensemble.json"


class GuardEnsemble:
    """Judges requests by several guards.

    Args:
        members: guards of one model, bound to its tokenizer.
        combination: any, mean or random.
        flag_above: the threshold of the mean.

    Raises:
        ConfigError: for fewer than two members, or a mean of guards that decide in several stages.
    """

    def __init__(
        self, members: Sequence[PrefixGuard], combination: Combination = "any", *, flag_above: float | None = None
    ) -> None:
        if combination not in get_args(Combination):
            raise ConfigError(
                f"guard: combination={combination!r} is unknown; expected any, mean or random. Write 'any'."
            )
        if len(members) < 2:
            raise ConfigError(f"guard: members={len(members)} are no ensemble; expected two or more. Add a prefix.")
        several = any(len(one.options.stages) > 1 or one.options.early_exit for one in members)
        if combination == "mean" and (several or flag_above is None):
            raise ConfigError(
                "guard: combination='mean' needs members of one stage without early exits, and flag_above; expected "
                "those. Make it with GuardEnsemble.calibrate."
            )
        shown = {one.options.on_flag for one in members} & {"truncate", "continue"}
        if shown:
            raise ConfigError(
                f"guard: on_flag={shown.pop()} goes on with the probe of one member; expected message, annotate or "
                "callback for an ensemble. Change it with guard.with_options(on_flag='message')."
            )
        self.members, self.combination, self.flag_above = tuple(members), combination, flag_above

    @classmethod
    def calibrate(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        prefixes: Sequence[str],
        combination: Combination = "any",
        target_fpr: float = 0.01,
        **arguments: Any,
    ) -> Self:
        """Make an ensemble, a member for each prefix; the promised rate holds for all of them together.

        Args:
            model: a causal language model.
            tokenizer: its own.
            prefixes: the forced openings.
            combination: any, mean or random.
            target_fpr: the promised rate of false alarms.
            arguments: those of `featherweight.guard.calibration.calibrate`, `confidence` excepted with `mean`.

        Raises:
            ConfigError: as there.
        """
        share = target_fpr / len(prefixes) if combination == "any" else target_fpr
        members = [
            PrefixGuard.calibrate(model, tokenizer, prefix=prefix, target_fpr=share, **arguments) for prefix in prefixes
        ]
        if combination != "mean":
            return cls(members, combination)
        members = [one.with_options(early_exit=[]) for one in members]
        sets = read_sets(arguments["harmful"], arguments["benign"], arguments.get("borderline"))
        rows = make_rows(sets, grouped=arguments.get("grouped", False), frames=False, seed=arguments.get("seed", 0))
        benign = [rows.messages[row] for row in rows.where("calibrate", "benign").nonzero().squeeze(1).tolist()]
        scores = torch.tensor([[one.score for one in member.judge(model, tokenizer, benign)] for member in members])
        limit = conformal_threshold(scores.mean(dim=0), target_fpr)
        return cls(members, combination, flag_above=limit)

    @property
    def options(self) -> GuardOptions:
        """Those of the first member, which say what a flagged request gets."""
        return self.members[0].options

    def draw(self) -> tuple[int, ...]:
        """Return which members judge the next request."""
        return (secrets.randbelow(len(self.members)),) if self.combination == "random" else self._all

    @property
    def _all(self) -> tuple[int, ...]:
        return tuple(range(len(self.members)))

    def refusal(self, verdict: Verdict, request: Any = None) -> str:
        """Return the text of the reply to a flagged request, as the first member would."""
        return self.members[0].refusal(verdict, request)

    def refusal_ids(self, verdict: Verdict, request: Any = None) -> list[int]:
        """Return the tokens of that text, with the one that ends a reply."""
        return self.members[0].refusal_ids(verdict, request)

    @property
    def decoding_loop(self) -> Any:
        """The loop for ``model.generate(..., custom_generate=ensemble.decoding_loop, guard=ensemble)``."""
        return self.members[0].decoding_loop

    def new_monitor(self, rows: int) -> Monitor | None:
        """Return what watches the answers of so many rows: the monitor of the first member that has one, or None."""
        watched = [one for one in self.members if one.options.monitor is not None]
        return watched[0].new_monitor(rows) if watched else None

    def judge(self, model: Any, tokenizer: Any, prompts: Sequence[Any], *, batch_size: int = 8) -> list[Verdict]:
        """Return the verdicts of requests; what one member cannot judge is flagged.

        Args:
            model: of the members, in evaluation mode.
            tokenizer: its own.
            prompts: texts, or lists of messages.
            batch_size: requests that are read together.

        Cost: with `random` that of one guard; otherwise that of all members.
        """
        if self.combination == "random":
            chosen = [self.draw()[0] for _ in prompts]
            found: dict[int, Verdict] = {}
            for index, member in enumerate(self.members):
                places = [place for place, one in enumerate(chosen) if one == index]
                verdicts = member.judge(model, tokenizer, [prompts[place] for place in places], batch_size=batch_size)
                found |= dict(zip(places, verdicts, strict=True))
            return [found[place] for place in range(len(prompts))]
        each = [one.judge(model, tokenizer, prompts, batch_size=batch_size) for one in self.members]
        return [self.combine(verdicts) for verdicts in zip(*each, strict=True)]

    def combine(self, verdicts: Sequence[Verdict]) -> Verdict:
        """Return the verdict of the ensemble on a request, of those of the members that judged it."""
        if self.combination == "random":
            return verdicts[0]
        failed = next((one for one in verdicts if one.error is not None), None)
        if failed is not None:
            return failed
        tokens = sum(one.probe_tokens for one in verdicts)
        if self.combination == "mean":
            assert self.flag_above is not None
            score = math.fsum(one.score for one in verdicts) / len(verdicts)
            return Verdict(score > self.flag_above, score, "ensemble", tokens)
        chosen = max(verdicts, key=lambda one: (one.flagged, one.score))
        return replace(chosen, probe_tokens=tokens)

    def bind(self, model: Any, tokenizer: Any, *, allow_mismatch: bool = False) -> Self:
        """Prove that the members belong to a model, and remember its tokenizer.

        Raises:
            CheckpointError: if one was calibrated with another model, tokenizer or chat template.
        """
        for member in self.members:
            member.bind(model, tokenizer, allow_mismatch=allow_mismatch)
        return self

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the ensemble as a folder with a sub-folder for each member.

        Raises:
            ConfigError: if something is there, or it cannot be written.
        """
        out = Path(folder)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"guard: out={out} is not empty; expected a new folder. Choose another name.")
        limit = None if self.flag_above is None or math.isinf(self.flag_above) else self.flag_above
        settings = {"combination": self.combination, "flag_above": limit, "members": len(self.members)}
        with new_folder(out) as temporary:
            for index, member in enumerate(self.members):
                member.save_pretrained(temporary / f"member-{index}")
            (temporary / SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> Self:
        """Read the folder of an ensemble.

        Raises:
            CheckpointError: if it is none, or damaged.
        """
        root = Path(folder)
        try:
            settings = json.loads((root / SETTINGS).read_text(encoding="utf-8"))
            count, limit = int(settings["members"]), settings["flag_above"]
            combination = settings["combination"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"guard: folder={root} is no ensemble ({error}); expected {SETTINGS}. Copy it again."
            ) from error
        members = [PrefixGuard.from_pretrained(root / f"member-{index}") for index in range(count)]
        limit = math.inf if limit is None and combination == "mean" else limit
        return cls(members, combination, flag_above=limit)


def open_guard(folders: Sequence[Path]) -> PrefixGuard | GuardEnsemble:
    """Read a guard, an ensemble, or several guards that then work as one, of which one is enough to flag.

    Args:
        folders: of guards; one of an ensemble, or one that holds folders of guards, stands for those.

    Raises:
        CheckpointError: if one is no guard, or damaged.
        ConfigError: for an ensemble beside others.
    """
    if not folders:
        raise ConfigError("guard: folders=[] are none; expected the folder of a guard. Name one.")
    if len(folders) == 1 and (folders[0] / SETTINGS).is_file():
        return GuardEnsemble.from_pretrained(folders[0])
    inner: list[Path] = []
    for folder in folders:
        if (folder / SETTINGS).is_file():
            raise ConfigError(
                f"guard: folder={folder} is an ensemble with a rule of its own; expected it alone. Leave the others "
                "out, or name its members."
            )
        parts = [] if (folder / GUARD_SETTINGS).is_file() else sorted(folder.glob(f"*/{GUARD_SETTINGS}"))
        inner += [part.parent for part in parts] or [folder]
    guards = [PrefixGuard.from_pretrained(folder) for folder in inner]
    return guards[0] if len(guards) == 1 else GuardEnsemble(guards)
