"""Queues in closed form: waits, tails and staffing of stations with c servers.

Continuous batching is none of these stations exactly: its slots share steps. Two readings are offered by what counts as a server
(a replica with the mean time of a request over its slots, or a slot with the whole time); they agree on throughput, not on waits
at few servers. The simulation stays the judge.
"""

from __future__ import annotations

from math import ceil, exp, inf, log, sqrt
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fleetsim.errors import Finding, InputError
from fleetsim.planning.result import Plan
from fleetsim.planning.solve import Effort
from fleetsim.scenario.schema import Block, Count, Number
from fleetsim.units import PerSecond, Seconds, UsdPerHour

MOST = 1_000_000
"""Servers at most."""


def erlang_b(servers: int, load: float) -> float:
    """Share of arrivals that M/M/c/c turns away.

    Parameters
    ----------
    servers : int
        ≥ 0.
    load : float
        Arrival rate times mean service time [servers].
    """
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = load * blocked / (k + load * blocked)
    return blocked


def erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival waits in M/M/c; 1 where the queue grows without end."""
    if load >= servers:
        return 1.0
    blocked = erlang_b(servers, load)
    return blocked / (1.0 - load / servers * (1.0 - blocked))


def mean_wait(servers: int, load: float, service_cv2: float = 1.0, arrival_cv2: float = 1.0) -> float:
    """Mean wait in units of the mean service time: exact for M/M/c and M/G/1.

    M/G/c lies on the line through M/D/c and M/M/c at the squared coefficient of variation of the service times (E. Page, "Queueing
    Theory in OR", 1972), right where few wait too; Lee and Longton's factor, ``(1 + cv2) / 2``, is its limit for high loads.
    M/D/c by Cosmetatos (INFOR 13, 1975), and no more than what is left of a service time where hardly anybody waits allows. Uneven
    arrivals stretch the wait by ``(arrival_cv2 + service_cv2) / (1 + service_cv2)`` (Allen-Cunneen).

    Parameters
    ----------
    servers, load
        As for `erlang_b`.
    service_cv2, arrival_cv2 : float
        Squared coefficients of variation of service times and of gaps between arrivals.
    """
    if load >= servers:
        return inf
    exponential = erlang_c(servers, load) / (servers - load)
    if load <= 0.0:
        return exponential
    between = service_cv2 + (1.0 - service_cv2) * _deterministic_ratio(servers, load / servers)
    return exponential * between * (arrival_cv2 + service_cv2) / (1.0 + service_cv2)


def _deterministic_ratio(servers: int, rho: float) -> float:
    """Mean wait of M/D/c over that of M/M/c: half at high loads, c / (c + 1) where hardly anybody waits."""
    spread = (servers - 1) * (sqrt(4.0 + 5.0 * servers) - 2.0) / (16.0 * servers)
    return min(0.5 * (1.0 + spread * (1.0 - rho) / rho), servers / (servers + 1.0))


def wait_quantile(
    servers: int, load: float, quantile: float = 0.99, service_cv2: float = 1.0, arrival_cv2: float = 1.0
) -> float:
    """Wait that a share 1 - `quantile` of arrivals exceeds, in units of the mean service time.

    Exact for M/M/c, where those who wait wait exponentially; otherwise that wait is stretched by the same factor as the mean
    (Kimura).
    """
    if load >= servers:
        return inf
    waiting = erlang_c(servers, load)
    if waiting <= 1.0 - quantile:
        return 0.0
    return log(waiting / (1.0 - quantile)) / (servers - load) * (arrival_cv2 + service_cv2) / 2.0


def wait_exceeds(servers: int, load: float, wait: float) -> float:
    """Probability that an arrival of M/M/c waits longer than `wait` mean service times."""
    return 1.0 if load >= servers else erlang_c(servers, load) * exp(-(servers - load) * wait)


def square_root_staffing(load: float, beta: float = 1.0) -> int:
    """Servers by the square-root rule: the load and `beta` times its root; the chance to wait hardly depends on the load then."""
    return ceil(load + beta * sqrt(load))


def servers_for(
    load: float,
    wait_limit: float = inf,
    quantile: float = 0.99,
    service_cv2: float = 1.0,
    arrival_cv2: float = 1.0,
    utilisation_limit: float = 1.0,
    mean: bool = False,
) -> int:
    """Fewest servers that keep a limit on the wait and on utilisation.

    Parameters
    ----------
    load
        As for `erlang_b`.
    wait_limit : float
        In units of the mean service time.
    quantile : float
        Of the wait that is limited.
    service_cv2, arrival_cv2
        As for `mean_wait`.
    utilisation_limit : float
        Load over servers at most.
    mean : bool
        Limit the mean wait instead of the quantile.

    Raises
    ------
    InputError
        If a million are not enough.
    """

    def keeps(servers: int) -> bool:
        if load >= servers or load > servers * utilisation_limit:
            return False
        if mean:
            return mean_wait(servers, load, service_cv2, arrival_cv2) <= wait_limit
        return wait_quantile(servers, load, quantile, service_cv2, arrival_cv2) <= wait_limit

    low = max(int(load / utilisation_limit), 0)
    high = max(low, 1)
    while not keeps(high):
        low, high = high, high + max(high // 8, 1)
        if high > MOST:
            raise InputError(Finding(f"a million servers do not keep a wait of {wait_limit:g} service times"))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high


class WaitLimit(Block):
    """How long arrivals may wait for a server."""

    limit: Seconds
    """Wait at most."""
    quantile: Annotated[Number, Field(gt=0, lt=1)] = 0.99
    """Share of arrivals that wait no longer."""
    mean: bool = False
    """Limit the mean wait instead."""


class StatedQueue(Block):
    """Fewest servers of a station in closed form."""

    kind: Literal["queue"]
    rate: PerSecond
    """Arrivals."""
    service_time: Seconds
    """Mean time that a server spends on a request."""
    service_cv2: Annotated[Number, Field(ge=0)] = 1.0
    """Squared coefficient of variation of service times; 1 is exponential, 0 always the same."""
    arrival_cv2: Annotated[Number, Field(ge=0)] = 1.0
    """The same of gaps between arrivals; 1 is Poisson."""
    wait: WaitLimit | None = None
    """Limit on the wait; without one only utilisation limits."""
    utilisation: Annotated[Number, Field(gt=0, le=1)] = 0.85
    """Load over servers at most."""
    slots: Count = 1
    """Servers of one replica."""
    price: UsdPerHour = 0.0
    """Of one replica."""
    beta: Annotated[Number, Field(gt=0)] = 1.0
    """Of the square-root rule that is shown beside."""

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if self.utilisation == 1.0 and self.wait is None:
            raise ValueError("give a limit: wait, or utilisation below 1")
        return self

    def solve(self, effort: Effort | None = None) -> Plan:  # noqa: ARG002 - closed form needs no solver
        """Fewest replicas."""
        load = self.rate * self.service_time
        limit = WaitLimit.model_validate({"limit": "1 s"}) if self.wait is None else self.wait
        bound = inf if self.wait is None else limit.limit / self.service_time
        shape = (self.service_cv2, self.arrival_cv2)
        servers = servers_for(load, bound, limit.quantile, *shape, self.utilisation, limit.mean)
        replicas = ceil(servers / self.slots)
        rows = []
        for rule, count in (
            ("this plan", replicas * self.slots),
            ("stable at all", int(load) + 1),
            ("utilisation alone", ceil(load / self.utilisation)),
            (f"square root, beta {self.beta:g}", square_root_staffing(load, self.beta)),
        ):
            mean_s = mean_wait(count, load, *shape) * self.service_time
            tail_s = wait_quantile(count, load, limit.quantile, *shape) * self.service_time
            row = {"rule": rule, "servers": count, "utilisation": load / count, "waiting": erlang_c(count, load)}
            rows.append({**row, "mean wait s": mean_s, f"wait p{100 * limit.quantile:g} s": tail_s})
        cost = replicas * self.price
        notes = [
            "Erlang's formulas; waits of other than exponential times by Page, Cosmetatos, Kimura and Allen-Cunneen"
        ]
        if self.slots > 1:
            notes.append(
                "slots share steps in a real engine: let the simulation judge (fleetsim plan --verify, find-fleet)"
            )
        figures = {"replicas": float(replicas), "load_servers": load, "cost_usd_per_h": cost}
        return Plan("queue", "optimal", cost, "USD/h", cost, {}, figures, tuple(rows), (), tuple(notes))
