"""Checker of routers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from time import perf_counter_ns
from types import MethodType
from typing import Any

import numpy as np

from fleetsim.errors import PolicyError
from fleetsim.routing.api import FleetView, Freshness, Hold, Reject, RequestView, Route, Window
from fleetsim.testing.places import ORIGINS, some_places
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.testing.station import Station
from fleetsim.workload.prefixes import Content
from fleetsim.workload.request import Request

_KNOWN = frozenset(
    {
        "id",
        "arrival_s",
        "prompt_tokens",
        "session",
        "tenant",
        "klass",
        "deadline_s",
        "priority",
        "weight",
        "images",
        "image_tokens",
        "predicted_tokens",
        "attempt",
        "tried",
        "origin",
    }
)
"""What a gateway knows of a request."""
_REQUESTS = 400
_FLEETS = (1, 2, 7, 64)
"""Numbers of replicas that a router must cope with; every third one is 4 and every fourth one 16 times as fast as the others."""
_VIEWS = (
    Freshness(),
    Freshness("sampled", 1.0),
    Freshness("sampled", 0.3, own_counts=False),
    Freshness("delayed", 0.2),
    Freshness("delayed", 0.7, own_counts=False),
)
"""How old what it sees may be."""
_OLD = (2, 64)
"""Numbers of replicas at which views that are not exact are tried."""
_ABSENT = (2, 7)
"""Numbers of replicas of which some come and go."""
_SPEED = 5000.0
"""Prompt tokens per second of the slowest replicas."""
_COSTS = (1, 10, 1000)
"""Numbers of replicas at which its cost is measured."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """One course of events at the gateway: requests, and how long each takes to its first token and to its end."""

    requests: Sequence[Request]
    first_s: Sequence[float]
    end_s: Sequence[float]


def check_router(policy: type | str, config: Config = None) -> Report:
    """Try a router on fleets of 1 to 1,000 replicas of different speed, with views of every freshness.

    Checked are: every decision names a replica (alone or in a `Route`) that is there, or is a `Reject` with a reason; somebody is
    served; the
    same seed gives the same decisions, whatever other instances and random generators do; decisions do not depend on the true
    output length, and the request's hidden parts are not touched; neither request nor view is changed. A `WindowRouter` is asked
    about windows as the gateway collects them: what it says of them is valid, each request gets one answer, and explaining a window
    changes nothing.

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
    checked = Policy("routers", policy, config, ["route"])
    for replicas in _FLEETS:
        trial = _trial(replicas, seed=replicas)
        expected = _decisions(checked, trial, replicas, watch=True)
        served = [decision for decision in expected if not isinstance(decision, Reject | Hold)]
        if not served:
            checked.fail(f"rejects all of {_REQUESTS} requests on {replicas} replicas: {expected[0]}")
        if _decisions(checked, trial, replicas) != expected:
            checked.fail(f"decides otherwise with the same seed on {replicas} replicas: draw only from the given `rng`")
        for freshness in _VIEWS[1:] if replicas in _OLD else ():
            old = _decisions(checked, trial, replicas, freshness=freshness, watch=True)
            if _decisions(checked, trial, replicas, freshness=freshness) != old:
                checked.fail(f"decides otherwise with the same seed in a view that is {freshness.kind}")
        if _decisions(checked, _trial(replicas, seed=replicas, outputs=1), replicas) != expected:
            checked.fail("decisions depend on the true output length, which no gateway knows")
        if _decisions(checked, trial, replicas, sealed=True) != expected:
            checked.fail("decides otherwise when the request's hidden parts are sealed")
        if _decisions(checked, trial, replicas, beside=True) != expected:
            checked.fail("instances are not independent: another one in the same process changes the decisions")
    for freshness in _VIEWS:
        _avoids_absent(checked, freshness)
    checked.passed("replicas that are not there are avoided, and used again when they are back")
    checked.passed("every decision names a replica or gives a reason; one replica is enough")
    checked.passed("the same seed gives the same decisions, with other instances beside it or without")
    checked.passed("views that are exact, sampled or delayed will do, with own counts as old or not")
    checked.passed("the true output length is neither read nor used")
    checked.passed("requests and view are left as they are")
    costs = {_plural(n): _router_cost(checked, n) for n in _COSTS}
    return checked.report(costs)


def _avoids_absent(checked: Policy, freshness: Freshness) -> None:
    """Let replicas come and go: requests must go to those that are there, and in the end to each one that came back."""
    for replicas in _ABSENT:
        trial = _trial(replicas, seed=replicas)
        course = _Course(replicas, trial, freshness)
        view = course.view
        for position in range(0, replicas, 2):  # some are away before the router is made
            view.set_present(position, False)
        router = checked.create(np.random.default_rng(5), view)
        for number, (at_s, requests) in enumerate(_windows(checked, router, course, trial)):
            course.begin(at_s)
            away = _away(replicas, number)
            for position in range(replicas):
                view.set_present(position, position not in away)
            for request, decision in zip(
                requests, _route(checked, router, requests, RequestView, replicas), strict=True
            ):
                if isinstance(decision, Reject | Hold):
                    continue
                position = decision.replica if isinstance(decision, Route) else decision
                if position in away:
                    checked.fail(
                        f"sends request {request.id} to replica {position} of {_plural(replicas)}, which is not there: "
                        f"`view.members` are {view.members}, and `view.present` says so too"
                    )
                course.send(request, position)


def _away(replicas: int, number: int) -> set[int]:
    """Who is not there at a decision: every other one, nobody for a while, then all but one, each in turn."""
    phase = number // 40
    if phase % 3 == 0:
        return set(range(phase % 2, replicas, 2)) if replicas > 1 else set()
    if phase % 3 == 1:
        return set()
    return set(range(replicas)) - {number % replicas}


def _plural(replicas: int) -> str:
    return f"{replicas} replica{'s' if replicas > 1 else ''}"


def _trial(replicas: int, seed: int, outputs: int = 0) -> _Trial:
    """Requests in bursts and lulls, a third in sessions, two thirds with a known prefix; `outputs` changes output lengths only."""
    rng = np.random.default_rng([seed, 17])
    arrival_s = np.cumsum(rng.standard_gamma(0.3, _REQUESTS)) / replicas
    prompts = np.maximum(rng.lognormal(5.5, 1.5, _REQUESTS), 1).astype(int).tolist()
    sessions = np.where(rng.random(_REQUESTS) < 0.3, rng.integers(0, 40, _REQUESTS), -1).tolist()
    first_s = rng.lognormal(-3.0, 1.0, _REQUESTS)
    end_s = first_s + rng.lognormal(0.0, 1.0, _REQUESTS)
    tokens = np.random.default_rng([seed, outputs]).integers(1, 2000, _REQUESTS).tolist()
    tenants, classes = ("a", "b", None), ("chat", None)
    contents = [Content(((group, 150 + 200 * group),)) for group in range(8)]
    requests = [
        Request(
            i,
            time_s,
            prompts[i],
            tokens[i],
            contents[i * i % 8] if i % 3 else None,
            sessions[i],
            0,
            classes[i % 2],
            tenants[i % 3],
            None,
        )
        for i, time_s in enumerate(arrival_s.tolist())
    ]
    for request in requests:
        request.origin = ORIGINS[request.id * request.id % 4] if replicas > 2 else None
    return _Trial(requests, first_s.tolist(), end_s.tolist())


class _SealedView:
    """Passes for a `RequestView` and gives away only what a gateway knows."""

    def __init__(self, request: Request) -> None:
        for name in _KNOWN:
            object.__setattr__(self, name, getattr(RequestView(request), name))
        object.__setattr__(self, "prefix", RequestView(request).prefix)
        object.__setattr__(self, "reusable", RequestView(request).reusable)

    def kept(self) -> _SealedView:
        """Itself: it never shows another request."""
        return self

    def __getattr__(self, name: str) -> Any:
        raise PolicyError(
            f"reads `{name}` of the request; a gateway knows {', '.join(sorted(_KNOWN))}, prefix, reusable"
        )


class _Course:
    """A view of replicas that do what a trial says, kept up to date as the gateway does."""

    def __init__(self, replicas: int, trial: _Trial, freshness: Freshness) -> None:
        self.now_s = 0.0
        self._trial = trial
        speeds = [_SPEED * (16 if i % 4 == 3 else 4 if i % 3 == 2 else 1) for i in range(replicas)]
        self._stations = [Station(speed, 16 if i % 2 else 32, self._time_s) for i, speed in enumerate(speeds)]
        names = [f"pool-{i % 2}" for i in range(replicas)]
        self.view = FleetView(names, (), self._stations, freshness, self._time_s)
        self.view.places = some_places(replicas)
        self._due: list[tuple[float, int, int, bool]] = []

    def begin(self, now_s: float) -> None:
        """Let everything happen until now."""
        due, requests = self._due, self._trial.requests
        while due and due[0][0] <= now_s:
            time_s, number, position, last = heappop(due)
            self.now_s = time_s
            request = requests[number]
            if last:
                self.view.ended(position, request.prompt_tokens)
                self._stations[position].ended(request)
            else:
                self.view.started(position, request.prompt_tokens, time_s - request.arrival_s)
                self._stations[position].started(request)
                heappush(due, (time_s + self._trial.end_s[number], number, position, True))
        self.now_s = self.view.now_s = now_s

    def send(self, request: Request, position: int) -> None:
        """Let a replica have a request."""
        self.view.sent(position, request.prompt_tokens, request)
        self._stations[position].sent(request)
        heappush(self._due, (self.now_s + self._trial.first_s[request.id], request.id, position, False))

    def _time_s(self) -> float:
        return self.now_s


def _decisions(
    checked: Policy,
    trial: _Trial,
    replicas: int,
    watch: bool = False,
    beside: bool = False,
    sealed: bool = False,
    freshness: Freshness = _VIEWS[0],
) -> list[int | Route | Reject | Hold]:
    """A new router's decisions."""
    course = _Course(replicas, trial, freshness)
    view = course.view
    router = checked.create(np.random.default_rng(5), view)
    # compiled policies take the very class only
    view_of: Any = _SealedView if sealed and isinstance(router.route, MethodType) else RequestView
    other = None
    if beside:
        other = checked.create(np.random.default_rng(6), _Course(replicas, trial, freshness).view)
    decisions: list[int | Route | Reject | Hold] = []
    for at_s, requests in _windows(checked, router, course, trial):
        course.begin(at_s)
        if other is not None:
            _route(checked, other, requests, RequestView, replicas)
        before = ([_facts(request) for request in requests], _facts(view)) if watch else None
        answers = _route(checked, router, requests, view_of, replicas)
        if before is not None and before != ([_facts(request) for request in requests], _facts(view)):
            checked.fail("changes the request or the view; a router only answers")
        decisions += answers
        for request, decision in zip(requests, answers, strict=True):
            if not isinstance(decision, Reject | Hold):
                course.send(request, decision.replica if isinstance(decision, Route) else decision)
    return decisions


def _windows(checked: Policy, router: Any, course: _Course, trial: _Trial) -> Iterator[tuple[float, Sequence[Request]]]:
    """When the router decides about which requests: each as it comes, or as many as it wants to wait for."""
    if not hasattr(router, "route_window"):
        yield from ((request.arrival_s, (request,)) for request in trial.requests)
        return
    number, requests = 0, trial.requests
    while number < len(requests):
        first_s = requests[number].arrival_s
        course.begin(first_s)
        with checked.complaining("`window` failed"):
            window: Any = router.window()
        if not (
            isinstance(window, Window)
            and type(window.max_requests) is int
            and window.max_requests >= 1
            and 0.0 <= window.max_wait_s < inf
        ):
            checked.fail(f"`window` answered {window!r}: expected a `Window` of at least one request and a finite time")
        end = number + 1
        while (
            end < len(requests)
            and end - number < window.max_requests
            and requests[end].arrival_s <= first_s + window.max_wait_s
        ):
            end += 1
        full = end - number == window.max_requests
        yield requests[end - 1].arrival_s if full else first_s + window.max_wait_s, requests[number:end]
        number = end


def _route(
    checked: Policy, router: Any, requests: Sequence[Request], view_of: Any, replicas: int
) -> Sequence[int | Route | Reject | Hold]:
    """A router's answers about requests that it decides about together, checked."""
    checked.decisions += len(requests)
    views = [view_of(request) for request in requests]
    first = f"request {requests[0].id} on {_plural(replicas)}"
    if not hasattr(router, "route_window"):
        with checked.complaining(f"`route` failed for {first}"):
            return [_checked(checked, "route", router.route(views[0]), requests[0], replicas)]
    if hasattr(router, "explain_window"):
        with checked.complaining(f"`explain_window` failed for a window from {first}"):
            told: Any = router.explain_window(views)
        if len(told) != len(views):
            checked.fail(f"`explain_window` explains {len(told)} of {len(views)} decisions")
    with checked.complaining(f"`route_window` failed for a window from {first}"):
        answers: Any = router.route_window(views)
    if not isinstance(answers, Sequence) or len(answers) != len(requests):
        checked.fail(f"`route_window` answered {answers!r} about {len(requests)} requests: expected as many answers")
    return [
        _checked(checked, "route_window", answer, request, replicas)
        for request, answer in zip(requests, answers, strict=True)
    ]


def _checked(
    checked: Policy, method: str, decision: Any, request: Request, replicas: int
) -> int | Route | Reject | Hold:
    if isinstance(decision, Hold):
        if not getattr(checked.policy, "holds", False) or method == "route_window":
            checked.fail("holds a request: its class must say `holds = True` and decide about one at a time")
        return decision
    if isinstance(decision, Reject):
        if not (isinstance(decision.reason, str) and decision.reason):
            checked.fail(f"rejects request {request.id} without a reason")
        return decision
    replica: Any = decision.replica if isinstance(decision, Route) else decision
    if type(replica) is not int:
        checked.fail(
            f"`{method}` answered {decision!r}: expected the number of a replica (int), a `Route` or a `Reject`"
        )
    if not 0 <= replica < replicas:
        checked.fail(f"`{method}` answered {decision}: there are replicas 0 to {replicas - 1}")
    if isinstance(decision, Route):
        if min(decision.hedge_after_s, decision.retry_after_s) <= 0.0 or decision.prepare_s < 0.0:
            checked.fail(f"`{method}` answered {decision}: times must not lie in the past")
        if not (decision.prompt_tokens < 0 or 1 <= decision.prompt_tokens <= request.prompt_tokens):
            checked.fail(f"`{method}` answered {decision} for a prompt of {request.prompt_tokens} tokens")
    return decision  # type: ignore[no-any-return]


def _facts(thing: Request | FleetView) -> list[Any]:
    """Copies of all that a policy could change."""
    names: tuple[str, ...] = ("outstanding", "decoding", "pending_tokens", "pools", "now_s", "decode_weight_tokens")
    if isinstance(thing, Request):
        known = sorted(_KNOWN - {"tried"})
        names = (*known, "output_tokens", "model", "status", "replica", "reason", "queued_s", "turn")
    values = [getattr(thing, name) for name in names]
    facts = [repr(list(value)) if isinstance(value, list) else repr(value) for value in values]
    if isinstance(thing, FleetView):
        facts += [repr(index and index.values) for index in (thing.by_outstanding, thing.by_work)]
        board = thing.board
        if board is not None and board.scanned:  # else looking at a replica brings its figures up to date
            facts += [
                repr(figures) for figures in (board.waiting, board.running, board.pending_tokens, board.pending_s)
            ]
    return facts


def _router_cost(checked: Policy, replicas: int) -> float:
    """Time per decision [µs], the gateway's own counting left out."""
    trial = _trial(replicas, seed=99)
    course = _Course(replicas, trial, _VIEWS[0])
    router = checked.create(np.random.default_rng(5), course.view)
    spent_ns = 0
    for at_s, requests in _windows(checked, router, course, trial):
        course.begin(at_s)
        asked = [RequestView(request) for request in requests]
        start_ns = perf_counter_ns()
        decisions = router.route_window(asked) if hasattr(router, "route_window") else [router.route(asked[0])]
        spent_ns += perf_counter_ns() - start_ns
        for request, decision in zip(requests, decisions, strict=True):
            if not isinstance(decision, Reject | Hold):
                course.send(request, decision.replica if isinstance(decision, Route) else decision)
    checked.decisions += _REQUESTS
    return spent_ns / _REQUESTS / 1e3
