"""What most of several answers say."""

from __future__ import annotations

from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.budgets.api import Effort, LoadConfig, ModelsView, Query, shrunk
from fleetsim.model_routing.tags import Tags


class SelfConsistencyConfig(LoadConfig):
    """Parameters of self-consistency."""

    samples: Annotated[int, Field(ge=1, le=1000, strict=True, json_schema_extra={"unit": "count"})] = 10
    """Answers that vote (assumption: 10; the publication shows 1 to 40)."""


class SelfConsistency:
    """Self-consistency: a group of answers of the same model, of which the most frequent one counts.

    Rule: `samples` answers, fewer from the load `calm` on and one from `busy`; the answer that most agree on is given, of equally
    frequent ones the one that came first. Nobody judges; whether wrong answers agree too is the scenario's `wrong_answers`.

    Charged: all answers, which share one computation of the prompt where the pool has a prefix cache.

    References
    ----------
    X. Wang et al., "Self-consistency improves chain of thought reasoning", arXiv:2203.11171. The rule is from the literature, not
    from the code.
    """

    Config: ClassVar = SelfConsistencyConfig
    tags: ClassVar[Tags] = Tags(("before",), ("system",), ("rule",), "query", ("budget", "ensemble"))

    def __init__(self, config: SelfConsistencyConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models

    def spend(self, query: Query, arm: int) -> Effort:
        """As many samples as the load allows."""
        config = self._config
        samples = shrunk(config.samples, self._models.load(arm), config)
        return Effort(samples, pick="vote") if samples > 1 else Effort()
