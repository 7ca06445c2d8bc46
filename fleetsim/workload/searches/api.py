"""What a search policy is asked, and what it sees: the leaves of one problem's tree, once per depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Leaves:
    """The scored leaves of one problem that have no final answer yet."""

    rewards: Floats
    """Score of each by the reward model, 0 to 1."""
    paths: Sequence[tuple[int, ...]]
    """Steps between the question and each leaf, by number; leaves with the same first steps share their keys and values."""
    embeddings: Floats
    """Meaning of each leaf's last step: one row of a matrix per leaf."""
    width: int
    """Continuations to hand out: leaves with a final answer have used up the others."""


class Search(Protocol):
    """Decides which leaves go on."""

    decision_s: float
    """Time that a decision takes after the last reward is known [s]."""

    def continuations(self, leaves: Leaves) -> Sequence[int]:
        """How many next steps to sample from each leaf, `leaves.width` in all at most; 0 gives it up. All 0 ends the search."""
        ...
