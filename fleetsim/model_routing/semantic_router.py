"""Signals that may err, Boolean decisions about them, and a selection among the models of the decision that holds."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from numpy.random import Generator
from pydantic import Field, model_validator

from fleetsim.errors import Finding, ScenarioError, nearest
from fleetsim.model_routing.api import Ask, ModelsView, Query, best, number_of
from fleetsim.model_routing.pairs import domain_number
from fleetsim.model_routing.tags import Tags
from fleetsim.plugins import PolicyConfig
from fleetsim.quality.draws import uniform

_Ratio = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]
_Seconds = Annotated[float, Field(ge=0, json_schema_extra={"unit": "s"})]
_Usd = Annotated[float, Field(ge=0, json_schema_extra={"unit": "USD"})]


class Signal(PolicyConfig):
    """Something that a classifier or a rule says of a request: yes or no."""

    of: Literal["domain", "difficulty", "prompt_tokens", "turn", "image_tokens", "class", "tenant"]
    """What it looks at: domain and difficulty as the scenario's predictor sees them."""
    values: tuple[str, ...] = ()
    """Yes, if it is one of these (domain, class, tenant)."""
    above: float | None = None
    """Yes, if it is above this (numbers)."""
    true_positives: _Ratio = 1.0
    """How often it says yes where that is right."""
    false_positives: _Ratio = 0.0
    """How often it says yes where that is wrong."""
    latency: _Seconds = 0.001
    """Time that it takes, beside the others [s]."""
    usd: _Usd = 0.0
    """List price of asking for it [USD]."""

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        named = self.of in ("domain", "class", "tenant")
        if named != bool(self.values) or named == (self.above is not None):
            wanted = "values" if named else "above"
            raise ValueError(f"a signal of {self.of} says `{wanted}`, and nothing else")
        return self


class Condition(PolicyConfig):
    """Holds if all of `all`, one of `any` where that says something, and none of `none` hold: signals, or conditions before it."""

    all: tuple[str, ...] = ()
    """Every one of them."""
    any: tuple[str, ...] = ()
    """At least one of them."""
    none: tuple[str, ...] = ()
    """Not one of them."""


class Rule(Condition):
    """A decision: where its condition holds, a selection among its models."""

    priority: int = 0
    """Of decisions that hold, the one with the highest priority counts, of equal ones the first."""
    models: tuple[str, ...] = ()
    """Arms to choose among. Empty: all."""
    by: Literal["quality", "chance", "price", "energy", "latency"] = "chance"
    """Which of them: the highest mean quality or predicted chance, the lowest expected price, energy by the profile, or latency."""


class SemanticRouterConfig(PolicyConfig):
    """Parameters of the semantic router."""

    signals: dict[str, Signal] = Field(default_factory=dict)
    """What is asked about each request, by name."""
    conditions: dict[str, Condition] = Field(default_factory=dict)
    """Conditions that others may name: any Boolean formula can be built of them."""
    decisions: dict[str, Rule] = Field(default_factory=dict)
    """What follows, by name."""
    otherwise: Rule = Rule(by="price")
    """Where no decision holds."""


class SemanticRouter:
    """vLLM's Semantic Router: signals of stated reliability, Boolean decisions with priorities, then a selection among models.

    Rule: each signal says yes or no, rightly as often as its confusion matrix says (one draw for a request and a signal, whoever
    asks); of the decisions whose condition holds, the one with the highest priority selects among its models. A wrong signal is a
    wrong route. What is right is what the scenario's predictor sees: with `quality.features` without errors, the truth.

    Charged: the longest latency of the signals that any decision needs, since they are computed at the same time, and the list
    price of each of these. Published: feedback detector 98.8 % right in less than 1 ms, fact check 12 ms, hallucination gate 76 to
    162 ms, the whole router 50 ms after optimisation.

    References
    ----------
    github.com/vllm-project/semantic-router, its vision paper (arXiv:2603.21354) for the latencies.
    """

    Config: ClassVar = SemanticRouterConfig
    tags: ClassVar[Tags] = Tags(
        ("before",), ("query", "profile", "system", "user"), ("supervised", "rule"), "query", ("single",)
    )

    def __init__(self, config: SemanticRouterConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._config = models, config
        self._conditions = _in_order(config)
        self._needed = self._signals_needed()
        self._keys = {name: int(rng.integers(1 << 62)) for name in config.signals}
        self._domains = {
            name: {domain_number(models, value, "semantic-router") for value in signal.values}
            for name, signal in config.signals.items()
            if signal.of == "domain"
        }
        rules = [*config.decisions.values()]
        self._rules = sorted(rules, key=lambda rule: -rule.priority)
        self._arms = {
            rule: [number_of(models, name, "semantic-router") for name in rule.models] or list(range(models.count))
            for rule in (*rules, config.otherwise)
        }
        needed = [config.signals[name] for name in self._needed]
        self.decision_s = max([signal.latency for signal in needed], default=0.0)
        self.decision_usd = sum(signal.usd for signal in needed)
        price = models.usd_per_prompt_token + models.usd_per_output_token
        self._price = price

    def route(self, query: Query) -> Ask:
        """The selection of the decision that holds."""
        holds = {name: self._says(name, query) for name in self._needed}
        for name, condition in self._conditions.items():
            holds[name] = _true(condition, holds)
        rule = next((rule for rule in self._rules if _true(rule, holds)), self._config.otherwise)
        among = self._models.open()
        arms = [arm for arm in self._arms[rule] if arm in among] or among
        if len(arms) == 1:
            return Ask(arms[0])
        return Ask(best(self._scores(rule, query), arms))

    def _scores(self, rule: Rule, query: Query) -> Any:
        models = self._models
        if rule.by == "latency":
            return [-min(models.latency_s(arm, query), 1e9) for arm in range(models.count)]
        if rule.by in ("quality", "chance"):
            return models.mean_quality if rule.by == "quality" else query.chance
        cost = models.usd_list(query) if rule.by == "price" else models.joules(query).tolist()
        largest = max(cost) or 1.0
        return [-value / largest for value in cost]

    def _says(self, name: str, query: Query) -> bool:
        """Yes or no, right or wrong."""
        signal = self._config.signals[name]
        if signal.of == "domain":
            right = query.domain in self._domains[name]
        elif signal.above is None:
            right = (query.klass if signal.of == "class" else query.tenant) in signal.values
        else:
            right = getattr(query, signal.of) > signal.above
        yes = signal.true_positives if right else signal.false_positives
        if yes in (0.0, 1.0):
            return yes == 1.0
        return uniform(self._keys[name], query.id) < yes

    def _signals_needed(self) -> list[str]:
        """Signals that any decision depends on, in the order of the scenario."""
        config = self._config
        wanted = {name for rule in config.decisions.values() for name in _named(rule)}
        for name, condition in reversed(self._conditions.items()):
            if name in wanted:
                wanted.update(_named(condition))
        return [name for name in config.signals if name in wanted]


def _named(condition: Condition) -> tuple[str, ...]:
    return (*condition.all, *condition.any, *condition.none)


def _true(condition: Condition, holds: dict[str, bool]) -> bool:
    if condition.any and not any(holds[name] for name in condition.any):
        return False
    return all(holds[name] for name in condition.all) and not any(holds[name] for name in condition.none)


def _in_order(config: SemanticRouterConfig) -> dict[str, Condition]:
    """The conditions, each of which names signals and conditions before it only.

    Raises
    ------
    ScenarioError
        If a name is unknown here, or stands for two things.
    """
    known = dict.fromkeys(config.signals)
    path = "gateway.model_router"
    for name, condition in config.conditions.items():
        if name in known:
            raise ScenarioError(Finding(f'"{name}" is a signal already', path=f"{path}.conditions.{name}"))
        _check(_named(condition), known, f"{path}.conditions.{name}")
        known[name] = None
    for name, rule in config.decisions.items():
        _check(_named(rule), known, f"{path}.decisions.{name}")
    return dict(config.conditions)


def _check(names: tuple[str, ...], known: dict[str, None], path: str) -> None:
    for name in names:
        if name not in known:
            hint = nearest(name, known, "signals and conditions before it")
            raise ScenarioError(Finding(f'no signal or condition is called "{name}"', path=path, hint=hint))
