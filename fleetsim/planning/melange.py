"""Mélange: the cheapest whole numbers of each kind of replica that carry a histogram of request sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from fleetsim.errors import Finding, InputError
from fleetsim.planning.program import Formulation, LinearProgram
from fleetsim.planning.racks import Racks
from fleetsim.planning.result import Plan, solved
from fleetsim.planning.solve import Effort, require_solution, shadow_prices

_USABLE = 1e-6
"""Requests per second below which a kind of replica does not serve a bucket at all."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A kind of replica that can be had."""

    name: str
    price_usd_per_h: float
    """Of a replica: all its accelerators [USD/h]."""
    accelerator: str = ""
    """What limits count; default: its name."""
    accelerators: int = 1
    """Of a replica."""
    power_w: float = 0.0
    """Of a replica at work [W]."""
    pool: Mapping[str, Any] = field(default_factory=dict)
    """Its pool in a scenario, without the number of replicas."""

    @property
    def counted_as(self) -> str:
        """What limits count it as."""
        return self.accelerator or self.name


@dataclass(frozen=True, slots=True)
class MelangeProblem:
    """Sets: buckets of request sizes, kinds of replicas. Requirements: all requests are served, limits are kept."""

    rates_per_s: Sequence[float]
    """Of each bucket [1/s]."""
    offers: Sequence[Offer]
    throughputs_per_s: Sequence[Sequence[float]]
    """Of one replica of each offer, for each bucket, within the SLO [1/s]; 0 where it cannot keep that."""
    labels: Sequence[str] = ()
    """Of buckets."""
    slices: int = 4
    """Equal parts of a bucket that may go to different replicas."""
    utilisation_limit: float = 1.0
    """Share of a replica's throughput that is planned with; what is left absorbs bursts."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Accelerators that can be had, by name; others without limit."""
    power_limit_w: float | None = None
    """Of all replicas together [W]."""
    racks: Racks | None = None
    """In which all replicas stand."""
    carbon_g_per_kwh: float = 0.0
    """Carbon intensity, with the PUE [g/kWh]."""
    carbon_limit_kg_per_h: float | None = None
    """Of all replicas at work [kg/h]."""
    refuted: Sequence[Sequence[int]] = ()
    """Fleets, replicas of each offer, that were found not to do: the plan must have more of something than each of them."""

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises
        ------
        InputError
            With every finding.
        """
        found = []
        for number, rate in enumerate(self.rates_per_s):
            if not (isfinite(rate) and rate >= 0):
                found.append(
                    Finding(f"demand of bucket {self._label(number)} is {rate}: it must not be negative", "rates")
                )
        for offer in self.offers:
            if not (isfinite(offer.price_usd_per_h) and offer.price_usd_per_h > 0):
                hint = "set `price` in the scenario's pool or --price, or leave it out of the candidates"
                found.append(Finding(f"{offer.name} has no price", "candidates", hint=hint))
        for name in self.limits:
            if name not in {offer.counted_as for offer in self.offers}:
                known = ", ".join(sorted({offer.counted_as for offer in self.offers}))
                found.append(
                    Finding(f'a limit for "{name}", which is no candidate', "limits", hint=f"candidates: {known}")
                )
        if not self.offers:
            found.append(Finding("there are no candidates", "candidates"))
        found += self._without_power()
        if not 0 < self.utilisation_limit <= 1:
            message = f"utilisation {self.utilisation_limit:g} must be above 0 and at most 1"
            found.append(Finding(message, "utilisation"))
        table = np.array(self.throughputs_per_s, dtype=np.float64).reshape(len(self.offers), -1)
        for number, rate in enumerate(self.rates_per_s):
            if rate > 0 and table.size and table[:, number].max() < _USABLE:
                hint = "offer faster accelerators or more parallelism, or relax the SLO"
                message = f"no candidate keeps the SLO for {self._label(number)}"
                found.append(Finding(message, "slo", hint=hint))
        if found:
            raise InputError(found)

    def _without_power(self) -> list[Finding]:
        """Offers whose power the limits would need."""
        if self.racks is None and self.carbon_limit_kg_per_h is None:
            return []
        message = "has no power, which limits of racks or carbon need"
        return [Finding(f"{offer.name} {message}", "offers") for offer in self.offers if offer.power_w <= 0]

    def _label(self, bucket: int) -> str:
        return self.labels[bucket] if self.labels else f"bucket {bucket}"

    def formulate(self, whole_slices: bool = True) -> LinearProgram:
        """The integer program.

        Slices of a bucket are alike, so an integer counts how many go to each kind of replica, in place of one binary each. With
        parts of slices it bounds the cost of any division of the requests.
        """
        form = Formulation()
        prices = np.array([offer.price_usd_per_h for offer in self.offers])
        replicas = form.variables([f"replicas of {offer.name}" for offer in self.offers], cost=prices, integer=True)
        table = np.array(self.throughputs_per_s, dtype=np.float64)
        columns: list[list[int]] = [[] for _ in self.offers]
        loads: list[list[float]] = [[] for _ in self.offers]
        for number, rate in enumerate(self.rates_per_s):
            if rate <= 0:
                continue
            usable = np.flatnonzero(table[:, number] >= _USABLE)
            names = [f"slices of {number} on {self.offers[g].name}" for g in usable.tolist()]
            taken = form.variables(names, upper=float(self.slices), integer=whole_slices)
            words = f"{self._label(number)} are served"
            form.require(words, taken, 1.0, "==", self.slices, unit=f"of {self.slices} slices")
            for g, column in zip(usable.tolist(), taken.tolist(), strict=True):
                columns[g].append(column)
                loads[g].append(rate / self.slices / (table[g, number] * self.utilisation_limit))
        for g, offer in enumerate(self.offers):
            words = f"replicas of {offer.name} carry their load"
            form.require(words, [*columns[g], int(replicas[g])], [*loads[g], -1.0], "<=", 0.0, elastic=False)
        for name, limit in self.limits.items():
            mine = [g for g, offer in enumerate(self.offers) if offer.counted_as == name]
            sizes = [float(self.offers[g].accelerators) for g in mine]
            words = f"at most {limit} {name}"
            form.require(words, replicas[mine], sizes, "<=", limit, unit=name, more=f"one more {name}")
        if self.power_limit_w is not None:
            watts = [offer.power_w / 1000.0 for offer in self.offers]
            words = f"at most {self.power_limit_w / 1000:g} kW"
            form.require(
                words, replicas, watts, "<=", self.power_limit_w / 1000.0, unit="kW", more="one more kW of power"
            )
        if self.racks is not None:
            kinds = [(o.name, int(c), o.power_w) for o, c in zip(self.offers, replicas.tolist(), strict=True)]
            self.racks.require(form, kinds, whole=True)
        if self.carbon_limit_kg_per_h is not None:
            kg = [offer.power_w / 1e3 * self.carbon_g_per_kwh / 1e3 for offer in self.offers]
            limit_kg = self.carbon_limit_kg_per_h
            words, more = f"at most {limit_kg:g} kg of CO2 per hour", "one more kg of CO2 per hour"
            form.require(words, replicas, kg, "<=", limit_kg, unit="kg/h", more=more)
        for number, counts in enumerate(self.refuted):
            names = [f"{offer.name} beyond fleet {number}" for offer in self.offers]
            beyond = form.variables(names, upper=1.0, integer=True)
            words = f"more of something than {list(counts)}"
            form.require(words, beyond, 1.0, ">=", 1.0, elastic=False)
            for column, chosen, had in zip(replicas.tolist(), beyond.tolist(), counts, strict=True):
                form.require(words, [column, chosen], [1.0, -float(had + 1)], ">=", 0.0, elastic=False)
        return form.program()


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who serves what."""

    replicas: tuple[int, ...]
    """Of each offer."""
    shares: tuple[tuple[float, ...], ...]
    """Of each bucket's requests, by offer."""


def solve_melange(problem: MelangeProblem, effort: Effort | None = None) -> tuple[Plan, Assignment]:
    """Solve the integer program.

    Raises
    ------
    InputError
        If the problem makes no sense or has no solution.

    References
    ----------
    T. Griggs et al., "Mélange: Cost Efficient Large Language Model Serving by Exploiting GPU Heterogeneity", arXiv:2404.14527.
    """
    problem.check()
    program = problem.formulate()
    solution = require_solution(program, effort)
    count = len(problem.offers)
    replicas = tuple(round(value) for value in solution.values[:count])
    shares = np.zeros((len(problem.rates_per_s), count))
    place = {offer.name: g for g, offer in enumerate(problem.offers)}
    for name, value in zip(program.names[count:], solution.values[count:].tolist(), strict=True):
        if not name.startswith("slices of "):
            continue
        bucket, _, kind = name.removeprefix("slices of ").partition(" on ")
        shares[int(bucket), place[kind]] = value / problem.slices
    table = np.array(problem.throughputs_per_s, dtype=np.float64)
    rates = np.array(problem.rates_per_s)
    rows = []
    for g, offer in enumerate(problem.offers):
        if not replicas[g]:
            continue
        load = float(sum(s * r / table[g, b] for b, (s, r) in enumerate(zip(shares[:, g], rates, strict=True)) if s))
        rows.append(
            {
                "replicas": replicas[g],
                "offer": offer.name,
                "accelerators": replicas[g] * offer.accelerators,
                "USD/h": replicas[g] * offer.price_usd_per_h,
                "requests/s": float(shares[:, g] @ rates),
                "utilisation": load / replicas[g],
            }
        )
    relaxed = require_solution(program.relaxed, effort)
    figures = {
        "cost_usd_per_h": solution.objective,
        "linear_bound_usd_per_h": relaxed.objective,
        "power_w": float(sum(n * offer.power_w for n, offer in zip(replicas, problem.offers, strict=True))),
        "rate_per_s": float(rates.sum()),
    }
    if problem.carbon_g_per_kwh:
        figures["carbon_kg_per_h"] = figures["power_w"] / 1e3 * problem.carbon_g_per_kwh / 1e3
    if problem.racks is not None:
        figures["racks"] = float(solution.values[[n.startswith("racks of ") for n in program.names]].sum())
    plan = solved(
        "melange",
        solution,
        program.unit,
        fleet={},
        figures=figures,
        table=tuple(rows),
        prices=tuple(shadow_prices(program, solution, effort)),
    )
    return plan, Assignment(replicas, tuple(map(tuple, shares.tolist())))


def balanced(
    problem: MelangeProblem, replicas: Sequence[int], effort: Effort | None = None
) -> tuple[tuple[float, ...], ...]:
    """Shares of each bucket's requests by offer that load the busiest of these replicas least: a linear program.

    Raises
    ------
    InputError
        If a bucket can be served by none of them.
    """
    form = Formulation("of its throughput")
    (busiest,) = form.variables(["utilisation of the busiest"], cost=1.0)
    table = np.array(problem.throughputs_per_s, dtype=np.float64)
    have = np.array(replicas) > 0
    columns: list[list[int]] = [[] for _ in problem.offers]
    loads: list[list[float]] = [[] for _ in problem.offers]
    places: list[tuple[int, int, int]] = []
    for number, rate in enumerate(problem.rates_per_s):
        usable = np.flatnonzero(have & (table[:, number] >= _USABLE)).tolist()
        taken = form.variables([f"share of {number} on {g}" for g in usable])
        form.require(f"bucket {number} is served", taken, 1.0, "==", 1.0)
        for g, column in zip(usable, taken.tolist(), strict=True):
            columns[g].append(column)
            loads[g].append(rate / table[g, number])
            places.append((number, g, column))
    for g, count in enumerate(replicas):
        if columns[g]:
            words = f"{problem.offers[g].name} is no busier"
            form.require(words, [*columns[g], int(busiest)], [*loads[g], -float(count)], "<=", 0.0)
    values = require_solution(form.program(), effort).values
    shares = np.zeros((len(problem.rates_per_s), len(problem.offers)))
    for number, g, column in places:
        shares[number, g] = max(values[column], 0.0)
    return tuple(map(tuple, shares.tolist()))
