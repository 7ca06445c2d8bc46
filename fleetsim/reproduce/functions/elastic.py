"""Fleets that change their shape: how long until nobody waits any more, and how long that should take."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fleetsim.reproduce.functions import figure_of_run

if TYPE_CHECKING:
    from fleetsim.experiment.run import Result


@figure_of_run
def recovery_s(result: Result, command_s: float) -> float:
    """Time from a command until no request waits for its first step any more; infinite if that never comes [s].

    Parameters
    ----------
    result : Result
        A run.
    command_s : float
        When the change was asked for [s].
    """
    moments, waiting = _waiting(result)
    empty = moments[(moments >= _switch_s(result, command_s)) & (waiting == 0)]
    return float(empty[0] - command_s) if len(empty) else float("inf")


@figure_of_run
def switch_s(result: Result, command_s: float) -> float:
    """Time from a command until the new replica serves [s].

    Parameters
    ----------
    result : Result
        A run.
    command_s : float
        When the change was asked for [s].
    """
    return _switch_s(result, command_s) - command_s


@figure_of_run
def recovery_over_fluid(result: Result, command_s: float, pool: str, rate: float) -> float:
    """Time until nobody waits over what a fluid needs: until the switch, and then the backlog over what is left of the capacity.

    The backlog is what waits at the switch; the capacity is the rate at which a replica of the new shape alone begins requests of
    the same workload when far too many come.

    Parameters
    ----------
    result : Result
        A run.
    command_s : float
        When the change was asked for [s].
    pool : str
        Of the new shape.
    rate : float
        Requests that come per second.
    """
    at_s = _switch_s(result, command_s)
    moments, waiting = _waiting(result)
    backlog = float(waiting[np.searchsorted(moments, at_s, side="right") - 1])
    fluid_s = at_s - command_s + backlog / (_saturated(result, pool, rate) - rate)
    return recovery_s(result, command_s) / fluid_s


@figure_of_run
def late_share(result: Result, command_s: float, ttft_s: float) -> float:
    """Share of the requests that came after a command whose first token took longer than this.

    Parameters
    ----------
    result : Result
        A run.
    command_s : float
        When the change was asked for [s].
    ttft_s : float
        Limit for the time to first token [s].
    """
    table = result.requests()
    arrival, first = (table[name].to_numpy() for name in ("arrival_s", "first_token_s"))
    late = ~(first - arrival <= ttft_s)
    return float(late[arrival >= command_s].mean())


def _switch_s(result: Result, command_s: float) -> float:
    """When the first replica that was asked for after a command serves."""
    events = result.table("events")
    kinds, times = events["kind"].to_pylist(), events["time_s"].to_pylist()
    served: list[float] = [
        t for k, t in zip(kinds, times, strict=True) if k in ("replica_converted", "replica_ready") and t > command_s
    ]
    return min(served)


def _waiting(result: Result) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Moments at which the number of requests without a first step changes, and the number from then on."""
    table = result.requests()
    arrival, begin = (table[name].to_numpy() for name in ("arrival_s", "first_scheduled_s"))
    begin = begin[np.isfinite(begin)]
    moments = np.concatenate([arrival, begin])
    steps = np.concatenate([np.ones(len(arrival)), -np.ones(len(begin))])
    order = np.lexsort((-steps, moments))
    return moments[order], np.cumsum(steps[order])


def _saturated(result: Result, pool: str, rate: float) -> float:
    """Rate at which one replica of a pool begins requests of a run's workload when they come at forty times their rate [1/s]."""
    from fleetsim.experiment.run import run

    scenario = json.loads((result.out / "manifest.json").read_text(encoding="utf-8"))["scenario"]
    own = next(each for each in scenario["pools"] if each["name"] == pool)
    alone = {**own, "replicas": 1, "min_replicas": 1, "max_replicas": None}
    workload = scenario["workload"]
    arrivals = {"process": "poisson", "rate": f"{40.0 * rate} req/s"}
    alone_in_it = {
        **scenario,
        "workload": {**workload, "arrivals": arrivals},
        "pools": [alone],
        "autoscaler": None,
        "conversions": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        begin = np.sort(run(alone_in_it, out=Path(folder) / "alone").requests()["first_scheduled_s"].to_numpy())
    low, high = int(0.2 * len(begin)), int(0.8 * len(begin))
    return float((high - low) / (begin[high] - begin[low]))
