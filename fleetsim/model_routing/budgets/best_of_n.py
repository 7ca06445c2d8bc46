"""The best of several answers."""

from __future__ import annotations

from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.budgets.api import Effort, LoadConfig, ModelsView, Query, shrunk
from fleetsim.model_routing.tags import Tags


class BestOfNConfig(LoadConfig):
    """Parameters of best-of-n."""

    samples: Annotated[int, Field(ge=1, le=1000, strict=True, json_schema_extra={"unit": "count"})] = 4
    """Answers that are compared (assumption: 4)."""


class BestOfN:
    """Best-of-n: a group of answers of the same model, of which the judge's favourite counts.

    Rule: `samples` answers, fewer from the load `calm` on and one from `busy`; the one with the highest score is given. With a
    judge that never errs it is right with the chance ``1 - (1 - p)^n``.

    Charged: all answers, which share one computation of the prompt where the pool has a prefix cache, and the scenario's judge for
    each. The time is that of the longest of them.

    References
    ----------
    Best-of-n is common practice; BEST-Route (arXiv:2506.22716) chooses n between 1 and 5.
    """

    Config: ClassVar = BestOfNConfig
    tags: ClassVar[Tags] = Tags(("before",), ("system",), ("rule",), "query", ("budget", "ensemble"))

    def __init__(self, config: BestOfNConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models

    def spend(self, query: Query, arm: int) -> Effort:
        """As many samples as the load allows."""
        config = self._config
        samples = shrunk(config.samples, self._models.load(arm), config)
        return Effort(samples, pick="judge") if samples > 1 else Effort()
