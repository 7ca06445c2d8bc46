"""Signals, decisions made of them, and the model that each names."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from numpy.random import Generator
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fleetsim.model_routing.api import Ask, ModelsView, Query, best, number_of
from fleetsim.plugins import PolicyConfig
from fleetsim.units import SecondsOrZero

_Ratio = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]


class Signal(BaseModel):
    """Something that is found out about a request, rightly or not."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """By which decisions call it."""
    what: Literal["domain", "difficulty", "class", "tenant", "prompt"]
    """What it looks at."""
    equals: str = ""
    """Domain, class or tenant that makes it true."""
    above: float = 0.0
    """Difficulty, or prompt tokens, above which it is true."""
    true_positive: _Ratio = 1.0
    """How often it is found where it is true."""
    false_positive: _Ratio = 0.0
    """How often it is found where it is not."""
    latency: SecondsOrZero = 0.01
    """What finding it out takes; all are found out at the same time."""


class Rule(BaseModel):
    """A decision: the model, where all of these signals are as they should be."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    when: tuple[str, ...] = ()
    """Names of signals that must be found; with `not ` before it, one that must not. Several rules for a model mean or."""
    model: str
    """Arm."""
    priority: int = 0
    """Of rules that hold the one with the highest priority counts, of equal ones the first."""


class SemanticRouterConfig(PolicyConfig):
    """Parameters of the semantic router."""

    signals: tuple[Signal, ...] = ()
    """What is found out."""
    rules: tuple[Rule, ...] = ()
    """What follows from it."""
    default: str = ""
    """Arm where no rule holds. Empty: the one with the highest mean quality."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        names = {signal.name for signal in self.signals}
        for rule in self.rules:
            for word in rule.when:
                if word.removeprefix("not ") not in names:
                    raise ValueError(f'a rule for {rule.model} names the signal "{word}", which is not there')
        return self


class SemanticRouter:
    """vLLM Semantic Router: signals about a request, Boolean decisions made of them, the model of the first that holds.

    Rule: every signal is drawn with its rates of true and false positives from what is true of the request as the predictor sees
    it; of the rules whose signals are all as they should be, the one with the highest priority names the arm, else the default.

    Charged: the slowest signal that any rule needs, since they are found out at the same time. Plug-ins (cache, compression) are
    policies of their own here.

    References
    ----------
    vLLM Semantic Router (github.com/vllm-project/semantic-router).
    """

    Config: ClassVar = SemanticRouterConfig

    def __init__(self, config: SemanticRouterConfig, rng: Generator, models: ModelsView) -> None:
        self._models, self._rng = models, rng
        needed = {word.removeprefix("not ") for rule in config.rules for word in rule.when}
        self._signals = [signal for signal in config.signals if signal.name in needed]
        self.decision_s = max((signal.latency for signal in self._signals), default=0.0)
        rules = sorted(config.rules, key=lambda rule: -rule.priority)
        self._rules = [(rule.when, number_of(models, rule.model, "semantic-router")) for rule in rules]
        top = int(models.mean_quality.argmax())
        self._default = number_of(models, config.default, "semantic-router") if config.default else top

    def route(self, query: Query) -> Ask:
        """The arm of the first rule that holds."""
        found = set()
        for signal, draw in zip(self._signals, self._rng.random(len(self._signals)).tolist(), strict=True):
            if draw < (signal.true_positive if self._holds(signal, query) else signal.false_positive):
                found.add(signal.name)
        among = self._models.open()
        for when, arm in self._rules:
            if arm in among and all(_agrees(word, found) for word in when):
                return Ask(arm)
        if self._default in among or not among:
            return Ask(self._default)
        return Ask(best(self._models.mean_quality, among))

    def _holds(self, signal: Signal, query: Query) -> bool:
        if signal.what == "difficulty":
            return query.difficulty > signal.above
        if signal.what == "prompt":
            return query.prompt_tokens > signal.above
        if signal.what == "domain":
            return self._models.domains[query.domain] == signal.equals
        return (query.klass if signal.what == "class" else query.tenant) == signal.equals


def _agrees(word: str, found: set[str]) -> bool:
    """Whether a signal is as a rule wants it."""
    return word.removeprefix("not ") not in found if word.startswith("not ") else word in found
