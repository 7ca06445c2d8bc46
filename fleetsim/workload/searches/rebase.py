"""Reward-balanced search."""

from __future__ import annotations

from math import ceil
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.units import SecondsOrZero
from fleetsim.workload.searches.api import Floats, Leaves

Temperature = Annotated[float, Field(gt=0, le=100)]


def balanced(rewards: Floats, width: int, temperature: float) -> list[int]:
    """Continuations of each leaf: `width` times its share of a softmax, rounded up, best first, until none are left."""
    counts = [0] * len(rewards)
    weights = np.exp((rewards - rewards.max()) / temperature)
    shares = weights / weights.sum()
    left = width
    for leaf in np.argsort(-rewards, kind="stable").tolist():
        counts[leaf] = min(ceil(width * shares[leaf]), left)
        left -= counts[leaf]
        if not left:
            break
    return counts


class RebaseConfig(PolicyConfig):
    """Parameters of reward-balanced search."""

    temperature: Temperature = 0.2
    """Of the softmax over rewards: smaller gives more of the width to the best leaves."""
    decision: SecondsOrZero = 0.0
    """Time that a decision takes."""


class Rebase:
    """Reward-balanced search: leaves go on in proportion to a softmax of their rewards.

    Rule: leaves are taken by falling reward; each gets the width times its share of softmax(reward / temperature), rounded up,
    until the width is used. Many leaves that share little go on, so that the KV cache fills with their paths.

    Charged: `decision` after the last reward.

    References
    ----------
    Y. Wu et al., "Inference Scaling Laws: An Empirical Analysis of Compute-Optimal Inference for LLM Problem-Solving", ICLR
    2025, arXiv:2408.00724.
    """

    Config: ClassVar = RebaseConfig

    def __init__(self, config: RebaseConfig) -> None:
        self._temperature = config.temperature
        self.decision_s = config.decision

    def continuations(self, leaves: Leaves) -> list[int]:
        """How many next steps to sample from each leaf."""
        return balanced(leaves.rewards, leaves.width, self._temperature)
