"""Which LLM answers, by carbon: the least that keeps accuracy and latency, or the best for a budget of carbon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, Self

from numpy.random import Generator
from pydantic import Field, model_validator

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, RequestView

_Share = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]
_Joules = Annotated[float, Field(ge=0, json_schema_extra={"unit": "J"})]
_KWH_J = 3.6e6


class GarConfig(PolicyConfig):
    """Parameters of gar-pd."""

    variant: Literal["fixed", "epsilon", "primal-dual", "target"] = "primal-dual"
    """`fixed`: the least carbon among those that should keep floor and objective; `epsilon`: the same with a lower floor;
    `primal-dual`: all three weighed by prices that follow what was observed; `target`: the most accurate for the budget."""
    quality: dict[str, dict[str, _Share]] = Field(default_factory=dict)
    """Accuracy of each pool's LLM on each class of requests (its data set), as measured before; what is not named has 1."""
    floors: dict[str, _Share] = Field(default_factory=dict)
    """Lowest accuracy of each class that will do."""
    epsilon: _Share = 0.01
    """By how much `epsilon` lowers the floors."""
    noise: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.03
    """Standard deviation of the prediction of a request's accuracy around the table; an assumption."""
    prompt_j: dict[str, _Joules] = Field(default_factory=dict)
    """Energy of a prompt token by pool, with its share of the server [J]; what is not named takes 1 J."""
    output_j: dict[str, _Joules] = Field(default_factory=dict)
    """The same of an output token."""
    output_tokens: float = Field(default=200.0, gt=0, json_schema_extra={"unit": "tokens"})
    """Expected length of answers where the gateway has no predictor."""
    ttft_slo_s: float = Field(default=1.0, gt=0, json_schema_extra={"unit": "s"})
    """Objective of the time to first token, for 95 % of the requests: the latency that a gateway sees."""
    tail_ratio: float = Field(default=1.5, ge=1, json_schema_extra={"unit": "ratio"})
    """95th percentile over the predicted time to first token; an assumption."""
    budget_g: float | None = Field(default=None, gt=0, json_schema_extra={"unit": "g"})
    """Carbon per request that may be spent on average; `target` needs it."""
    window_s: float = Field(default=60.0, gt=0, json_schema_extra={"unit": "s"})
    """Time after which prices are adapted."""
    eta: float = Field(default=0.05, gt=0, le=10, json_schema_extra={"unit": "ratio"})
    """Step by which they are."""

    @model_validator(mode="after")
    def _spends(self) -> Self:
        if self.variant == "target" and self.budget_g is None:
            raise ValueError("variant: target needs budget_g, the carbon that may be spent per request")
        return self


class GarPd:
    """The LLM with the least carbon that keeps an accuracy floor and a latency objective, with prices that learn.

    Rule: for each pool m, accuracy q is predicted by a table plus noise, the 95th percentile l of the time to first token by the
    work before its least loaded replica, and carbon g by the energy of prompt and expected answer, the site's PUE and the carbon
    intensity of its grid now, relative to the largest of the pools. The request goes to the pool with the smallest ``g (1 + mu_c)
    + 100 mu_q max(floor - q, 0) + mu_l max(l - SLO, 0) / SLO``. After every window of `window_s` the prices follow: ``mu_c += eta
    (spent - allowed) / mean allowed``, where the budget allows `budget_g` for each request of the window, ``mu_q += eta (floor -
    observed accuracy)`` of each class, ``mu_l += eta (share of late requests - 0.05)``, none below 0. mu_q begins with 0.1: ten
    points below the floor weigh as much as the largest LLM's carbon. What was spent is read from the meters of the replicas, idle
    time left out. Observed accuracies are outcomes drawn with the chances of the table: the simulation knows no answers. `fixed`
    and `epsilon` take the smallest g of the pools with q above the floor and l within the objective (if there are none, the most
    accurate in time) and learn nothing. `target` takes the smallest ``mu_c g - q + mu_l max(l - SLO, 0) / SLO``: the most
    accurate LLMs that the budget pays for.

    The published form is not known to us in detail. Ours weighs all pools and not only those that keep floor and objective, among
    which a price of carbon would change nothing; and `target` looks for accuracy, since the least carbon never spends a budget.

    What is charged: nothing for the decision. What it knows: tables measured before, its own counts, the replicas' telemetry and
    meters.

    References
    ----------
    "GAR: Carbon-Aware Routing for LLM Inference" (GAR-PD, primal and dual with a rolling budget), arXiv:2605.11603.
    """

    Config: ClassVar = GarConfig

    def __init__(self, config: GarConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        self._rng = rng
        fleet.watch_load()
        self._answers = fleet.watch_answers()
        self.pools = tuple(dict.fromkeys(fleet.pools))
        self._members = [[i for i, name in enumerate(fleet.pools) if name == pool] for pool in self.pools]
        self._meter: Callable[[], float] | None = None if fleet.places is None else fleet.places.spent_g
        self.mu_c = 1.0 if config.variant == "target" else 0.0
        """Price of carbon."""
        self.mu_l = 1.0
        """Price of lateness."""
        self.mu_q = dict.fromkeys(config.floors, 0.1)
        """Price of a point of accuracy below the floor, by class."""
        self._windows = self._all_requests = 0
        self._window_ends_s = config.window_s
        self._right: dict[str, list[int]] = {}
        self._requests = 0
        self._estimated_g = 0.0
        self._metered_g = 0.0

    def route(self, request: RequestView) -> int:
        """Choose a replica."""
        fleet, config = self._fleet, self._config
        now_s = fleet.now_s
        if now_s >= self._window_ends_s:
            self._learn(now_s)
        places = [self._least_loaded(members) for members in self._members]
        there = [m for m, place in enumerate(places) if fleet.present[place]] or list(range(len(places)))
        noise = self._rng.standard_normal(len(places)) * config.noise
        q = [
            min(max(self._quality(pool, request.klass) + float(noise[m]), 0.0), 1.0)
            for m, pool in enumerate(self.pools)
        ]
        g = [self._grams(m, places[m], request, now_s) for m in range(len(places))]
        late_s = [config.tail_ratio * fleet.ttft_s(place, request.prompt_tokens, 0) for place in places]
        m = self._choose(there, q, g, late_s, request.klass)
        chance = self._quality(self.pools[m], request.klass)
        outcome = self._right.setdefault(request.klass or "", [0, 0])
        outcome[0] += float(self._rng.random()) < chance
        outcome[1] += 1
        self._requests += 1
        self._estimated_g += g[m]
        return places[m]

    def _choose(self, there: list[int], q: list[float], g: list[float], late_s: list[float], klass: str | None) -> int:
        config = self._config
        floor, slo_s = config.floors.get(klass or "", 0.0), config.ttft_slo_s
        largest = max(g) or 1.0
        if config.variant in ("fixed", "epsilon"):
            lowest = floor - (config.epsilon if config.variant == "epsilon" else 0.0)
            good = [m for m in there if q[m] >= lowest and late_s[m] <= slo_s]
            if good:
                return min(good, key=lambda m: (g[m], m))
            in_time = [m for m in there if late_s[m] <= slo_s] or [min(there, key=lambda m: (late_s[m], m))]
            return max(in_time, key=lambda m: (q[m], -m))
        mu_q = self.mu_q.get(klass or "", 0.0)

        def score(m: int) -> tuple[float, int]:
            late = self.mu_l * max(late_s[m] - slo_s, 0.0) / slo_s
            if config.variant == "target":
                return self.mu_c * g[m] / largest - q[m] + late, m
            return g[m] / largest * (1.0 + self.mu_c) + mu_q * 100.0 * max(floor - q[m], 0.0) + late, m

        return min(there, key=score)

    def _learn(self, now_s: float) -> None:
        """Adapt the prices to what the window has shown."""
        config = self._config
        spent_g = self._estimated_g
        if self._meter is not None:
            metered_g = self._meter()
            spent_g, self._metered_g = metered_g - self._metered_g, metered_g
        self._windows += 1
        self._all_requests += self._requests
        if config.budget_g is not None and self._all_requests:
            # over the mean of all windows and not over this one's own: a ratio of two counts that vary would be biased
            usual_g = config.budget_g * self._all_requests / self._windows
            self.mu_c = max(self.mu_c + config.eta * (spent_g - config.budget_g * self._requests) / usual_g, 0.0)
        for klass, (right, asked) in self._right.items():
            if klass in self.mu_q:
                shortfall = config.floors[klass] - right / asked
                self.mu_q[klass] = max(self.mu_q[klass] + config.eta * shortfall, 0.0)
        if self._answers:
            late = sum(seconds > config.ttft_slo_s for _, _, seconds in self._answers) / len(self._answers)
            self.mu_l = max(self.mu_l + config.eta * (late - 0.05), 0.0)
            self._answers.clear()
        self._right.clear()
        self._requests, self._estimated_g = 0, 0.0
        self._window_ends_s = now_s - now_s % config.window_s + config.window_s

    def _quality(self, pool: str, klass: str | None) -> float:
        return self._config.quality.get(pool, {}).get(klass or "", 1.0)

    def _grams(self, m: int, place: int, request: RequestView, now_s: float) -> float:
        """What a request will emit at a pool; joules, where nobody states a carbon intensity."""
        config, pool, places = self._config, self.pools[m], self._fleet.places
        tokens = request.predicted_tokens if request.predicted_tokens >= 0 else config.output_tokens
        energy_j = config.prompt_j.get(pool, 1.0) * request.prompt_tokens + config.output_j.get(pool, 1.0) * tokens
        return energy_j if places is None else energy_j / _KWH_J * float(places.carbon(places.place_of[place], now_s))

    def _least_loaded(self, members: list[int]) -> int:
        outstanding = self._fleet.outstanding
        return min(members, key=outstanding.__getitem__)
