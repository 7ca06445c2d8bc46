"""Arms, and the hidden truth about requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fleetsim.scenario.quality import Answering, Quality

MAX_TOKENS = 1_000_000
"""No answer is longer [tokens]."""


@dataclass(frozen=True, slots=True)
class Arm:
    """An LLM at a reasoning budget: what a model router chooses among."""

    number: int
    llm: str
    """Name in the catalogue."""
    known_as: str
    """Name in the profile or the table of outcomes."""
    budget: int
    """Reasoning tokens [tokens]."""
    usd_per_prompt_token: float
    usd_per_output_token: float
    joins_s: float
    leaves_s: float

    @property
    def name(self) -> str:
        """The LLM, and its budget where it has one."""
        return f"{self.llm}@{self.budget}" if self.budget else self.llm

    def list_usd(self, prompt_tokens: float, output_tokens: float) -> float:
        """What a call costs by the list [USD]."""
        return prompt_tokens * self.usd_per_prompt_token + output_tokens * self.usd_per_output_token


def arms_of(config: Quality) -> tuple[Arm, ...]:
    """All arms of a scenario, in its order: models, and the budgets of each."""
    pairs: list[tuple[str, Answering, int]] = [
        (llm, model, budget) for llm, model in config.models.items() for budget in model.budgets
    ]
    return tuple(
        Arm(
            number,
            llm,
            model.known_as or llm,
            budget,
            model.price.input / 1e6,
            model.price.output / 1e6,
            model.joins,
            float("inf") if model.leaves is None else model.leaves,
        )
        for number, (llm, model, budget) in enumerate(pairs)
    )


class Truth:
    """What is true of a request and nobody knows: how hard it is, and which arm would answer it well at which length."""

    __slots__ = ("chance", "difficulty", "domain", "number", "output_tokens", "prompt_tokens", "quality", "seen", "usd")

    def __init__(
        self,
        number: int,
        domain: int,
        difficulty: float,
        chance: Any,
        quality: Any,
        prompt_tokens: int,
        output_tokens: Sequence[int],
        seen: Seen,
        usd: Sequence[float] | None = None,
    ) -> None:
        self.number = number
        self.domain = domain
        self.difficulty = difficulty
        self.chance = chance
        """Chance of each arm to answer well."""
        self.quality = quality
        """How well each arm answers, 0 to 1: the draw itself."""
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        """Length of each arm's answer, reasoning included [tokens]."""
        self.seen = seen
        """What a router sees of all this."""
        self.usd = usd
        """What each arm's answer cost in the table of outcomes; None where the list's prices say it [USD]."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the predictor in front of a router says of a request."""

    domain: int
    difficulty: float
    chance: Any
    """Predicted chance of each arm to answer well."""


class World(Protocol):
    """Says what is true of requests."""

    arms: tuple[Arm, ...]
    domains: tuple[str, ...]
    profile: Any
    """Mean quality of each arm (rows) in each domain (columns), as a benchmark of the models would tell."""
    longer: Any
    """Expected length of each arm's answers over the workload's (verbosity), and its reasoning [tokens]: two rows."""
    energy_per_token: Any
    """What a token takes each arm by the table of outcomes [J]; None where it does not say."""

    def meet(self, number: int, domain: str | None, prompt_tokens: int, output_tokens: int) -> Truth:
        """The truth about a request: by its number, the domain that its label names, and the lengths that the workload drew."""
        ...

    def quality_of(self, truth: Truth, arm: int, sample: int) -> float:
        """How good the so-many-th answer of an arm to a request is: sample 0 is the one of `Truth.quality`."""
        ...
