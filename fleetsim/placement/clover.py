"""A mix of LLMs of different quality that follows the carbon intensity, as Clover's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from math import exp, floor, inf
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.errors import PolicyError
from fleetsim.placement.api import Action, Decision, Engine, Load, Place, RequestView, Send
from fleetsim.plugins import PolicyConfig
from fleetsim.units import Seconds

_ROUNDS = 30
"""Rounds in which the batch that a rate keeps running is found; the fixed point is near after a few."""
Mix = tuple[int, ...]
"""Replicas of each LLM."""
_Share = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]
_Joules = Annotated[float, Field(ge=0, json_schema_extra={"unit": "J"})]


class CloverConfig(PolicyConfig):
    """Parameters of Clover; what is not marked as published is an assumption."""

    accuracy: dict[str, _Share] = Field(default_factory=dict)
    """Accuracy of each LLM (a name among `llm` and `models` of the pools), as measured before; what is not named has 1."""
    prompt_j: dict[str, _Joules] = Field(default_factory=dict)
    """Energy of a prompt token by LLM, with its share of the server, as measured before [J]; what is not named takes 1 J."""
    output_j: dict[str, _Joules] = Field(default_factory=dict)
    """The same of an output token."""
    output_tokens: float = Field(default=200.0, gt=0, json_schema_extra={"unit": "tokens"})
    """Expected length of answers where the gateway has no predictor."""
    weight: _Share = 0.5
    """What a percent of carbon weighs against a percent of accuracy, of 1 together: the published lambda, whose value is not known
    to us."""
    reference_g_per_kwh: float | None = Field(default=None, gt=0, json_schema_extra={"unit": "g/kWh"})
    """Carbon intensity at which what the most accurate LLM alone would emit counts as 100 percent; default: the first one seen."""
    ttft: Seconds | None = None
    """Objective of the 95th percentile of the time to first token; by default only what replicas can carry counts."""
    tpot: Seconds | None = None
    """The same of the time per output token."""
    tail_ratio: float = Field(default=1.5, ge=1, json_schema_extra={"unit": "ratio"})
    """95th percentile over what is predicted."""
    carbon_change: float = Field(default=0.05, ge=0, le=1, json_schema_extra={"unit": "ratio"})
    """The mix is looked for anew when the carbon intensity is off by this share of what it was the last time …"""
    load_change: float = Field(default=0.2, gt=0, json_schema_extra={"unit": "ratio"})
    """… or the rate of requests by this one."""
    check: Seconds = 60.0
    """Time between two looks at both; the rate is that of the time since the look before."""
    temperature: float = Field(default=10.0, gt=0, json_schema_extra={"unit": "percent"})
    """At which the annealing begins: a mix that is worse by so much is taken in 37 % of the cases."""
    cooling: Annotated[float, Field(gt=0, lt=1)] = 0.97
    """What is left of it after each step."""
    steps: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 200
    """Of one annealing."""
    at_once: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.25
    """Largest share of the replicas, one at least, that change their LLM at the same time."""


class Clover:
    """Clover: how many replicas hold which of several LLMs follows the carbon intensity and what accuracy costs.

    Rule: a mix says how many replicas hold each LLM; requests are divided in proportion to what the replicas of each can carry. Its
    worth is ``weight dC + (1 - weight) dA``: dC is the carbon saved by a request, in percent of what the most accurate LLM alone
    emits at the reference intensity, and dA the change of mean accuracy against that LLM, in percent. A mix whose predicted
    latencies break an objective, or that cannot carry the rate, is worse than any that does not, the more so the further it is off.
    Whenever carbon intensity or rate have changed enough at a `check`, simulated annealing looks for a better mix from the one that
    is wanted: a step turns one replica to another LLM. The best mix met is taken; replicas change to it, those with the fewest
    requests first, a few at a time, each when those that run there have ended. A request that names no LLM goes to the one that has
    had the least of its share, on the replica with the fewest requests; one that does name an LLM gets that, and the mix keeps a
    replica of it.

    Predicted are, from each replica's own step times: the batch that its share of the rate keeps running, the time per output token
    of that batch over what prompts leave of the time, and that of a prompt in the queue of others.

    Charged: swaps, as the pool's `swap` says; the search costs nothing. What it knows: tables measured before, the published carbon
    intensity of its grid, its own counts.

    Published is a system that also divides GPUs into partitions of different size and measures each mix while it serves. Slices of
    chips are not modelled, and mixes are predicted; replicas stand for partitions.

    References
    ----------
    B. Li et al., "Clover: Toward Sustainable AI with Carbon-Aware Machine Learning Inference Service", SC 2023, arXiv:2304.09781.
    """

    Config: ClassVar = CloverConfig
    chooses_model = True

    def __init__(self, config: CloverConfig, rng: Generator, places: Sequence[Place]) -> None:
        self._config = config
        self._rng = rng
        self.places = places
        self.period_s = config.check
        self.models = list(dict.fromkeys(name for place in places for name in place.engines))
        for what, table in (
            ("accuracy", config.accuracy),
            ("prompt_j", config.prompt_j),
            ("output_j", config.output_j),
        ):
            if unknown := sorted(set(table) - set(self.models)):
                raise PolicyError(f'clover: {what} names "{unknown[0]}"; replicas hold {", ".join(self.models)}')
        if any(list(place.engines) != list(places[0].engines) for place in places):
            raise PolicyError("clover: all pools with `models` must hold the same LLMs, named in the same order")
        self._accuracy = [config.accuracy.get(name, 1.0) for name in self.models]
        self._best = max(range(len(self.models)), key=self._accuracy.__getitem__)
        self._engines = [places[0].engines[name] for name in self.models]
        self.mix: Mix = tuple(len(places) if m == self._best else 0 for m in range(len(self.models)))
        """Replicas that are to hold each LLM."""
        self._reference_g = config.reference_g_per_kwh
        self._carbon_g = self._rate = 0.0
        """Carbon intensity and rate for which the mix was found; 0 before the first time."""
        self._look_s = config.check
        """When both are looked at next."""
        self._looked_s = 0.0
        self._came = 0
        """Requests since the last look."""
        self._prompt_tokens = self._output_tokens = 0.0
        """Means of all requests so far."""
        self._requests = 0
        self._named: dict[str, None] = {}
        """LLMs that requests asked for by name."""
        self._waiting: deque[RequestView] = deque()
        self._given = [0.0] * len(self.models)
        """Requests that each LLM has had over its share, as of the clock of a fair queue …"""
        self._clock = 0.0
        """… that this is."""
        self._shares = self._weights(self.mix)

    def initial(self) -> Sequence[str]:
        """The most accurate LLM, everywhere."""
        return [self.models[self._best]] * len(self.places)

    def arrived(self, request: RequestView, now_s: float) -> None:  # noqa: ARG002
        """Note a request."""
        self._waiting.append(request)
        if request.model is not None and request.model not in self._named:
            self._named[request.model] = None
            self._look_s = 0.0
        predicted = request.predicted_tokens
        tokens = predicted if predicted >= 0 else self._config.output_tokens
        self._requests += 1
        self._came += 1
        self._prompt_tokens += (request.prompt_tokens - self._prompt_tokens) / self._requests
        self._output_tokens += (max(tokens, 1.0) - self._output_tokens) / self._requests

    def left(self, request: int) -> None:
        """Forget a request that does not wait any more."""
        if any(waiting.id == request for waiting in self._waiting):
            self._waiting = deque(waiting for waiting in self._waiting if waiting.id != request)

    def decide(self, now_s: float) -> Decision:
        """Look for a better mix if it is time, let replicas change to the one wanted, and send who waits."""
        if now_s >= self._look_s:
            self._look(now_s)
        changes = list(self._changes())
        leaving = {change.replica for change in changes}
        actions: list[Action] = [*changes]
        loads = [len(place.sent) for place in self.places]
        kept: deque[RequestView] = deque()
        for request in self._waiting:
            number = self._place_for(request, loads, leaving)
            if number < 0:
                kept.append(request)
                continue
            loads[number] += 1
            actions.append(Send(request.id, number))
        self._waiting = kept
        return Decision(actions)

    # --- who goes where --------------------------------------------------------------------------------------------------

    def _place_for(self, request: RequestView, loads: Sequence[int], leaving: set[int]) -> int:
        """Replica for a request; -1 where none can take it now."""
        here: dict[str, list[int]] = {}
        for number, place in enumerate(self.places):
            if place.open is not None and number not in leaving and request.model in (None, place.open):
                here.setdefault(place.open, []).append(number)
        if not here:
            return -1
        model = min(here, key=lambda name: (max(self._given[self.models.index(name)], self._clock), name))
        m = self.models.index(model)
        if request.model is None:
            self._clock = max(self._given[m], self._clock)
            self._given[m] = self._clock + 1.0 / max(self._shares[m], 1e-9)
        return min(here[model], key=loads.__getitem__)

    def _changes(self) -> Iterator[Load]:
        """Loads that bring the replicas nearer to the mix, a few at a time."""
        lasts = [place.last for place in self.places]
        lacking = [self.mix[m] - lasts.count(name) for m, name in enumerate(self.models)]
        most = max(floor(self._config.at_once * len(self.places)), 1)
        under_way = sum(place.here and place.loads is not None for place in self.places)
        ready = [i for i, place in enumerate(self.places) if place.open is not None]
        for number in sorted(ready, key=lambda i: (len(self.places[i].sent), i)):
            if under_way >= most:
                return
            m = self.models.index(lasts[number])
            wanted = max(range(len(lacking)), key=lambda w: (lacking[w], -w))
            if lacking[m] >= 0 or lacking[wanted] <= 0:
                continue
            lacking[m] += 1
            lacking[wanted] -= 1
            under_way += 1
            yield Load(number, self.models[wanted])

    # --- which mix -------------------------------------------------------------------------------------------------------

    def _look(self, now_s: float) -> None:
        """See whether carbon intensity or rate have changed, and find a mix for what they are now."""
        config = self._config
        carbon_g = sum([place.carbon() for place in self.places]) / len(self.places)
        elapsed_s = now_s - self._looked_s
        rate = self._came / elapsed_s if elapsed_s >= config.check else self._rate
        if elapsed_s >= config.check:
            self._looked_s, self._came = now_s, 0
        self._look_s = (floor(now_s / config.check) + 1) * config.check
        if self._reference_g is None:
            self._reference_g = carbon_g or None
        missing = [name for name in self._named if not self.mix[self.models.index(name)]]
        moved = abs(carbon_g - self._carbon_g) > config.carbon_change * self._carbon_g
        busier = abs(rate - self._rate) > config.load_change * self._rate
        if not (moved or busier or missing) or not self._requests:
            return
        if len(self._named) > len(self.places):
            raise PolicyError(f"clover: {len(self.places)} replicas cannot hold the LLMs that requests ask for by name")
        self._carbon_g, self._rate = carbon_g, rate
        self.mix = self._annealed(self._with_named(self.mix))
        self._shares = self._weights(self.mix)
        self._given = [self._clock] * len(self.models)

    def _with_named(self, mix: Mix) -> Mix:
        """A mix that has at least a replica of each LLM that requests name."""
        counts = list(mix)
        for name in self._named:
            m = self.models.index(name)
            if not counts[m]:
                spare = [count - (self.models[k] in self._named) for k, count in enumerate(counts)]
                counts[max(range(len(counts)), key=spare.__getitem__)] -= 1
                counts[m] += 1
        return tuple(counts)

    def _annealed(self, mix: Mix) -> Mix:
        """The best mix that simulated annealing meets on its way from one."""
        config, rng = self._config, self._rng
        if len(self.models) < 2:
            return mix
        worth = self._worth(mix)
        best, best_worth, temperature = mix, worth, config.temperature
        for _ in range(config.steps):
            source, target = (int(k) for k in rng.integers(0, len(self.models), 2))
            chance = float(rng.random())
            temperature *= config.cooling
            kept = 1 if self.models[source] in self._named else 0
            if source == target or mix[source] <= kept:
                continue
            counts = list(mix)
            counts[source] -= 1
            counts[target] += 1
            other = tuple(counts)
            other_worth = self._worth(other)
            if other_worth >= worth or chance < exp((other_worth - worth) / temperature):
                mix, worth = other, other_worth
                if worth > best_worth:
                    best, best_worth = mix, worth
        return best

    def _weights(self, mix: Mix) -> list[float]:
        """Share of the requests for each LLM: in proportion to what its replicas carry."""
        carried = [count * self._carries(engine) for count, engine in zip(mix, self._engines, strict=True)]
        total = sum(carried) or 1.0
        return [each / total for each in carried]

    def _worth(self, mix: Mix) -> float:
        """What a mix is worth [percent], rounded, so that equal ones are; far below 0 where it breaks an objective."""
        config = self._config
        shares = self._weights(mix)
        over = max(self._over(m, mix[m], shares[m]) for m in range(len(mix)) if mix[m])
        if over > 1.0:
            return -1e3 * min(over, 1e6)
        joules = [self._joules(m) for m in range(len(mix))]
        accuracy = sum([s * a for s, a in zip(shares, self._accuracy, strict=True)]) / (
            self._accuracy[self._best] or 1.0
        )
        spent = sum([s * j for s, j in zip(shares, joules, strict=True)]) / (joules[self._best] or 1.0)
        relative = self._carbon_g / self._reference_g if self._reference_g else 1.0
        return round(100.0 * (config.weight * (1.0 - spent * relative) + (1.0 - config.weight) * (accuracy - 1.0)), 9)

    def _joules(self, m: int) -> float:
        """Energy of a mean request with an LLM [J]."""
        config, name = self._config, self.models[m]
        prompt_j, output_j = config.prompt_j.get(name, 1.0), config.output_j.get(name, 1.0)
        return prompt_j * self._prompt_tokens + output_j * self._output_tokens

    def _carries(self, engine: Engine) -> float:
        """Mean requests per second of a replica that is full [1/s]."""
        tokens, context = self._mean()
        batch = max(min(float(engine.seats), engine.capacity_tokens / context), 1.0)
        return 1.0 / (tokens * engine.decode_s(batch, batch * context) / batch + engine.prefill_s(self._prompt_tokens))

    def _mean(self) -> tuple[float, float]:
        """Answer of a mean request, and its context in the middle of it [tokens]."""
        tokens = self._output_tokens or self._config.output_tokens
        return tokens, max(self._prompt_tokens + 0.5 * tokens, 1.0)

    def _over(self, m: int, replicas: int, share: float) -> float:
        """How far the replicas of an LLM are over what objectives and capacity allow: 1 is just within."""
        config, engine = self._config, self._engines[m]
        rate = self._rate * share / replicas
        over = rate / self._carries(engine)
        if over > 1.0 or not rate:
            return over
        tokens, context = self._mean()
        prompt_s = engine.prefill_s(self._prompt_tokens)
        left = 1.0 - rate * prompt_s
        batch = 1.0
        for _ in range(_ROUNDS):
            batch = max(rate * tokens * engine.decode_s(batch, batch * context) / left, 1.0)
        tpot_s = engine.decode_s(batch, batch * context) / left
        ttft_s = prompt_s / left + tpot_s
        limits = (ttft_s / (config.ttft or inf), tpot_s / (config.tpot or inf))
        return max(over, *[config.tail_ratio * each for each in limits])
