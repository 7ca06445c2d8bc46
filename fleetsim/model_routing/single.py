"""Always the same arm."""

from __future__ import annotations

from typing import ClassVar, Literal

from numpy.random import Generator

from fleetsim.model_routing.api import Ask, ModelsView, Query, best, number_of
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig


class SingleConfig(PolicyConfig):
    """Parameters of the single arm."""

    model: str = ""
    """Name of the arm: an LLM of `quality.models`, with `@` and its budget where it has one. Empty: chosen by `by`."""
    by: Literal["quality", "price", "energy"] = "quality"
    """Which arm it is where none is named: by the profiles the one with the highest mean quality, the lowest list price, or the
    fewest joules per token."""


class Single:
    """One model for all: the best, the cheapest or the thriftiest by its profile, or the one that is named.

    Rule: every request is answered by the same arm; while that may not be chosen, or nobody serves it, by the next one in the same
    order. The baseline that a router must beat. Deciding costs nothing.
    """

    Config: ClassVar = SingleConfig
    tags: ClassVar[Tags] = Tags(("before",), ("profile",), ("rule",), "query", ("single",))

    def __init__(self, config: SingleConfig, rng: Generator, models: ModelsView) -> None:
        self._models = models
        self._named = number_of(models, config.model, "single") if config.model else -1
        scores = {
            "quality": models.mean_quality,
            "price": -(models.usd_per_prompt_token + models.usd_per_output_token),
            "energy": -models.joules_per_token,
        }
        self._scores = scores[config.by]
        self._known: tuple[list[int], Ask] | None = None
        """The arm for the arms that were open last."""

    def route(self, query: Query) -> Ask:
        """The arm."""
        among = self._models.open()
        if self._known is None or self._known[0] != among:
            self._known = among, Ask(self._named if self._named in among else best(self._scores, among))
        return self._known[1]
