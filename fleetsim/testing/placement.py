"""Checker of placement policies."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from time import perf_counter_ns
from typing import Any

import numpy as np

from fleetsim.placement.api import Decision, Engine, Load, Place, Send, TakeBack
from fleetsim.routing.api import RequestView
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.workload.request import Request

_REQUESTS = 150
_CELLS = ((2, 2), (3, 2), (4, 3), (12, 3))
"""Replicas and LLMs of the cells."""
_LOAD_S = 2.0
_TOKEN_S = 0.01
_LONGEST_S = 100_000.0
"""Time after which a request that was not sent is taken to be forgotten."""
_COSTS = (2, 10, 40)
_AWAY_S, _BACK_S = 9.0, 31.0
"""When the first replica goes, and when it comes back."""


def check_placement(policy: type | str, config: Config = None) -> Report:
    """Try a placement policy on cells of 2 to 12 replicas that may hold 2 or 3 LLMs, one of which is gone for a while.

    Checked are, under bursts of three classes: every action names replicas, LLMs and requests that there are; every request is sent
    in the end, but for those of LLMs that a policy which never loads holds nowhere; the same seed gives the same actions, whatever
    other instances do; actions do not depend on true output lengths before these are seen; requests are not changed.

    Parameters
    ----------
    policy : type or str
        The class, its registered name or ``module:Class``.
    config : BaseModel or mapping, optional
        Its parameters.

    Returns
    -------
    Report
        With the time per decision at 2, 10 and 40 replicas.

    Raises
    ------
    PolicyError
        If a check fails; the message says which and how.
    """
    checked = Policy("placements", policy, config, ["arrived", "left", "decide"])
    for replicas, models in _CELLS:
        expected = _Course(checked, replicas, models).actions()
        if _Course(checked, replicas, models, beside=True).actions() != expected:
            checked.fail(
                "acts otherwise with the same seed: draw only from the given `rng`, keep state in the instance"
            )
        other = _Course(checked, replicas, models, outputs=1).actions()
        first_end_s = min(expected[1], other[1])
        if _until(other[0], first_end_s) != _until(expected[0], first_end_s):
            checked.fail("actions depend on true output lengths, which nobody knows before the end")
    checked.passed("every action names what there is")
    checked.passed("every request is sent in the end")
    checked.passed("the same seed gives the same actions, with other instances beside it or without")
    checked.passed("true output lengths are not used")
    checked.passed("requests are left as they are")
    costs = {}
    for replicas in _COSTS:
        course = _Course(checked, replicas, 2)
        course.actions()
        costs[f"{replicas} replicas"] = course.spent_ns / course.asked / 1e3
    return checked.report(costs)


def _until(actions: list[tuple[float, str]], end_s: float) -> list[tuple[float, str]]:
    return [action for action in actions if action[0] < end_s]


class _Course:
    """Replicas that serve everybody who is sent at once, each for as long as its output says, and the policy before them."""

    def __init__(self, checked: Policy, replicas: int, models: int, outputs: int = 0, beside: bool = False) -> None:
        self._checked = checked
        rng = np.random.default_rng([replicas, models])
        times = np.cumsum(rng.standard_gamma(0.3, _REQUESTS)).tolist()
        prompts = np.maximum(rng.lognormal(5.5, 1.0, _REQUESTS), 1).astype(int).tolist()
        kinds = rng.integers(0, 3, _REQUESTS).tolist()
        asks = rng.integers(0, models, _REQUESTS).tolist()
        tokens = np.random.default_rng([replicas, outputs]).integers(500, 2000, _REQUESTS).tolist()
        names = [f"llm-{number}" for number in range(models)]
        free = bool(getattr(checked.policy, "chooses_model", False))
        """Whether every other request names no LLM."""
        self._requests: dict[int, Request] = {}
        for i, time_s in enumerate(times):
            klass = ("chat", "batch", None)[kinds[i]]
            asked = None if free and i % 2 else names[asks[i]]
            request = Request(i, time_s, prompts[i], tokens[i], None, -1, 0, klass, "ab"[i % 2], asked)
            request.deadline_s = time_s + (2.0, 60.0, inf)[kinds[i]]
            self._requests[i] = request
        self._facts = {i: _facts(request) for i, request in self._requests.items()}
        self._views = {i: RequestView(request) for i, request in self._requests.items()}
        self.places = [Place("cell", {name: _engine() for name in names}, self._answered) for _ in range(replicas)]
        self._policy: Any = checked.create(np.random.default_rng(5), self.places)
        self._other: Any = checked.create(np.random.default_rng(6), self.places) if beside else None
        initial = getattr(self._policy, "initial", None)
        if initial is not None:
            for place, name in zip(self.places, initial(), strict=True):
                place.holds = name
        self._now_s = 0.0
        self._waiting: dict[int, None] = {}
        self._at: dict[int, tuple[int, float]] = {}
        """Where each request was sent, and when."""
        self._due: list[tuple[float, int, str, int]] = []
        """What happens when: time, order, what, request or replica (a heap)."""
        self._serial = 0
        self.spent_ns = self.asked = 0
        self._done: list[tuple[float, str]] = []

    def _answered(self, number: int) -> int:
        return int((self._now_s - self._at[number][1]) / _TOKEN_S)

    def _later(self, after_s: float, what: str, number: int) -> None:
        self._serial += 1
        heappush(self._due, (self._now_s + after_s, self._serial, what, number))

    def actions(self) -> tuple[list[tuple[float, str]], float]:
        """Let everything happen; what was done when, and when the first request ended."""
        for request in self._requests.values():
            self._later(request.arrival_s, "arrival", request.id)
        heappush(self._due, (_AWAY_S, -2, "away", 0))
        heappush(self._due, (_BACK_S, -1, "back", 0))
        first_end_s, period_s = inf, float(getattr(self._policy, "period_s", inf))
        loads = False
        if period_s < inf:
            self._later(period_s, "tick", 0)
        while self._due:
            self._now_s, _, what, number = heappop(self._due)
            if self._now_s > _LONGEST_S:
                break
            if what == "end":
                first_end_s = min(first_end_s, self._end(number))
            elif what == "tick" and (self._waiting or self._at or self._due):
                self._later(period_s, "tick", 0)
            elif what == "arrival":
                self._wait(number)
            else:
                self._move(what, number)
            loads = self._ask() or loads
        held = {place.holds for place in self.places}
        left = [number for number in self._waiting if loads or self._requests[number].model in (None, *held)]
        if left:
            self._checked.fail(f"never sends request {left[0]} on {len(self.places)} replicas")
        for number, request in self._requests.items():
            if self._facts[number] != _facts(request):
                self._checked.fail("changes a request; a policy only answers")
        return self._done, first_end_s

    def _end(self, number: int) -> float:
        """Let a request end, if it still is where it was sent; when it did, if so [s]."""
        if number not in self._at or self._at[number][1] + self._length_s(number) > self._now_s + 1e-9:
            return inf
        self._leave(number)
        return self._now_s

    def _move(self, what: str, number: int) -> None:
        """Let a replica have its LLM, go or come back."""
        place = self.places[number]
        if what == "loaded" and place.here and place.holds is None:
            place.holds, place.loads = place.loads, None
        elif what == "away":
            place.loads, place.holds, place.here = place.last, None, False
            for request in list(place.sent):
                self._leave(request)
                self._wait(request)
        elif what == "back":
            place.holds, place.loads, place.here = place.last, None, True

    def _length_s(self, number: int) -> float:
        return self._requests[number].output_tokens * _TOKEN_S

    def _tell(self, method: str, *args: Any) -> None:
        self._checked.decisions += 1
        with self._checked.complaining(f"`{method}` failed on {len(self.places)} replicas"):
            getattr(self._policy, method)(*args)
            if self._other is not None:
                getattr(self._other, method)(*args)

    def _wait(self, number: int) -> None:
        self._waiting[number] = None
        self._tell("arrived", self._views[number], self._now_s)

    def _leave(self, number: int) -> None:
        place, _ = self._at.pop(number)
        del self.places[place].sent[number]
        self._tell("left", number)
        self._begin(place)

    def _begin(self, number: int) -> None:
        """Begin the load of a replica that is empty."""
        place = self.places[number]
        if place.loads is not None and place.holds is not None and not place.sent:
            place.holds = None
            self._later(_LOAD_S, "loaded", number)

    def _ask(self) -> bool:
        """Ask the policy and do what it says; whether anything is loaded."""
        checked = self._checked
        start_ns = perf_counter_ns()
        with checked.complaining(f"`decide` failed on {len(self.places)} replicas"):
            decision: Any = self._policy.decide(self._now_s)
            if self._other is not None:
                self._other.decide(self._now_s)
        self.spent_ns += perf_counter_ns() - start_ns
        self.asked += 1
        checked.decisions += 1
        if not isinstance(decision, Decision) or not 0.0 <= decision.time_s < inf:
            checked.fail(f"`decide` answered {decision!r}: expected a `Decision`")
        loads = False
        for action in decision.actions:
            self._done.append((self._now_s, repr(action)))
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, TakeBack):
                if action.request in self._at:
                    self._leave(action.request)
                    self._wait(action.request)
                elif action.request not in self._requests:
                    checked.fail(f"{action!r}: there is no such request")
            elif isinstance(action, Load):
                loads = True
                self._load(action)
            else:
                checked.fail(f"`decide` answered {action!r}: expected `Send`, `TakeBack` or `Load`")
        return loads

    def _place(self, action: Send | Load) -> Place:
        if not (type(action.replica) is int and 0 <= action.replica < len(self.places)):
            self._checked.fail(f"{action!r}: there are {len(self.places)} replicas")
        return self.places[action.replica]

    def _send(self, action: Send) -> None:
        place = self._place(action)
        if action.request not in self._requests:
            self._checked.fail(f"{action!r}: there is no such request")
        if action.request not in self._waiting:
            return
        if place.open is None or self._requests[action.request].model not in (None, place.open):
            self._tell("arrived", self._views[action.request], self._now_s)
            return
        del self._waiting[action.request]
        place.sent[action.request] = self._views[action.request]
        self._at[action.request] = action.replica, self._now_s
        self._later(self._length_s(action.request), "end", action.request)

    def _load(self, action: Load) -> None:
        place = self._place(action)
        if action.model not in place.engines:
            self._checked.fail(f"{action!r}: the replica can hold {', '.join(place.engines)}")
        if place.holds is None:
            return
        place.loads = None if place.holds == action.model else action.model
        if place.loads is not None and action.preempt:
            for number in list(place.sent):
                self._leave(number)
                self._wait(number)
        self._begin(action.replica)


def _engine() -> Engine:
    return Engine(
        64,
        100_000,
        lambda: _LOAD_S,
        lambda batch, tokens: _TOKEN_S + 1e-5 * batch + 1e-8 * tokens,
        lambda tokens: 1e-4 * tokens,
    )


def _facts(request: Request) -> list[str]:
    names = ("prompt_tokens", "output_tokens", "model", "klass", "deadline_s", "predicted_tokens", "status", "replica")
    return [repr(getattr(request, name)) for name in names]
