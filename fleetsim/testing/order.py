"""Checker of orders of the queue."""

from __future__ import annotations

from time import perf_counter_ns

from fleetsim.engine.api import Scheduler
from fleetsim.engine.batch import Batch
from fleetsim.engine.orders.order import Order, Outlook
from fleetsim.plugins import load
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.testing.scheduler import _SCENES, _STEPS_DIFFER, _TOLERANCE, _compare, _model, _no_peeking, _serve
from fleetsim.workload.request import Request

_SCHEDULERS = {"vllm-v1": {"max_batched_tokens": 256, "max_seqs": 12}, "vllm-v0": {"max_seqs": 12}, "sglang": {}}
_WAITING = 1000


def check_order(policy: type | str, config: Config = None) -> Report:
    """Try an order of the queue on generated scenes, behind schedulers of three kinds, with all laws on.

    Checked are: every request ends; the engine's leaps give what step-by-step simulation gives to 1e-9 (so that what it remembers
    does not depend on how often it is asked, and `until_change` is right); the same scene gives the same results, also where
    several replicas have an object each; until the first answer ends, nothing depends on the true output lengths; every request
    that joined is waiting, once, until it is taken out.

    Parameters
    ----------
    policy : type or str
        The class, its registered name or ``module:Class``.
    config : BaseModel or mapping, optional
        Its parameters.

    Returns
    -------
    Report
        With the time per request that joins and leaves a queue of 1,000.

    Raises
    ------
    PolicyError
        If a check fails; the message says which and how.
    """
    checked = Policy("orders", policy, config, ["key"])
    spent_us = _keeps_its_requests(checked)
    for name, options in _SCHEDULERS.items():

        def scheduler(name: str = name, options: dict[str, int] = options) -> Scheduler:
            planner = load("schedulers", name)
            made: Scheduler = planner(planner.Config(**options))
            return made

        for scene in _SCENES:
            leaps = _serve(checked, scheduler(), scene, order=checked.create)
            steps = _serve(checked, scheduler(), scene, step_by_step=True, order=checked.create)
            _compare(checked, leaps, steps, f"with {name}, {_STEPS_DIFFER}", _TOLERANCE)
            if name != "vllm-v1":
                continue
            twin = _serve(checked, scheduler(), scene, replicas=2, order=checked.create)
            for half in (twin[: scene.requests], twin[scene.requests :]):
                _compare(checked, leaps, half, "does otherwise the second time, or shares what it remembers", 0.0)
        _no_peeking(checked, scheduler, checked.create)
    checked.passed("every request ends, and all laws hold, with each scheduler")
    checked.passed("leaps give what step-by-step simulation gives")
    checked.passed("the same scene gives the same results, also with two replicas")
    checked.passed("order does not depend on true output lengths")
    return checked.report({f"queue of {_WAITING}": spent_us})


def _keeps_its_requests(checked: Policy) -> float:
    """Let requests join and leave; returns the time per request [µs]."""
    requests = _SCENES[0].arrivals()
    waiting = [_renumbered(requests[i % len(requests)], i) for i in range(_WAITING)]
    order: Order = checked.create(Outlook(_model()))
    with checked.complaining("cannot keep a queue"):
        Batch(1000, 16, False, order=order)
        start_ns = perf_counter_ns()
        for request in waiting:
            order.append(request)
        order.refresh()
        kept = list(order)
        if len(order) != _WAITING or {r.id for r in kept} != set(range(_WAITING)):
            checked.fail(f"of {_WAITING} requests that joined its queue, {len(kept)} can be seen waiting")
        taken = []
        while len(order):
            first = order[0]
            request = order.popleft()
            if request is not first:
                checked.fail(f"request {first.id} was first in the queue, but {request.id} was taken out")
            taken.append(request.id)
        spent_us = (perf_counter_ns() - start_ns) / 1e3 / _WAITING
    if sorted(taken) != list(range(_WAITING)):
        checked.fail("not every request that joined its queue comes out of it once")
    checked.decisions = 2 * _WAITING
    checked.passed("the queue keeps every request, and gives the first one")
    return spent_us


def _renumbered(request: Request, number: int) -> Request:
    twin = request.copy()
    twin.id = number
    twin.queued_s = twin.ready_s = request.arrival_s
    return twin
