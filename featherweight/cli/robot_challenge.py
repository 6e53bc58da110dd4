"""`fw robot challenge`: cubes into the bin, over a bad network, judged."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli.screen import AsJson, print_json
from featherweight.errors import ConfigError

MaxAge = Annotated[
    float, typer.Option(min=10, max=5000, help="Milliseconds after which the robot's side drops a command.")
]


def challenge(
    operator: Annotated[
        str,
        typer.Option(
            help="hand (a model of a person who moves and waits), eager (of one who never waits), policy, or shared "
            "and shared-eager (those hands, helped by the policy)."
        ),
    ] = "hand",
    policy: Annotated[Path | None, typer.Option(help="Folder of a run of fw robot train.", show_default=False)] = None,
    impair: Annotated[
        str, typer.Option(help="lan, continent, tokyo-dhaka, satellite, or words like 150ms+-30,1%.")
    ] = "lan",
    runs: Annotated[int, typer.Option(min=1, help="Layouts.")] = 10,
    cubes: Annotated[int, typer.Option(min=1, max=6, help="On the table.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the first layout.", show_default=False)] = None,
    max_age: MaxAge = 250.0,
    log: Annotated[
        Path | None, typer.Option(help="Folder of the judge's logs, one for each layout.", show_default=False)
    ] = None,
    score: Annotated[
        Path | None, typer.Option(help="Score this log again and do nothing else.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put cubes into the bin over a network with delay and loss, in virtual time, and be judged.

    The judge stands on the robot's side. Its log can be scored again by anybody, to the same number.

    [bold]Examples[/bold]

    fw robot challenge --impair tokyo-dhaka

    fw robot challenge --operator policy --policy runs/robot --impair 300ms+-30,1% --log logs

    fw robot challenge --score logs/10000.jsonl
    """
    from featherweight.robot.challenge.log import read_log
    from featherweight.robot.challenge.run import ALONE, parse_impairment, run_challenge
    from featherweight.robot.challenge.score import score_log
    from featherweight.robot.challenge.summary import summarize

    if score is not None:
        told = asdict(score_log(read_log(score)))
        if as_json:
            print_json(told)
        else:
            print("\n".join(f"{name}: {value}" for name, value in told.items()))
        return
    if policy is not None and operator in ALONE:
        raise ConfigError(
            f"fw robot challenge: policy is given to operator={operator}, a hand; expected --operator policy, shared "
            "or shared-eager. Choose."
        )
    network, loaded = parse_impairment(impair), None
    if policy is not None:
        from featherweight.robot.learning.policy import load_policy

        loaded = load_policy(policy)
    first, scores = 10_000 if seed is None else seed, []
    for number in range(first, first + runs):
        path = None if log is None else log / f"{number}.jsonl"
        one = run_challenge(operator, loaded, number, network, cubes, path, max_age_ms=max_age)
        scores.append(one)
        if not as_json:
            print(
                f"layout {number}: {one.points:.1f} points, {one.placed} of {one.cubes} in {one.time_s:.1f} s, "
                f"{one.drops} drops, {one.collisions} collisions",
                flush=True,
            )
    row = summarize(scores)
    if as_json:
        print_json({"summary": asdict(row), "runs": [asdict(one) for one in scores]})
        return
    low, high = row.complete_interval
    print(
        f"{row.complete} of {row.runs} complete (95 %: {low:.2f} to {high:.2f}), mean {row.points:.1f} points "
        f"({row.points_interval[0]:.1f} to {row.points_interval[1]:.1f}), {row.time_s:.1f} s, spectral arc length "
        f"{row.spectral_arc_length:.2f}, log jerk {row.log_jerk:.1f}"
    )
