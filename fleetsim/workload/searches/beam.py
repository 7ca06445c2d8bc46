"""Beam search over steps."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.units import SecondsOrZero
from fleetsim.workload.searches.api import Leaves


class BeamConfig(PolicyConfig):
    """Parameters of beam search."""

    beams: Annotated[int, Field(ge=1, le=100_000, strict=True, json_schema_extra={"unit": "leaves"})] = 4
    """Leaves that go on at most."""
    decision: SecondsOrZero = 0.0
    """Time that a decision takes."""


class Beam:
    """Beam search over steps: the best leaves go on, each with the same number of continuations.

    Rule: the `beams` leaves of the highest rewards share the width evenly; what does not divide goes to the best.

    Charged: `decision` after the last reward.

    References
    ----------
    C. Snell et al., "Scaling LLM Test-Time Compute Optimally can be More Effective than Scaling Model Parameters", 2024,
    arXiv:2408.03314, section 5.2.
    """

    Config: ClassVar = BeamConfig

    def __init__(self, config: BeamConfig) -> None:
        self._beams = config.beams
        self.decision_s = config.decision

    def continuations(self, leaves: Leaves) -> list[int]:
        """How many next steps to sample from each leaf."""
        counts = [0] * len(leaves.rewards)
        best = np.argsort(-leaves.rewards, kind="stable")[: min(self._beams, leaves.width)].tolist()
        each, more = divmod(leaves.width, len(best))
        for place, leaf in enumerate(best):
            counts[leaf] = each + (place < more)
        return counts
