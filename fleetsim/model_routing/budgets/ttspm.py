"""More answers, or more rounds, until another one is not worth it."""

from __future__ import annotations

from math import ceil, log
from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.budgets.api import Effort, LoadConfig, ModelsView, Query, shrunk
from fleetsim.model_routing.tags import Tags


class TtspmConfig(LoadConfig):
    """Parameters of the saturation point."""

    mode: Literal["parallel", "sequential"] = "parallel"
    """`parallel`: a group of answers, of which the judge's favourite counts; `sequential`: one answer that is thought over again
    and again, behind all that was written."""
    least_gain: Annotated[float, Field(gt=0, lt=1, json_schema_extra={"unit": "ratio"})] = 0.01
    """Gain in the chance of a right answer below which another one is not worth it (ε)."""
    ceiling: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 1.0
    """Chance that any number of answers comes to (F_max)."""
    most: Annotated[int, Field(ge=1, le=100, strict=True, json_schema_extra={"unit": "count"})] = 32
    """Never more answers or rounds than that (assumption: the largest number that the publication shows)."""


class Ttspm:
    """TTSPM: as many answers, or rounds of thinking, as it takes until the next one gains less than a bound.

    Rule: with the predicted chance p of the arm, N answers are right with ``F(N) = F_max (1 - (1 - p)^N)``, and the next one gains
    ``F_max p (1 - p)^N``; it is asked for the saturation point ``N = ceil(ln(ε / (F_max p)) / ln(1 - p))``, at least 1 and at most
    `most`, fewer from the load `calm` on and one from `busy`. In sequence the same law holds with rounds of thinking for answers:
    what was right stays right.

    Charged: all answers; in parallel the scenario's judge for each too, in sequence a context that grows by every round.

    References
    ----------
    TTSPM, arXiv:2505.20522.
    """

    Config: ClassVar = TtspmConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query", "system"), ("rule",), "query", ("budget",))

    def __init__(self, config: TtspmConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models

    def spend(self, query: Query, arm: int) -> Effort:
        """As many as are worth it."""
        config = self._config
        wanted = min(saturation(float(query.chance[arm]), config.least_gain, config.ceiling), config.most)
        wanted = shrunk(wanted, self._models.load(arm), config)
        if wanted == 1:
            return Effort()
        return Effort(wanted, pick="judge") if config.mode == "parallel" else Effort(rounds=wanted, pick="last")


def saturation(chance: float, least_gain: float = 0.01, ceiling: float = 1.0) -> int:
    """Answers after which the next one gains less than a bound: TTSPM's saturation point, at least 1.

    Parameters
    ----------
    chance : float
        That an answer is right (p).
    least_gain : float
        The bound (ε).
    ceiling : float
        Chance that any number of answers comes to (F_max).
    """
    if chance >= 1.0 or ceiling * chance <= least_gain:
        return 1
    return max(ceil(log(least_gain / (ceiling * chance)) / log(1.0 - chance) - 1e-9), 1)
