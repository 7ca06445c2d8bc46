"""A budget for the dear model, spent where it is worth most."""

from __future__ import annotations

from math import e
from typing import Annotated, ClassVar, Self

from numpy.random import Generator
from pydantic import Field, model_validator

from fleetsim.model_routing.api import Ask, ModelsView, Query, number_of
from fleetsim.plugins import PolicyConfig
from fleetsim.units import Seconds


class KnapsackConfig(PolicyConfig):
    """Parameters of the online knapsack."""

    budget_usd: Annotated[float, Field(gt=0, json_schema_extra={"unit": "USD"})] = 1.0
    """What the strong arm may cost by the list in a period, beyond the weak one."""
    period: Seconds = 86400.0
    """After which the budget is whole again."""
    least: Annotated[float, Field(gt=0, json_schema_extra={"unit": "1/USD"})] = 100.0
    """Lowest gain per dollar that occurs; below it nothing is worth it."""
    most: Annotated[float, Field(gt=0, json_schema_extra={"unit": "1/USD"})] = 10_000.0
    """Highest gain per dollar that occurs."""
    weak: str = ""
    """Arm for the others. Empty: the cheapest by the list but the strong one."""
    strong: str = ""
    """The dear arm. Empty: the one with the highest mean quality."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.most <= self.least:
            raise ValueError(f"most {self.most:g} is not above least {self.least:g}")
        return self


class Knapsack:
    """Online knapsack: the strong model while its gain per dollar is above a price that rises as the budget is spent.

    Rule: with z the part of the budget that is spent, L and U the bounds of gain per dollar, ask the strong arm iff
    ``gain / price >= (U e / L)^z (L / e)`` and the price fits the budget; below ``z = 1 / (1 + ln(U / L))`` whenever it is at least
    L. The gain is the difference of the predicted chances, the price the difference of the expected list prices. Against any order
    of requests that gets at least ``1 / (1 + ln(U / L))`` of what could be had knowing all.

    References
    ----------
    D. Chakrabarty, Y. Zhou and R. Lukose, "Online Knapsack Problems", WINE 2008; its use for components of agents:
    arXiv:2510.16499.
    """

    Config: ClassVar = KnapsackConfig

    def __init__(self, config: KnapsackConfig, rng: Generator, models: ModelsView) -> None:
        self._config, self._models = config, models
        usd = models.usd_per_prompt_token + models.usd_per_output_token
        self._strong = (
            number_of(models, config.strong, "knapsack") if config.strong else int(models.mean_quality.argmax())
        )
        others = [arm for arm in range(models.count) if arm != self._strong] or [self._strong]
        cheapest = min(others, key=lambda arm: (usd[arm], models.mean_quality[arm]))
        self._weak = number_of(models, config.weak, "knapsack") if config.weak else cheapest
        self._spent = 0.0
        self._number = 0
        """Number of the period."""

    def route(self, query: Query) -> Ask:
        """Strong if it is worth it."""
        number = int(query.now_s // self._config.period)
        if number != self._number:
            self._number, self._spent = number, 0.0
        among = self._models.open()
        usd = self._models.usd(query)
        price = max(float(usd[self._strong] - usd[self._weak]), 0.0)
        gain = float(query.chance[self._strong] - query.chance[self._weak])
        if self._strong in among and (self._weak not in among or self._worth(gain, price)):
            self._spent += price
            return Ask(self._strong)
        return Ask(self._weak if self._weak in among or not among else among[0])

    def _worth(self, gain: float, price: float) -> bool:
        config = self._config
        if price == 0.0:
            return gain > 0.0
        if self._spent + price > config.budget_usd:
            return False
        return gain / price >= bar(self._spent / config.budget_usd, config.least, config.most)


def bar(spent: float, least: float, most: float) -> float:
    """Gain per dollar that is asked for when so much of the budget is spent."""
    return max(float((most * e / least) ** spent) * (least / e), least)
