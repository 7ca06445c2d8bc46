"""Expensive calls as an online knapsack: what is left of the budget says how much a call must be worth."""

from __future__ import annotations

from math import e, log
from typing import Annotated, ClassVar, Self

from numpy.random import Generator
from pydantic import Field, model_validator

from fleetsim.model_routing.api import Ask, ModelsView, Outcome, Query
from fleetsim.model_routing.pairs import Remembered, weak_and_strong
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_Worth = Annotated[float, Field(gt=0, json_schema_extra={"unit": "1/USD"})]


class OnlineKnapsackConfig(PolicyConfig):
    """Parameters of the online knapsack."""

    cheap: str = ""
    """Arm for requests that are not worth more. Empty: the cheapest by the list but the dear one."""
    dear: str = ""
    """Arm for the others. Empty: the one with the highest mean quality."""
    budget: Annotated[float, Field(gt=0, json_schema_extra={"unit": "USD"})] = 1.0
    """What the dear arm may cost beyond the cheap one, by the list, in each period [USD]."""
    period: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] = 3600.0
    """Time after which the budget begins anew [s]."""
    least: _Worth = 10.0
    """Smallest gain in the chance of a good answer per dollar that is worth anything (L; assumption) [1/USD]."""
    most: _Worth = 10_000.0
    """Largest one that comes (U; assumption) [1/USD]."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.most <= self.least:
            raise ValueError(f"most {self.most:g} is not above least {self.least:g}")
        return self


class OnlineKnapsack:
    """Online knapsack: the dear model where gain per dollar passes a bar that rises as the budget is used up.

    Rule: value v is the predicted gain in the chance of a good answer, price c the list price of an answer of the dear arm's
    expected length less the cheap arm's for the same length. With the share z of the period's budget that is spent, the dear arm is
    asked if ``v / c >= (U e / L)^z (L / e)``, and never below L; while ``z <= 1 / (1 + ln(U / L))`` that is all. A call that does
    not fit into the rest is not made. No rule that does not know what comes has a better worst case: ``1 / (1 + ln(U / L))`` of
    the best choice in hindsight.

    Charged: the calls. Prices are expected ones when it decides, and corrected when an answer is reported; answers that are longer
    than expected can pass the budget by what is under way.

    References
    ----------
    Y. Zhou, D. Chakrabarty and R. Lukose, "Budget constrained bidding in keyword auctions and online knapsack problems", WINE 2008;
    for compositions of agents, arXiv:2510.16499.
    """

    Config: ClassVar = OnlineKnapsackConfig
    tags: ClassVar[Tags] = Tags(("before",), ("query", "profile"), ("rule",), "query", ("single", "budget"))

    def __init__(self, config: OnlineKnapsackConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        self._cheap, self._dear = weak_and_strong(models, config.cheap, config.dear, "online-knapsack")
        self._period = -1
        self.spent_usd = 0.0
        """Of this period's budget [USD]."""
        self._expected: Remembered[tuple[int, float]] = Remembered()
        """Of requests to the dear arm: the period, and the price that was expected."""

    def route(self, query: Query) -> Ask:
        """Cheap or dear."""
        config, models = self._config, self._models
        among = models.open()
        period = int(query.arrival_s // config.period)
        if period > self._period:
            self._period, self.spent_usd = period, 0.0
        if self._cheap not in among or self._dear not in among:
            arms = [arm for arm in (self._cheap, self._dear) if arm in among] or among
            return Ask(arms[0])
        price = self._extra_usd(query, float(query.output_tokens[self._dear]))
        gain = float(query.chance[self._dear] - query.chance[self._cheap])
        if not self._worth(gain, price):
            return Ask(self._cheap)
        if price > 0.0:
            self.spent_usd += price
            self._expected.keep(query.id, (self._period, price))
        return Ask(self._dear)

    def feedback(self, outcome: Outcome) -> None:
        """What a call cost indeed."""
        kept = self._expected.take(outcome.query.id)
        if kept is None or kept[0] != self._period or outcome.arm != self._dear:
            return
        extra = self._extra_usd(outcome.query, outcome.output_tokens)
        self.spent_usd = max(self.spent_usd + extra - kept[1], 0.0)

    def _extra_usd(self, query: Query, output_tokens: float) -> float:
        """What the dear arm costs beyond the cheap one, for an answer of a length."""
        dear, cheap = self._models.arms[self._dear], self._models.arms[self._cheap]
        return dear.list_usd(query.prompt_tokens, output_tokens) - cheap.list_usd(query.prompt_tokens, output_tokens)

    def _worth(self, gain: float, price: float) -> bool:
        config = self._config
        if price <= 0.0:
            return gain >= 0.0
        filled = self.spent_usd / config.budget
        if self.spent_usd + price > config.budget * (1.0 + 1e-12):
            return False
        return gain / price >= bar(filled, config.least, config.most)


def bar(filled: float, least: float, most: float) -> float:
    """Value per price that an item must have, by the share of the knapsack that is full: ZCL's threshold.

    Parameters
    ----------
    filled : float
        The share.
    least, most : float
        Bounds of value per price.
    """
    if filled <= 1.0 / (1.0 + log(most / least)):
        return least
    return float((most * e / least) ** filled * (least / e))
