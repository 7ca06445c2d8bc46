"""Checker of admission policies."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from time import perf_counter_ns
from typing import Any

import numpy as np

from fleetsim.routing.api import ADMIT, Defer, FleetView, Freshness, Reject, RequestView
from fleetsim.testing.places import some_places
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.testing.station import Station
from fleetsim.workload.prefixes import Content
from fleetsim.workload.request import Request

_REQUESTS = 300
_FLEETS = (1, 2, 7, 64)
_VIEWS = (Freshness(), Freshness("sampled", 1.0), Freshness("delayed", 0.2, own_counts=False))
_SPEED = 5000.0
_MOST_ANSWERS = 20_000
"""Times that one request may be put off before the checker takes it for good."""
_COSTS = (1, 10, 1000)
_KNOWN = ("arrival_s", "prompt_tokens", "klass", "tenant", "deadline_s", "priority", "weight", "predicted_tokens")

Answer = tuple[int, float, str]
"""Number of a request, when it was answered, and how."""


def check_admission(policy: type | str, config: Config = None) -> Report:
    """Try an admission policy on fleets of 1 to 64 replicas under bursts, with views of several kinds of freshness.

    Checked are: every answer is `ADMIT`, a `Defer` to a time to come, or a `Reject` with a reason; nobody is put off for ever, and
    somebody is let in; the same seed gives the same answers, whatever other instances do; answers do not depend on the true output
    length; neither request nor view is changed.

    Parameters
    ----------
    policy : type or str
        The class, its registered name or ``module:Class``.
    config : BaseModel or mapping, optional
        Its parameters.

    Returns
    -------
    Report
        With the time per decision at 1, 10 and 1,000 replicas.

    Raises
    ------
    PolicyError
        If a check fails; the message says which and how.
    """
    checked = Policy("admissions", policy, config, ["decide"])
    for replicas in _FLEETS:
        for freshness in _VIEWS:
            expected = _Course(checked, replicas, freshness).answers()
            if not any(how == "admit" for _, _, how in expected):
                checked.fail(f"lets none of {_REQUESTS} requests in on {replicas} replicas")
            if _Course(checked, replicas, freshness, beside=True).answers() != expected:
                checked.fail(
                    "answers otherwise with the same seed: draw only from the given `rng`, keep state in the instance"
                )
            if _Course(checked, replicas, freshness, outputs=1).answers() != expected:
                checked.fail("answers depend on the true output length, which no gateway knows")
    checked.passed("every answer is to admit, to put off to a later time, or to reject with a reason")
    checked.passed("somebody is let in, and nobody is put off for ever")
    checked.passed("the same seed gives the same answers, with other instances beside it or without")
    checked.passed("the true output length is not used")
    checked.passed("requests and view are left as they are")
    costs = {}
    for replicas in _COSTS:
        course = _Course(checked, replicas, _VIEWS[0])
        asked = len(course.answers())
        costs[f"{replicas} replica{'s' if replicas > 1 else ''}"] = course.spent_ns / asked / 1e3
    return checked.report(costs)


class _Course:
    """A fleet that serves who is let in, the least loaded replica first, and takes as long as drawn; and the policy before it."""

    def __init__(
        self, checked: Policy, replicas: int, freshness: Freshness, outputs: int = 0, beside: bool = False
    ) -> None:
        self._checked = checked
        self._now_s = 0.0
        rng = np.random.default_rng([replicas, 23])
        arrival_s = np.cumsum(rng.standard_gamma(0.3, _REQUESTS)) / replicas
        prompts = np.maximum(rng.lognormal(5.5, 1.5, _REQUESTS), 1).astype(int).tolist()
        self._first_s = rng.lognormal(-2.0, 1.0, _REQUESTS).tolist()
        self._last_s = rng.lognormal(0.5, 1.0, _REQUESTS).tolist()
        tokens = np.random.default_rng([replicas, outputs]).integers(1, 2000, _REQUESTS).tolist()
        contents = [Content(((group, 150 + 200 * group),)) for group in range(8)]
        self._requests = []
        for i, time_s in enumerate(arrival_s.tolist()):
            content = contents[i % 8] if i % 3 else None
            request = Request(
                i, time_s, prompts[i], tokens[i], content, -1, 0, ("chat", "batch", None)[i % 3], "ab"[i % 2], None
            )
            request.priority = i % 3 - 1
            request.deadline_s = time_s + (0.5, 5.0, inf)[i % 3]
            self._requests.append(request)
        self._stations = [Station(_SPEED * (1 + i % 3), 16, self._time_s) for i in range(replicas)]
        self._view = FleetView(["main"] * replicas, (), self._stations, freshness, self._time_s)
        self._view.index_work(0)
        self._view.places = some_places(replicas)
        self._policy: Any = checked.create(np.random.default_rng(5), self._view)
        self._other: Any = None
        if beside:
            other = FleetView(["main"] * replicas, (), self._stations, freshness, self._time_s)
            other.places = some_places(replicas)
            self._other = checked.create(np.random.default_rng(6), other)
            self._other_view = other
        self._due: list[tuple[float, int, str, int]] = []
        """What happens when: time, request, what, replica (a heap)."""
        self.spent_ns = 0

    def answers(self) -> list[Answer]:
        """Let everything happen."""
        answers: list[Answer] = []
        for request in self._requests:
            heappush(self._due, (request.arrival_s, request.id, "ask", -1))
        asked = [0] * len(self._requests)
        while self._due:
            time_s, number, what, place = heappop(self._due)
            self._now_s = time_s
            request = self._requests[number]
            if what != "ask":
                self._serve(request, what, place)
                continue
            asked[number] += 1
            if asked[number] > _MOST_ANSWERS:
                self._checked.fail(f"puts request {number} off for ever")
            answers.append((number, time_s, self._ask(request)))
        return answers

    def _ask(self, request: Request) -> str:
        checked, view = self._checked, self._view
        view.now_s = self._now_s
        before = _facts(request, view)
        checked.decisions += 1
        start_ns = perf_counter_ns()
        with checked.complaining(f"`decide` failed for request {request.id} on {view.count} replicas"):
            answer: Any = self._policy.decide(RequestView(request))
        self.spent_ns += perf_counter_ns() - start_ns
        if self._other is not None:
            self._other_view.now_s = self._now_s
            self._other.decide(RequestView(request))
        if before != _facts(request, view):
            checked.fail("changes the request or the view; a policy only answers")
        if isinstance(answer, Reject):
            if not (isinstance(answer.reason, str) and answer.reason):
                checked.fail(f"rejects request {request.id} without a reason")
            return f"reject: {answer.reason}"
        if isinstance(answer, Defer):
            if not self._now_s < answer.until_s < inf:
                checked.fail(
                    f"puts request {request.id} off to {answer.until_s} s at {self._now_s} s: not a time to come"
                )
            heappush(self._due, (answer.until_s, request.id, "ask", -1))
            return f"defer to {answer.until_s}"
        if answer is not ADMIT:
            checked.fail(f"`decide` answered {answer!r}: expected ADMIT, a `Defer` or a `Reject`")
        place = min(range(view.count), key=view.outstanding.__getitem__)
        view.sent(place, request.prompt_tokens, request)
        self._stations[place].sent(request)
        heappush(self._due, (self._now_s + self._first_s[request.id], request.id, "start", place))
        return "admit"

    def _serve(self, request: Request, what: str, place: int) -> None:
        if what == "start":
            self._view.started(place, request.prompt_tokens, self._first_s[request.id])
            self._stations[place].started(request)
            heappush(self._due, (self._now_s + self._last_s[request.id], request.id, "stop", place))
            return
        self._view.ended(place, request.prompt_tokens)
        self._stations[place].ended(request)
        for policy in (self._policy, self._other):
            if hasattr(policy, "ended"):
                policy.ended(RequestView(request))

    def _time_s(self) -> float:
        return self._now_s


def _facts(request: Request, view: FleetView) -> list[str]:
    """Copies of what a policy could change."""
    values = [getattr(request, name) for name in (*_KNOWN, "output_tokens", "status", "replica")]
    values += [view.outstanding, view.decoding, view.pending_tokens, view.coming, view.in_flight, view.now_s]
    if view.board is not None:
        values += [view.board.waiting, view.board.running, view.board.pending_s]
    return [repr(value) for value in values]
