"""What a model router takes per request: the calls of the checker's course, written down and made again with nothing between."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter, process_time
from typing import Any

import numpy as np

from fleetsim.model_routing.api import Answer, ModelsView, Outcome, Query
from fleetsim.model_routing.single import Single, SingleConfig
from fleetsim.quality.api import Truth
from fleetsim.testing.budget import Behind
from fleetsim.testing.model_router import Course
from fleetsim.testing.report import Policy

_DELAY = 3
"""Requests that come before a router hears how good an answer was."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What a policy was asked and told, and how long that took it."""

    calls: int
    """Times that it was asked or told something."""
    wall_s: float
    cpu_s: float
    """Processor time."""


def pace(kind: str, name: str, arms: int, requests: int) -> Pace:
    """Measure a model router, or a budget controller behind `single`: decisions and feedback of requests answered at once.

    Parameters
    ----------
    kind : str
        ``model_routers`` or ``budgets``.
    name : str
        The policy.
    arms : int
        Models to choose among.
    requests : int
        How many.
    """
    inner = (Single, SingleConfig())
    checked = Behind(*inner, name, None) if kind == "budgets" else Policy(kind, name, None, ["route"])
    course = _Written(checked, arms, _DELAY, requests=requests)
    course.steps()
    return course.again()


class _Written(Course):
    """A course that remembers what the policy was asked and told, and when."""

    def __init__(self, checked: Policy, arms: int, delay: int, requests: int) -> None:
        super().__init__(checked, arms, delay, requests=requests)
        self._script: list[tuple[float, str, tuple[Any, ...]]] = []

    def again(self) -> Pace:
        """Let a new policy be asked and told the same."""
        models, policy = self._made(np.random.default_rng(5))
        script: list[tuple[float, Callable[..., Any], tuple[Any, ...]]] = [
            (now_s, _offering(models, policy) if method == "offer" else getattr(policy, method), args)
            for now_s, method, args in self._script
        ]
        gc.disable()
        started, cpu_started = perf_counter(), process_time()
        for now_s, call, args in script:
            models.now_s = now_s
            call(*args)
        cpu_s, wall_s = process_time() - cpu_started, perf_counter() - started
        gc.enable()
        return Pace(len(script), wall_s, cpu_s)

    def _say(self, method: str, truth: Truth, query: Query, *more: Any) -> Any:
        knows = method == "route" and getattr(self.policy, "knows_answers", False)
        args = (truth.quality,) if knows else tuple(_as_they_are(answers) for answers in more)
        self._script.append((self._now_s, "route_knowing" if knows else method, (query, *args)))
        return super()._say(method, truth, query, *more)

    def _offer(self, offered: bool) -> None:
        self._script.append((self._now_s, "offer", (offered,)))
        super()._offer(offered)

    def _forget(self, query: Query) -> None:
        if hasattr(self.policy, "forget"):
            self._script.append((self._now_s, "forget", (query,)))
        super()._forget(query)

    def _tell(self, outcome: Outcome) -> None:
        if hasattr(self.policy, "feedback"):
            self._script.append((self._now_s, "feedback", (outcome,)))
        super()._tell(outcome)


def _as_they_are(answers: list[Answer]) -> list[Answer]:
    """Answers as they are now: more come, and more votes."""
    return [replace(answer, votes=list(answer.votes)) for answer in answers]


def _offering(models: ModelsView, policy: Any) -> Callable[[bool], None]:
    def offer(offered: bool) -> None:
        models.offered[0] = offered
        models.epoch += 1
        told = getattr(policy, "joined" if offered else "left", None)
        if told is not None:
            told(0)

    return offer
