"""Checker of routers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from time import perf_counter_ns
from types import MethodType
from typing import Any

import numpy as np

from fleetsim.errors import PolicyError
from fleetsim.routing.api import FleetView, Reject, RequestView, Router
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.workload.prefixes import Content
from fleetsim.workload.request import Request

_KNOWN = frozenset({"id", "arrival_s", "prompt_tokens", "session", "tenant", "klass"})
"""What a gateway knows of a request."""
_REQUESTS = 400
_FLEETS = (1, 2, 7, 60)
"""Numbers of replicas that a router must cope with."""
_COSTS = (1, 10, 1000)
"""Numbers of replicas at which its cost is measured."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """One course of events at the gateway: requests, and how long each takes to its first token and to its end."""

    requests: Sequence[Request]
    first_s: Sequence[float]
    end_s: Sequence[float]


def check_router(policy: type | str, config: Config = None) -> Report:
    """Try a router on fleets of 1 to 1,000 replicas.

    Checked are: every decision names a replica or is a `Reject` with a reason; somebody is served; the same seed gives the same
    decisions, whatever other instances and random generators do; decisions do not depend on the true output length, and the
    request's hidden parts are not touched; neither request nor view is changed.

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
        served = [decision for decision in expected if not isinstance(decision, Reject)]
        if not served:
            checked.fail(f"rejects all of {_REQUESTS} requests on {replicas} replicas: {expected[0]}")
        if _decisions(checked, trial, replicas) != expected:
            checked.fail(f"decides otherwise with the same seed on {replicas} replicas: draw only from the given `rng`")
        if _decisions(checked, _trial(replicas, seed=replicas, outputs=1), replicas) != expected:
            checked.fail("decisions depend on the true output length, which no gateway knows")
        if _decisions(checked, trial, replicas, sealed=True) != expected:
            checked.fail("decides otherwise when the request's hidden parts are sealed")
        if _decisions(checked, trial, replicas, beside=True) != expected:
            checked.fail("instances are not independent: another one in the same process changes the decisions")
    checked.passed("every decision names a replica or gives a reason; one replica is enough")
    checked.passed("the same seed gives the same decisions, with other instances beside it or without")
    checked.passed("the true output length is neither read nor used")
    checked.passed("requests and view are left as they are")
    costs = {_plural(n): _router_cost(checked, n) for n in _COSTS}
    return checked.report(costs)


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
    return _Trial(requests, first_s.tolist(), end_s.tolist())


class _SealedView:
    """Passes for a `RequestView` and gives away only what a gateway knows."""

    def __init__(self, request: Request) -> None:
        for name in _KNOWN:
            object.__setattr__(self, name, getattr(request, name))
        object.__setattr__(self, "prefix", RequestView(request).prefix)

    def __getattr__(self, name: str) -> Any:
        raise PolicyError(f"reads `{name}` of the request; a gateway knows {', '.join(sorted(_KNOWN))}, prefix")


def _decisions(
    checked: Policy, trial: _Trial, replicas: int, watch: bool = False, beside: bool = False, sealed: bool = False
) -> list[int | Reject]:
    """A new router's decisions, with the view kept up to date as the gateway does."""
    view = FleetView([f"pool-{i % 2}" for i in range(replicas)])
    router = checked.create(np.random.default_rng(5), view)
    # compiled policies take the very class only
    view_of: Any = _SealedView if sealed and isinstance(router.route, MethodType) else RequestView
    other = None
    if beside:
        other_view = FleetView(["elsewhere"] * replicas)
        other = checked.create(np.random.default_rng(6), other_view)
    decisions: list[int | Reject] = []
    due: list[tuple[float, int, int, bool]] = []
    for request in trial.requests:
        number = request.id
        _advance(view, due, request.arrival_s, trial)
        view.now_s = request.arrival_s
        if other is not None:
            _route(checked, other, request, RequestView, replicas)
        before = (_facts(request), _facts(view)) if watch else None
        decision = _route(checked, router, request, view_of, replicas)
        if before is not None and before != (_facts(request), _facts(view)):
            checked.fail("changes the request or the view; a router only answers")
        decisions.append(decision)
        if not isinstance(decision, Reject):
            view.sent(decision, request.prompt_tokens)
            heappush(due, (request.arrival_s + trial.first_s[number], number, decision, False))
    return decisions


def _advance(view: FleetView, due: list[tuple[float, int, int, bool]], now_s: float, trial: _Trial) -> None:
    """Tell the view what happened until now."""
    while due and due[0][0] <= now_s:
        time_s, number, position, last = heappop(due)
        if last:
            view.ended(position, trial.requests[number].prompt_tokens)
        else:
            view.started(position, trial.requests[number].prompt_tokens)
            heappush(due, (time_s + trial.end_s[number], number, position, True))


def _route(checked: Policy, router: Router, request: Request, view_of: Any, replicas: int) -> int | Reject:
    checked.decisions += 1
    with checked.complaining(f"`route` failed for request {request.id} on {_plural(replicas)}"):
        decision: Any = router.route(view_of(request))
    if isinstance(decision, Reject):
        if not (isinstance(decision.reason, str) and decision.reason):
            checked.fail(f"rejects request {request.id} without a reason")
    elif type(decision) is not int:
        checked.fail(f"`route` answered {decision!r}: expected the number of a replica (int) or a `Reject`")
    elif not 0 <= decision < replicas:
        checked.fail(f"`route` answered {decision}: there are replicas 0 to {replicas - 1}")
    return decision  # type: ignore[no-any-return]


def _facts(thing: Request | FleetView) -> list[Any]:
    """Copies of all that a policy could change."""
    names = (
        ("outstanding", "decoding", "pending_tokens", "pools", "now_s", "decode_weight_tokens")
        if isinstance(thing, FleetView)
        else (*_KNOWN, "output_tokens", "model", "status", "replica", "reason", "queued_s", "turn")
    )
    values = [getattr(thing, name) for name in names]
    facts = [repr(list(value)) if isinstance(value, list) else repr(value) for value in values]
    if isinstance(thing, FleetView):
        facts += [repr(index and index.values) for index in (thing.by_outstanding, thing.by_work)]
    return facts


def _router_cost(checked: Policy, replicas: int) -> float:
    """Time per decision [µs], the gateway's own counting left out."""
    trial = _trial(replicas, seed=99)
    view = FleetView(["main"] * replicas)
    router = checked.create(np.random.default_rng(5), view)
    due: list[tuple[float, int, int, bool]] = []
    spent_ns = 0
    for request in trial.requests:
        _advance(view, due, request.arrival_s, trial)
        view.now_s = request.arrival_s
        asked = RequestView(request)
        start_ns = perf_counter_ns()
        decision = router.route(asked)
        spent_ns += perf_counter_ns() - start_ns
        if not isinstance(decision, Reject):
            view.sent(decision, request.prompt_tokens)
            heappush(due, (request.arrival_s + trial.first_s[request.id], request.id, decision, False))
    checked.decisions += _REQUESTS
    return spent_ns / _REQUESTS / 1e3
