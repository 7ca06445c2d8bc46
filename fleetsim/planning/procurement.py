"""What to buy for a scenario with several sites: which chips where, on which terms, hour by hour through a typical day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.price import listed_price
from fleetsim.errors import DataError, Finding, InputError, nearest
from fleetsim.experiment.check import open_workload
from fleetsim.experiment.replicate import Notice
from fleetsim.fleet.pool import Pool
from fleetsim.fleet.tariffs import EnergyPrices, Tariffs
from fleetsim.kernel.streams import Streams
from fleetsim.planning.demand import MAX_REQUESTS, offered, require_open
from fleetsim.planning.judge import Confidence, Judgement, judge
from fleetsim.planning.offers import Candidate, candidates_for
from fleetsim.planning.over_scenario import OverScenario, with_pools
from fleetsim.planning.plan import require_slo
from fleetsim.planning.program import Floats
from fleetsim.planning.regions import Columns, StatedRegions
from fleetsim.planning.result import Plan, Proof
from fleetsim.planning.solve import Effort
from fleetsim.planning.throughput import Rate, steady_rate
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import Block, Count, Flag, Number, Ratio
from fleetsim.scenario.timed import Price
from fleetsim.units import SecondsOrZero, UsdPerHour, Watts, show

Text = Annotated[str, Field(min_length=1)]
Term = Literal["on-demand", "reserved", "spot"]
_HOUR_S = 3600.0
_ROWS = 6
"""Places by prompt length in which requests of a kind are priced."""
_TIGHTER = 0.92
"""Factor on the utilisation from one plan to the next, where a simulation missed the SLO."""
_EPS = 1e-6


class Offered(Block):
    """An accelerator and the terms on which it can be had."""

    terms: Annotated[tuple[Term, ...], Field(min_length=1)] = ("on-demand",)
    """Of contracts. On demand is paid for while it runs, reserved in every hour, spot may be taken away."""
    prices: dict[Term, UsdPerHour] = Field(default_factory=dict)
    """Of one accelerator by term; default: the catalogue's (`fleetsim list prices`)."""
    provider: Text | None = None
    """Whose prices of the catalogue count; default: the cheapest of each term."""
    interruptions: Annotated[Number, Field(ge=0)] = 0.0
    """Of a spot replica, per hour."""
    lost: SecondsOrZero = 0.0
    """Work that an interruption destroys …"""
    restart: SecondsOrZero = 300.0
    """… and time until another replica serves in its place; the default is an assumption."""


class Place(Block):
    """What can be had at a site of the scenario."""

    accelerators: tuple[Text, ...] = ()
    """Which there are; default: all that the problem names."""
    limits: dict[Text, Annotated[int, Field(ge=0, strict=True)]] = Field(default_factory=dict)
    """Accelerators that can be had by name; others without limit."""
    price_ratio: Annotated[Number, Field(gt=0)] = 1.0
    """Prices here over those that the problem says."""
    power_limit: Watts | None = None
    """Of the site, with its PUE."""


class StatedProcurement(OverScenario):
    """Cheapest mix of chips, sites and contracts for a scenario whose requests come from several places."""

    kind: Literal["procurement"]
    accelerators: Annotated[dict[Text, Offered], Field(min_length=1)]
    """What can be bought, by name in the catalogue."""
    places: dict[Text, Place] = Field(default_factory=dict)
    """What the scenario's sites offer, by name; default: everything everywhere."""
    days: Annotated[Number, Field(gt=0)] = 90.0
    """Length of the contract: bills are told for all of it."""
    anywhere: tuple[Text, ...] = ()
    """Classes of requests that any site may serve; others are served where they come from."""
    may_wait: dict[Text, Annotated[int, Field(ge=0, le=23, strict=True)]] = Field(default_factory=dict)
    """Hours that requests of a class may wait."""
    utilisation: Annotated[Number, Field(gt=0, le=1)] = 0.7
    """Share of a replica's throughput to plan with; the rest absorbs bursts."""
    spot_share: Ratio = 0.5
    """Of the replicas of a kind that run at a site, those that may be spot."""
    carbon_limit: Annotated[Number, Field(ge=0)] | None = None
    """Of all energy over all days [kg]."""
    rounds: Count = 6
    """Fleets that verification simulates at most."""
    whole: Flag = True
    """Whole replicas only."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        for name, place in self.places.items():
            for chip in (*place.accelerators, *place.limits):
                if chip not in self.accelerators:
                    raise ValueError(f"place {name} speaks of {chip}, which the problem does not offer")
        return self

    def solve(self, effort: Effort | None = None) -> Plan:
        """Plan, and say how the fleet stands in the scenario.

        Raises
        ------
        InputError
            If the scenario has no sites or no objective, a price is missing, or nothing serves all requests within the limits.
        """
        return self._planned(self._case(), self.utilisation, effort)

    def prove(
        self, effort: Effort | None = None, confidence: Confidence | None = None, notice: Notice = lambda _: None
    ) -> Plan:
        """Plan and simulate, with less and less of each replica's throughput until the simulated SLO holds.

        Raises
        ------
        InputError
            As `solve`. That the SLO could not be proved is no error: the proof says why.
        """
        case, confidence = self._case(), confidence or Confidence()
        plan = first = self._planned(case, self.utilisation, effort)
        utilisation, lines, reason = self.utilisation, [], ""
        while True:
            judgement = judge(fleet_of(case.loaded, plan), confidence=confidence)
            lines.append(f"{utilisation:.0%} of throughputs, {show(plan.objective)} {plan.unit}: {judgement.reason}")
            notice(lines[-1])
            if judgement.met:
                break
            if len(lines) >= self.rounds:
                reason = f"not proved after {len(lines)} fleets: {judgement.reason}"
                break
            utilisation *= _TIGHTER
            try:
                plan = self._planned(case, utilisation, effort)
            except InputError as error:
                reason = f"no plan with {utilisation:.0%} of throughputs: {error.findings[0].message}"
                break
        return replace(
            plan, bound=min(first.bound, plan.bound), proof=_proof(plan, judgement, confidence, lines, reason)
        )

    # --- the scenario as a program ------------------------------------------------------------------------------------

    def _case(self) -> _Case:
        loaded = self.loaded()
        slo = require_slo(loaded)
        sites = loaded.scenario.sites
        if not sites:
            message = "there are no `sites`: procurement chooses between places"
            raise InputError(loaded.finding((), message, "such as sites: {here: {pue: 1.2}}; or plan without sites"))
        for name in self.places:
            if name not in sites:
                raise InputError(Finding(f'no site "{name}"', "problem.places", hint=nearest(name, sites, "sites")))
        demand = demand_by_hour(loaded)
        named = {kind.klass for kind in demand}
        for name in (*self.anywhere, *self.may_wait):
            if name not in named:
                known = sorted(klass for klass in named if klass is not None)
                raise InputError(
                    Finding(f'no requests of class "{name}"', "problem", hint=nearest(name, known, "classes"))
                )
        found: list[Candidate] = []
        rates: list[list[list[Rate]]] = []
        for name in self.accelerators:
            candidates = candidates_for(loaded, [name], {name: self._price(name, self.accelerators[name].terms[0])})
            tables = [
                [
                    [steady_rate(c.pool, p, o, slo.classes.get(kind.klass or "", slo)) for _, p, o in kind.lengths]
                    for kind in demand
                ]
                for c in candidates
            ]
            best = max(range(len(candidates)), key=lambda k: _worth(candidates[k], tables[k], demand))
            found.append(candidates[best])
            rates.append(tables[best])
        return _Case(loaded, demand, found, rates, list(self.accelerators))

    def _price(self, accelerator: str, term: Term) -> float:
        """Of one accelerator [USD/h]."""
        offered_ = self.accelerators[accelerator]
        if term in offered_.prices:
            return offered_.prices[term]
        known = load_accelerator(accelerator).price_usd_per_h
        if term == "on-demand" and offered_.provider is None and known is not None:
            return known
        try:
            return listed_price(accelerator, Price(term=term, provider=offered_.provider)).usd_per_h
        except DataError as error:
            hint = f"give problem.accelerators.{accelerator}.prices.{term}, such as 2 USD/h"
            raise InputError(
                Finding(error.findings[0].message, f"problem.accelerators.{accelerator}", hint=hint)
            ) from None

    def _stated(self, case: _Case, utilisation: float) -> StatedRegions:
        """The same as a problem of regions, of one day."""
        tariffs = Tariffs(
            case.loaded.scenario,
            case.loaded.base_dir,
            [load_accelerator(pool.accelerator) for pool in case.loaded.scenario.pools],
        )
        chips = {}
        for accelerator, candidate, table in zip(case.names, case.candidates, case.rates, strict=True):
            pool, spread = candidate.pool, candidate.pool.config.parallelism.accelerators
            power = max(rate.power_w for row in table for rate in row) + pool.host_busy_w
            chips[candidate.offer.name] = {
                "price": f"{self._dearest(accelerator) * spread!r} USD/h",
                "power": f"{float(power)!r} W",
                "idle": f"{min(_light_w(pool, case.demand), float(power))!r} W",
                "throughput": [_throughput(kind, row) for kind, row in zip(case.demand, table, strict=True)],
            }
        buckets = {
            kind.name: {
                "rates": {
                    kind.origin or next(iter(case.loaded.scenario.sites)): f"{float(kind.rates_per_s.mean())!r} req/s"
                },
                "profile": (kind.rates_per_s / kind.rates_per_s.mean()).tolist(),
                "slack_h": self.may_wait.get(kind.klass or "", 0),
                "local": (kind.klass or "") not in self.anywhere,
            }
            for kind in case.demand
        }
        return StatedRegions.model_validate(
            {
                "kind": "regions",
                "hours": 24,
                "chips": chips,
                "buckets": buckets,
                "regions": {name: self._region(case, name, prices) for name, prices in tariffs.sites.items()},
                "utilisation": utilisation,
                "spot_share": self.spot_share,
                "reserved_run": True,
                "carbon_limit": None if self.carbon_limit is None else self.carbon_limit / self.days,
                "whole": self.whole,
            }
        )

    def _dearest(self, accelerator: str) -> float:
        """Price that stands where it cannot be had on demand: its columns are shut by the region [USD/h]."""
        return max(self._price(accelerator, term) for term in self.accelerators[accelerator].terms)

    def _region(self, case: _Case, name: str, prices: EnergyPrices) -> dict[str, Any]:
        place = self.places.get(name, Place())
        region: dict[str, Any] = {"pue": prices.pue, "prices": {}, "limits": {}, "reserved": {}, "spot": {}}
        if place.power_limit is not None:
            region["power_limit"] = f"{place.power_limit!r} W"
        for what, series in (("electricity", prices.electricity), ("carbon", prices.carbon)):
            if series is not None:
                region[what] = [float(series.mean(h * _HOUR_S, (h + 1) * _HOUR_S)) for h in range(24)]
        shut = []
        for accelerator, candidate in zip(case.names, case.candidates, strict=True):
            offer, terms = candidate.offer.name, self.accelerators[accelerator]
            spread = candidate.pool.config.parallelism.accelerators
            if accelerator in place.limits:
                region["limits"][offer] = place.limits[accelerator] // spread
            if place.accelerators and accelerator not in place.accelerators:
                region["limits"][offer] = 0
            for term in terms.terms:
                price = f"{self._price(accelerator, term) * spread * place.price_ratio!r} USD/h"
                if term == "on-demand":
                    region["prices"][offer] = price
                elif term == "reserved":
                    region["reserved"][offer] = price
                else:
                    region["spot"][offer] = {
                        "price": price,
                        "interruptions": terms.interruptions,
                        "lost": f"{terms.lost!r} s",
                        "restart": f"{terms.restart!r} s",
                    }
            if "on-demand" not in terms.terms:
                shut.append(offer)
        region["not_on_demand"] = shut
        return region

    def _planned(self, case: _Case, utilisation: float, effort: Effort | None) -> Plan:
        stated = self._stated(case, utilisation)
        plan, columns, values = stated.answer(effort)
        rented = float((values[columns.rented].sum(axis=2) * stated.rents()).sum())
        sums = {"cost_on_demand_usd": rented, **plan.figures}
        figures = {
            "cost_usd": plan.objective * self.days,
            **{name: sums[name] * self.days for name in _SUMS if name in sums},
            "requests_per_day": plan.figures["requests"],
            "utilisation_planned": utilisation,
        }
        notes = [
            f"a typical day, {self.days:g} times: {case.read:,} requests of the scenario's workload make it",
            "prefix hits and round trips to other sites are left out",
            *plan.notes,
        ]
        fleet = {
            "pools": self._pools(case, stated, columns, values),
            "faults": self._interruptions(case, stated, columns, values),
        }
        return replace(plan, kind="procurement", unit="USD/day", fleet=fleet, figures=figures, notes=tuple(notes))

    # --- the fleet as a scenario has it -------------------------------------------------------------------------------

    def _pools(self, case: _Case, stated: StatedRegions, columns: Columns, values: Floats) -> list[dict[str, Any]]:
        pools = []
        for i, candidate in enumerate(case.candidates):
            accelerator, terms = case.names[i], self.accelerators[case.names[i]]
            for k, site in enumerate(stated.regions):
                ratio = self.places.get(site, Place()).price_ratio
                for term in terms.terms:
                    hours = _by_hour(columns, values, i, k, term)
                    if not max(hours):
                        continue
                    block = {
                        **candidate.offer.pool,
                        "name": f"{site}-{candidate.offer.name}-{term}",
                        "site": site,
                        "price": f"{round(self._price(accelerator, term) * ratio, 6)!r} USD/h",
                        "replicas": max(hours[0], 1),
                    }
                    if len(set(hours)) > 1:
                        block |= {"min_replicas": min(hours), "max_replicas": max(hours)}
                        block["autoscaler"] = {"policy": "cron", "schedule": hours}
                    pools.append(block)
        return pools

    def _interruptions(
        self, case: _Case, stated: StatedRegions, columns: Columns, values: Floats
    ) -> list[dict[str, Any]]:
        """Spot replicas are taken away at random."""
        found = []
        for i, candidate in enumerate(case.candidates):
            terms = self.accelerators[case.names[i]]
            for k, site in enumerate(stated.regions):
                if "spot" in terms.terms and terms.interruptions and max(_by_hour(columns, values, i, k, "spot")):
                    found.append(
                        {
                            "policy": "crashes",
                            "pool": f"{site}-{candidate.offer.name}-spot",
                            "scope": "replica",
                            "mtbf_h": 1.0 / terms.interruptions,
                            "repair_h": max(terms.restart / _HOUR_S, 1e-3),
                        }
                    )
        return found


_SUMS = ("energy_kwh", "carbon_kg", "cost_reserved_usd", "cost_on_demand_usd", "cost_spot_usd")
"""Figures of a day that add up over days."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests of a class from one place through a day."""

    klass: str | None
    origin: str | None
    rates_per_s: Floats
    """In each hour."""
    lengths: Sequence[tuple[float, float, float]]
    """Share, mean prompt and mean answer of requests of similar prompts [tokens]."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.klass or 'requests'} of {self.origin or 'all'}"


@dataclass(frozen=True, slots=True)
class _Case:
    """A scenario as the program needs it."""

    loaded: LoadedScenario
    demand: Sequence[Kind]
    candidates: Sequence[Candidate]
    rates: Sequence[Sequence[Sequence[Rate]]]
    """Of each candidate, kind of requests and length."""
    names: Sequence[str]
    """Accelerators."""

    @property
    def read(self) -> int:
        """Requests of a day."""
        return round(sum(float(kind.rates_per_s.sum()) for kind in self.demand) * _HOUR_S)


def demand_by_hour(loaded: LoadedScenario) -> list[Kind]:
    """Demand of a scenario's workload by class and origin in the 24 hours from its beginning; shorter ones begin again.

    Raises
    ------
    InputError
        If the rate of arrivals depends on how fast the fleet answers, or it lasts less than an hour.
    """
    require_open(loaded)
    rows = []
    for request in islice(offered(open_workload(loaded, Streams(loaded.scenario.seed))), 4 * MAX_REQUESTS):
        if request.arrival_s >= 24 * _HOUR_S:
            break
        rows.append((request.arrival_s, request.prompt_tokens, request.output_tokens, request.klass, request.origin))
    hours = int(rows[-1][0] // _HOUR_S) if rows else 0
    hours = 24 if hours >= 23 else hours
    if hours < 1:
        message = "the workload lasts less than an hour: there is no day to plan for"
        raise InputError(loaded.finding(("workload",), message, "give more requests, or plan without procurement"))
    rows = [row for row in rows if row[0] < hours * _HOUR_S]
    kinds = []
    for klass, origin in sorted({row[3:] for row in rows}, key=str):
        own = np.array([row[:3] for row in rows if row[3:] == (klass, origin)], dtype=np.float64)
        counts = np.bincount((own[:, 0] // _HOUR_S).astype(int), minlength=hours)
        rates = np.resize(counts / _HOUR_S, 24)
        order = np.argsort(own[:, 1], kind="stable")
        parts = [part for part in np.array_split(order, min(_ROWS, len(order))) if len(part)]
        lengths = [(len(p) / len(own), float(own[p, 1].mean()), float(own[p, 2].mean())) for p in parts]
        kinds.append(Kind(klass, origin, rates, lengths))
    return kinds


def _throughput(kind: Kind, rates: Sequence[Rate]) -> float:
    """Requests of a kind that a replica serves per second: lengths share its time."""
    if any(rate.requests_per_s <= 0.0 for rate in rates):
        return 0.0
    return 1.0 / sum(share / rate.requests_per_s for (share, _, _), rate in zip(kind.lengths, rates, strict=True))


def _light_w(pool: Pool, demand: Sequence[Kind]) -> float:
    """Power of a replica that answers one request at a time, server included [W].

    Replicas that batch are busy long before they are loaded: between this and full load the program's power is a straight line.
    """
    model, ranks = pool.model, pool.config.parallelism.dp
    context = int(np.mean([p + o / 2 for kind in demand for _, p, o in kind.lengths]))
    line = model.decode(1, context, ranks)
    joules = line.energy_j + line.energy_per_ctx_j * context
    seconds = line.time_s + line.time_per_ctx_s * context
    return float(min(model.static_w + ranks * joules / seconds, model.limit_w) + pool.host_busy_w)


def _worth(candidate: Candidate, table: Sequence[Sequence[Rate]], demand: Sequence[Kind]) -> float:
    """Requests per dollar, over all kinds that it serves."""
    served = [_throughput(kind, row) for kind, row in zip(demand, table, strict=True)]
    weights = [float(kind.rates_per_s.sum()) for kind in demand]
    return sum(w * s for w, s in zip(weights, served, strict=True)) / candidate.offer.price_usd_per_h


def _by_hour(columns: Columns, values: Floats, i: int, k: int, term: Term) -> list[int]:
    """Whole replicas of a term in each hour."""
    if term == "on-demand":
        found = values[columns.rented[i, k]]
    elif term == "spot":
        found = np.zeros(24) if columns.spot is None else values[columns.spot[i, k]]
    else:
        found = np.full(24, 0.0 if columns.reserved is None else values[columns.reserved[i, k]])
    return [ceil(value - _EPS) for value in found.tolist()]


def fleet_of(loaded: LoadedScenario, plan: Plan) -> LoadedScenario:
    """The scenario with what the plan buys in place of its pools, and its interruptions beside its own faults."""
    faults = [*loaded.resolved.get("faults", []), *plan.fleet["faults"]]
    return with_pools(loaded, plan.fleet["pools"], {"faults": faults} if faults else None)


def _proof(plan: Plan, judgement: Judgement, confidence: Confidence, lines: Sequence[str], reason: str) -> Proof:
    mean, low, high = judgement.attainment
    days, figures = float(plan.figures["cost_usd"]) / plan.objective, judgement.figures
    simulated = {"attainment_ratio": mean, "cost_usd_per_h": figures["cost_usd_per_h"], **_hourly(figures)}
    predicted = {
        "attainment_ratio": 1.0,
        "cost_usd_per_h": sum(plan.figures.get(name, 0.0) for name in _SUMS if name.startswith("cost")) / days / 24.0,
        "site_kwh_per_h": plan.figures["energy_kwh"] / days / 24.0,
        "carbon_kg_per_h": plan.figures["carbon_kg"] / days / 24.0,
    }
    return Proof(
        judgement.met,
        mean,
        low,
        high,
        judgement.target,
        confidence.level,
        judgement.seeds,
        predicted,
        simulated,
        tuple(lines),
        reason,
    )


def _hourly(figures: Mapping[str, float]) -> dict[str, float]:
    hours = max(figures["makespan_s"], 1e-9) / _HOUR_S
    return {
        "site_kwh_per_h": figures["site_energy_j"] / 3.6e6 / hours,
        "carbon_kg_per_h": figures["carbon_g"] / 1e3 / hours,
        **{name: figures[name] for name in ("ttft_p99_s", "tpot_p99_s")},
    }
