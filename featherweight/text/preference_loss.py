"""Losses of preferences: what answers are worth, from the log-probabilities of their tokens.

All of them are functions of summed (or mean) log-probabilities, those of the trained model and, where the method asks
for one, of the model before training (the reference). Natural logarithms; float32.
Shapes: P pairs (or judged answers) of a micro-batch.
Sources: DPO, arXiv 2305.18290, equation 7; SimPO, arXiv 2405.14734, equation 6; ORPO, arXiv 2403.07691, equations 4 to
7; KTO, arXiv 2402.01306, equation 8.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from featherweight.text.options import PreferenceMethod

NEEDS_REFERENCE: tuple[PreferenceMethod, ...] = ("dpo", "kto")


@dataclass(frozen=True)
class Outcome:
    """Losses of a micro-batch and what stands beside them."""

    losses_P: Tensor
    """(P,) one loss a pair or judged answer."""
    margins_P: Tensor
    """(P,) reward of the better answer less that of the worse one; of a judged answer, its reward, negative for bad."""


def dpo(
    chosen_P: Tensor, rejected_P: Tensor, reference_chosen_P: Tensor, reference_rejected_P: Tensor, *, beta: float
) -> Outcome:
    """Return ``-log sigmoid(beta ((c - c_ref) - (r - r_ref)))`` with summed log-probabilities.

    Example:
        >>> zero = torch.zeros(1)
        >>> dpo(zero, zero, zero, zero, beta=0.1).losses_P
        tensor([0.6931])
    """
    margins_P = beta * ((chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P))
    return Outcome(-F.logsigmoid(margins_P), margins_P.detach())


def simpo(chosen_mean_P: Tensor, rejected_mean_P: Tensor, *, beta: float, gamma: float) -> Outcome:
    """Return ``-log sigmoid(beta (c - r) - gamma)`` with log-probabilities that are means over tokens; no reference."""
    margins_P = beta * (chosen_mean_P - rejected_mean_P)
    return Outcome(-F.logsigmoid(margins_P - gamma), margins_P.detach())


def orpo(chosen_mean_P: Tensor, rejected_mean_P: Tensor, *, beta: float) -> Outcome:
    """Return ``-c - beta log sigmoid(log(odds(c) / odds(r)))`` with means over tokens; no reference.

    The odds of an answer are ``p / (1 - p)`` with ``p = exp(mean log-probability)``.
    """
    log_odds_P = (chosen_mean_P - rejected_mean_P) - (_log1mexp(chosen_mean_P) - _log1mexp(rejected_mean_P))
    return Outcome(-chosen_mean_P - beta * F.logsigmoid(log_odds_P), (beta * log_odds_P).detach())


def kto(
    answer_P: Tensor,
    reference_P: Tensor,
    is_good_P: Tensor,
    kl: Tensor,
    *,
    beta: float,
    good_weight: float = 1.0,
    bad_weight: float = 1.0,
) -> Outcome:
    """Return ``w (1 - sigmoid(beta (a - kl)))`` of good answers and ``w (1 - sigmoid(beta (kl - a)))`` of bad ones.

    Args:
        answer_P: summed log-probabilities.
        reference_P: those of the model before training.
        is_good_P: (P,) bool.
        kl: 0-d, at least 0, without a gradient: how far the model has moved, from answers to other prompts.
        beta: scale of rewards.
        good_weight: of good answers.
        bad_weight: of bad answers.
    """
    moved_P = answer_P - reference_P
    sign_P = torch.where(is_good_P, 1.0, -1.0)
    weight_P = torch.where(is_good_P, good_weight, bad_weight)
    losses_P = weight_P * (1 - torch.sigmoid(beta * sign_P * (moved_P - kl)))
    return Outcome(losses_P, (beta * sign_P * moved_P).detach())


def _log1mexp(values: Tensor) -> Tensor:
    """Return ``log(1 - exp(values))`` of negative values without cancellation near 0 and far below it."""
    values = values.clamp(max=-1e-6)  # a probability of 1 has no odds
    return torch.where(values > -0.6931, (-torch.expm1(values)).log(), torch.log1p(-values.exp()))
