"""Ants that find paths through layers of models."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.model_routing.api import Accept, Answer, Ask, ModelsView, Outcome, Query
from fleetsim.model_routing.pairs import Latencies, Remembered
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig

_Weight = Annotated[float, Field(ge=0)]
_Ratio = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]
_LEAST, _MOST = 0.05, 5.0
_OVERRUN = 1e6


class AmroSConfig(PolicyConfig):
    """Parameters of AMRO-S; where the publication does not say, assumptions."""

    layers: Annotated[int, Field(ge=1, le=8, strict=True, json_schema_extra={"unit": "count"})] = 3
    """Stages of a path (collect, analyse, solve)."""
    alpha: _Weight = 1.0
    """Exponent of the pheromone (assumption)."""
    beta: _Weight = 2.0
    """Exponent of what is known beforehand (assumption)."""
    rho: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.1
    """Share of the pheromone that evaporates at an update (assumption)."""
    gate: _Ratio = 0.7
    """Quality from which a path is learned from (assumption)."""
    cost: _Weight = 1.0
    """Weight of the expected list price, over the dearest arm's (assumption)."""
    latency: _Weight = 1.0
    """Weight of the latency of requests that the arm ended, over the slowest arm's (assumption)."""
    load: _Weight = 1.0
    """Weight of the load: requests over seats (assumption). 0: blind to it."""
    memory: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.1
    """Weight of the last answer in a model's latency (assumption)."""
    intent_accuracy: _Ratio = 0.9793
    """How sure the small model is of a request's type."""
    shared: bool = False
    """Whether all types of requests share one matrix, for comparison."""


class AmroS:
    """AMRO-S: a path of models, each of which thinks the answer before over; pheromones remember which paths were good.

    Rule: from model i to model j of the next layer with a probability in proportion to ``sum_k pi_k tau_k[i,j]^alpha eta[j]^beta``;
    pi is the belief about the request's type (domain), tau the pheromone of each type, and ``eta = 1 / (w1 cost + w2 latency + w3
    load)``, costs and latencies over the largest of the arms. A model with a reasoning budget is a node of its own. If the answer's
    quality z reaches the gate, the edges of its path become ``(1 - rho) tau + rho pi_k z / (1 + cost)``, kept in [0.05, 5].

    Charged: all calls of the path, whose contexts grow by what was written before; 25 ms per request for the intent (five tokens of
    a model of 1B; the publication's is 1 to 1.5B).

    References
    ----------
    AMRO-S, arXiv:2603.12933. Read as an abstract only; that later layers think over what earlier ones answered is ours.
    """

    Config: ClassVar = AmroSConfig
    tags: ClassVar[Tags] = Tags(
        ("before", "after"), ("query", "profile", "system"), ("reinforcement",), "step", ("cascade",)
    )
    decision_s: ClassVar[float] = 0.025
    verifies: ClassVar[bool] = True

    def __init__(self, config: AmroSConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config, self._rng = models, config, rng
        kinds, arms = 1 if config.shared else len(models.domains), models.count
        sure = config.intent_accuracy if kinds > 1 else 1.0
        self._unsure = (1.0 - config.intent_accuracy) / max(kinds - 1, 1)
        """Belief in each type that was not told."""
        self._surer = sure - self._unsure
        """How much more is believed in the one that was."""
        self.trails = [[Trail(kinds, arms) for _ in range(arms)] for _ in range(config.layers)]
        """By layer and model before; of the first layer the first model stands for none."""
        self._latencies = Latencies(models, config.memory)
        self._paths: Remembered[tuple[list[int], list[float]]] = Remembered()
        """By request, the models so far, and what each arm is expected to cost."""

    def route(self, query: Query) -> Ask:
        """The first model of a path."""
        usd = self._models.usd_list(query)
        arm = self._next(query, usd, 0, 0)
        self._paths.keep(query.id, ([arm], usd))
        return Ask(arm, last=self._config.layers == 1)

    def proceed(self, query: Query, answers: Sequence[Answer]) -> Ask | Accept:
        """The next model, or the answer of the last one."""
        layer = len(answers)
        known = self._paths.get(query.id)
        if layer >= self._config.layers or known is None or len(known[0]) > layer:
            return Accept(layer - 1)
        path, usd = known
        arm = self._next(query, usd, layer, path[-1])
        path.append(arm)
        return Ask(arm, behind=layer - 1)

    def feedback(self, outcome: Outcome) -> None:
        """Learn from a path whose answer was good."""
        self._latencies.learn(outcome)
        known = self._paths.take(outcome.query.id)
        if known is None or outcome.quality < self._config.gate:
            return
        config, (path, usd) = self._config, known
        dearest = max(usd) * config.layers
        cost = outcome.list_usd / dearest if dearest > 0.0 else 0.0
        deposit = config.rho * outcome.quality / (1.0 + cost)
        deposits = [deposit * self._unsure] * (1 if config.shared else len(self._models.domains))
        deposits[0 if config.shared else outcome.query.domain] += deposit * self._surer
        before = 0
        for layer, arm in enumerate(path):
            self.trails[layer][before].walk(arm, 1.0 - config.rho, deposits, config.alpha)
            before = arm

    def _next(self, query: Query, usd: list[float], layer: int, before: int) -> int:
        """A model of a layer, drawn."""
        models, config = self._models, self._config
        among = models.open()
        if len(among) == 1:
            return among[0]
        weight = [1e-9] * len(among)
        if config.cost:
            _add(weight, config.cost, [usd[arm] for arm in among])
        if config.latency:
            _add(weight, config.latency, self._latencies.of(among, query))
        if config.load:
            loads = [load if load < _OVERRUN else _OVERRUN for load in models.loads(among)]
            weight = [w + config.load * load for w, load in zip(weight, loads, strict=True)]
        trail = self.trails[layer][before].seen(0 if config.shared else query.domain, self._unsure, self._surer)
        least, beta = min(weight), config.beta
        ends = list(accumulate([trail[arm] * (least / w) ** beta for w, arm in zip(weight, among, strict=True)]))
        return among[min(bisect_right(ends, self._rng.random() * ends[-1]), len(among) - 1)]


class Trail:
    """Pheromone from one model to those of the next layer.

    Of a belief that is as strong in all types but one, the mean over types is the sum over all of them and a term for that one.

    Parameters
    ----------
    kinds, arms : int
        Types of requests, and models of the next layer.
    """

    def __init__(self, kinds: int, arms: int) -> None:
        self.tau = [[1.0] * arms for _ in range(kinds)]
        """By type and model."""
        self._scent = [[1.0] * arms for _ in range(kinds)]
        """The same to the power of alpha."""
        self._sums = [float(kinds)] * arms

    def walk(self, arm: int, stays: float, deposits: list[float], alpha: float) -> None:
        """Some of it evaporates on the way to a model, and each type gets a deposit."""
        total = 0.0
        for tau, scent, deposit in zip(self.tau, self._scent, deposits, strict=True):
            value = tau[arm] = min(max(stays * tau[arm] + deposit, _LEAST), _MOST)
            scent[arm] = value if alpha == 1.0 else value**alpha
            total += scent[arm]
        self._sums[arm] = total

    def seen(self, kind: int, unsure: float, surer: float) -> list[float]:
        """Mean of ``tau^alpha`` over types for each model, by a belief that is stronger in one type."""
        return [unsure * total + surer * own for total, own in zip(self._sums, self._scent[kind], strict=True)]


def _add(weight: list[float], share: float, values: list[float]) -> None:
    """Add values over the largest of them."""
    largest = max(values)
    if largest > 0.0:
        for i, value in enumerate(values):
            weight[i] += share * value / largest
