"""The memory planner: will it fit, what should be run, and what to change if it does not fit.

It simulates training steps (`featherweight.training.estimate`), adds what a card takes beyond tensors, and searches.
"""

from featherweight.config import parse_bytes
from featherweight.planner.advice import Change, Why, changes, explain, why
from featherweight.planner.candidates import TAGS
from featherweight.planner.need import Need, need_of
from featherweight.planner.plan import Plan, plan
from featherweight.planner.row import PlanRow
from featherweight.planner.solve import Solution, solve
from featherweight.planner.target import Target

__all__ = [
    "TAGS",
    "Change",
    "Need",
    "Plan",
    "PlanRow",
    "Solution",
    "Target",
    "Why",
    "changes",
    "explain",
    "need_of",
    "parse_bytes",
    "plan",
    "solve",
    "why",
]
