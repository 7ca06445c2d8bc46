"""The cheapest model that is likely enough to be right, after a look at the request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Query
from fleetsim.plugins import PolicyConfig


class AvrConfig(PolicyConfig):
    """Parameters of adaptive routing by tiers."""

    confident: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.8
    """Predicted chance from which the cheapest such arm answers without a probe."""
    accepted: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.6
    """Score of the probe from which its answer is given."""
    risky: tuple[str, ...] = ()
    """Classes of requests that go to the best arm straight away."""


class Avr:
    """Adaptive routing as of VLM agents: a classifier, a probe by the smallest model, and the strongest where both do not convince.

    Rule: a class in `risky` goes to the arm with the highest mean quality. Else the cheapest arm whose predicted chance is at least
    `confident` answers. Where there is none, the cheapest arm answers as a probe: a judge's score of at least `accepted`
    (token-filtered log-probabilities, in the publication) and its answer is given; else the strongest one answers.

    Charged: 10 ms per decision for the classifier; the probe is a call like any other.

    References
    ----------
    Adaptive VLM Routing, arXiv:2603.12823.
    """

    Config: ClassVar = AvrConfig
    decision_s: ClassVar[float] = 0.01

    def __init__(self, config: AvrConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models

    def route(self, query: Query) -> Ask:
        """The cheapest that is likely enough, or a probe."""
        among = self._models.open()
        strongest = max(among, key=lambda arm: (self._models.mean_quality[arm], -arm))
        if query.klass in self._config.risky:
            return Ask(strongest, last=True)
        usd = self._models.usd(query)
        likely = [arm for arm in among if query.chance[arm] >= self._config.confident]
        if likely:
            return Ask(min(likely, key=lambda arm: (usd[arm], arm)), last=True)
        probe = min(among, key=lambda arm: (usd[arm], arm))
        return Ask(probe, last=True) if probe == strongest else Ask(probe, judge=True)

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Ask | Accept:
        """The probe's answer, or the strongest."""
        if (answers[-1].score or 0.0) >= self._config.accepted:
            return Accept(len(answers) - 1)
        among = self._models.open()
        strongest = max(among, key=lambda arm: (self._models.mean_quality[arm], -arm))
        return Accept(len(answers) - 1) if strongest == answers[-1].arm else Ask(strongest, last=True)
