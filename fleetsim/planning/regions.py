"""Several regions through a day: which chips run where and when, by price, electricity and carbon, with work that may wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from fleetsim.errors import Finding, InputError
from fleetsim.planning.over_scenario import Verifiable
from fleetsim.planning.portfolio import Spot
from fleetsim.planning.program import Floats, Formulation, Integers, LinearProgram
from fleetsim.planning.prove_hours import Hour
from fleetsim.planning.racks import Racks
from fleetsim.planning.result import Plan, solved
from fleetsim.planning.solve import Effort, require_solution, shadow_prices
from fleetsim.scenario.schema import Block, Count, Flag, Number, Ratio
from fleetsim.units import PerSecondOrZero, Quantity, UsdPerHour, Watts

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[Number, Field(ge=0)]
Series = tuple[Annotated[Number, Field(ge=0)], ...]
_HOUR_S = 3600.0


class Chip(Block):
    """A kind of replica."""

    price: UsdPerHour
    """Of a replica that runs; regions may say otherwise."""
    power: Watts
    """Of a replica at work."""
    idle: Watts = 0.0
    """Of a replica that runs without work."""
    throughput: Annotated[tuple[Annotated[Number, Field(ge=0)], ...], Field(min_length=1)]
    """Requests of each bucket that a replica serves within the SLO [1/s]; 0: none."""
    startup_cost: Annotated[Number, Field(ge=0)] = 0.0
    """Of starting a replica [USD]."""


class Columns(NamedTuple):
    """Places of the variables in the program."""

    running: Integers
    """Replicas that are on [chip, region, hour]."""
    served: Integers
    """Rates [chip, bucket, region, hour]."""
    rented: Integers
    """Replicas that are rented on demand [chip, region, hour]; those that run, where there is no other term."""
    reserved: Integers | None
    """Replicas that are paid for in every hour [chip, region]; None without other terms than on demand."""
    spot: Integers | None
    """Replicas that may be taken away [chip, region, hour]."""


class Bucket(Block):
    """Requests of a kind."""

    rates: Annotated[dict[Text, PerSecondOrZero], Field(min_length=1)]
    """Mean arrivals by region in which they arise."""
    profile: Series = ()
    """Factor on the rates in each hour; default: always 1."""
    slack_h: Annotated[int, Field(ge=0, strict=True)] = 0
    """Hours that the work may wait."""
    local: Flag = False
    """Whether it must be served where it arises."""


class Region(Block):
    """A place with replicas."""

    prices: dict[Text, UsdPerHour] = Field(default_factory=dict)
    """On demand, of chips that cost something else here."""
    reserved: dict[Text, UsdPerHour] = Field(default_factory=dict)
    """Of chips that can be had for the whole horizon, to be paid for in every hour of it."""
    spot: dict[Text, Spot] = Field(default_factory=dict)
    """Terms of chips that may be taken away."""
    not_on_demand: tuple[Text, ...] = ()
    """Chips that can be had on these other terms only."""
    limits: dict[Text, Annotated[int, Field(ge=0, strict=True)]] = Field(default_factory=dict)
    """Replicas that can be had here, by chip; others without limit."""
    power_limit: Watts | None = None
    """Of the site, with its PUE."""
    racks: Racks | None = None
    """In which the site's replicas stand, without its PUE."""
    carbon_limit: Annotated[Number, Field(ge=0)] | None = None
    """Of the site over the horizon [kg]."""
    pue: Annotated[Number, Field(ge=1, le=10)] = 1.0
    """Energy of the site over energy of its replicas."""
    electricity: Annotated[float, Quantity("price of energy", "USD/kWh", ge=0)] | Series = 0.0
    """Price of energy, or a series of it by hour [USD/kWh]."""
    carbon: Annotated[float, Quantity("carbon intensity", "g/kWh", ge=0)] | Series = 0.0
    """Carbon intensity, or a series of it by hour [g/kWh]."""

    def require(self, name: str, hours: int, chips: Mapping[str, Chip]) -> None:
        """Refuse series that end too early, chips that there are not, and spot that serves nothing.

        Raises
        ------
        ValueError
        """
        series = [
            (what, v)
            for what, v in (("electricity", self.electricity), ("carbon", self.carbon))
            if isinstance(v, tuple)
        ]
        for chip, terms in self.spot.items():
            if terms.limit is not None and len(terms.limit) > 1:  # one value holds for all hours
                series.append((f"spot limit of {chip}", terms.limit))
        for what, values in series:
            if len(values) < hours:
                raise ValueError(
                    f"{what} of {name} ends after {len(values)} hours, the horizon is {hours}: "
                    "give more values or fewer hours"
                )
        for chip in (*self.prices, *self.limits, *self.reserved, *self.spot, *self.not_on_demand):
            if chip not in chips:
                raise ValueError(f"region {name} speaks of {chip}, which is no chip")
        for chip, terms in self.spot.items():
            if terms.useful_ratio <= 0.0:
                raise ValueError(f"spot replicas of {chip} in {name} are interrupted before they have served anything")


class StatedRegions(Verifiable):
    """Cheapest hours of replicas by chip and region that serve all work, some of it later or elsewhere."""

    kind: Literal["regions"]
    hours: Count = 24
    """Horizon."""
    chips: Annotated[dict[Text, Chip], Field(min_length=1)]
    """Kinds of replicas by name."""
    buckets: Annotated[dict[Text, Bucket], Field(min_length=1)]
    """Kinds of requests by name, in the order of the chips' throughputs."""
    regions: Annotated[dict[Text, Region], Field(min_length=1)]
    """Places by name."""
    utilisation: Annotated[Number, Field(gt=0, le=1)] = 0.85
    """Share of a replica's throughput to plan with."""
    spot_share: Ratio = 1.0
    """Of the replicas of a chip that run in a region, those that may be spot."""
    reserved_run: Flag = False
    """Whether reserved replicas are always on."""
    carbon_price: Share = 0.0
    """Price of carbon in the objective [USD/t]."""
    carbon_limit: Annotated[Number, Field(ge=0)] | None = None
    """Of all regions over the horizon [kg]."""
    whole: Flag = False
    """Whole replicas only: an integer program."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name, chip in self.chips.items():
            if len(chip.throughput) != len(self.buckets):
                raise ValueError(f"{name} has {len(chip.throughput)} throughputs for {len(self.buckets)} buckets")
        for name, bucket in self.buckets.items():
            if bucket.profile and len(bucket.profile) < self.hours:
                raise ValueError(
                    f"the profile of {name} ends after {len(bucket.profile)} hours, the horizon is {self.hours}: "
                    "give more values or fewer hours"
                )
            unknown = sorted(set(bucket.rates) - set(self.regions))
            if unknown:
                raise ValueError(f"{name} arises in {', '.join(unknown)}, which is no region")
        for name, region in self.regions.items():
            region.require(name, self.hours, self.chips)
        return self

    # --- the program --------------------------------------------------------------------------------------------------

    def _series(self, value: float | Series) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array(value[: self.hours]) if isinstance(value, tuple) else np.full(self.hours, value)

    def _carbon_kg_per_kwh(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """By region and hour, with the PUE."""
        return np.array([self._series(region.carbon) * region.pue for region in self.regions.values()]) / 1e3

    def _usd_per_kwh(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """By region and hour, with the PUE and the price of carbon."""
        bought = np.array([self._series(region.electricity) * region.pue for region in self.regions.values()])
        return bought + self._carbon_kg_per_kwh() * self.carbon_price / 1e3

    def formulate(self) -> tuple[LinearProgram, Columns]:
        """The program, and where its variables are.

        A column of a chip that does not serve a bucket stays at zero by its bound. Work that may wait is counted cumulatively: by
        the end of an hour no more is served than has come, and no less than had come `slack_h` hours before. Reserved replicas are
        paid for whether they run or not; spot replicas serve the share of their time in which they are there.
        """
        form = Formulation("USD")
        chips, regions = list(self.chips.values()), list(self.regions.values())
        g, b, r, t = len(chips), len(self.buckets), len(regions), self.hours
        energy = self._usd_per_kwh()
        idle_kw = np.array([chip.idle for chip in chips]) / 1e3
        extra_kw = np.array([chip.power - chip.idle for chip in chips]) / 1e3
        table = np.array([chip.throughput for chip in chips])
        loads = np.divide(1.0, table, out=np.zeros_like(table), where=table > 0)
        columns = self._replicas(form, idle_kw, energy)
        work_kwh = loads * extra_kw[:, None]
        served = form.variables(
            [f"serve {i} {j} {k} {h}" for i in range(g) for j in range(b) for k in range(r) for h in range(t)],
            cost=(work_kwh[:, :, None, None] * energy[None, None]).ravel(),
            upper=np.where(table > 0, np.inf, 0.0).repeat(r * t),
        ).reshape(g, b, r, t)
        columns = columns._replace(served=served)
        self._serve_all(form, served)
        for i, name in enumerate(self.chips):
            for k, region in enumerate(self.regions):
                self._carry(form, columns, loads, i, k, name, region)
                limit = self.regions[region].limits.get(name)
                if limit is not None:
                    own = columns.running[i, k]
                    own = own if columns.reserved is None else np.append(own, columns.reserved[i, k])
                    self._limit(form, own, limit, name, region)
        self._start(form, columns.running)
        self._racks(form, columns)
        self._power(form, columns.running, served, idle_kw, work_kwh)
        self._cap(form, columns.running, served, idle_kw, work_kwh)
        return form.program(), columns

    def rents(self) -> Floats:
        """Price of a replica on demand by chip and region [USD/h]."""
        places = self.regions.values()
        return np.array([[place.prices.get(name, chip.price) for place in places] for name, chip in self.chips.items()])

    def _replicas(self, form: Formulation, idle_kw: Floats, energy: Floats) -> Columns:
        """Variables of replicas by the terms on which they are had; what they draw while they are on is paid for them all."""
        g, r, t = len(self.chips), len(self.regions), self.hours
        cells = [f"{i} {k} {h}" for i in range(g) for k in range(r) for h in range(t)]
        rent = self.rents().repeat(t)
        draw = (idle_kw[:, None, None] * energy[None]).ravel()
        nothing = np.empty(0, dtype=np.int64)
        if not any(region.reserved or region.spot or region.not_on_demand for region in self.regions.values()):
            running = form.variables([f"run {cell}" for cell in cells], cost=rent + draw, integer=self.whole)
            running = running.reshape(g, r, t)
            return Columns(running, nothing, running, None, None)
        running = form.variables([f"run {cell}" for cell in cells], cost=draw, integer=self.whole).reshape(g, r, t)
        shut = np.array([[name in region.not_on_demand for region in self.regions.values()] for name in self.chips])
        rented = form.variables(
            [f"rent {cell}" for cell in cells], cost=rent, upper=np.where(shut, 0.0, np.inf).ravel().repeat(t)
        ).reshape(g, r, t)
        held, taken, most = np.zeros((g, r)), np.zeros((g, r)), np.zeros((g, r, t))
        for i, name in enumerate(self.chips):
            for k, region in enumerate(self.regions.values()):
                held[i, k] = region.reserved.get(name, np.inf)
                terms = region.spot.get(name)
                if terms is not None:
                    taken[i, k] = terms.price
                    limit = terms.limit or (np.inf,)
                    most[i, k] = limit[0] if len(limit) == 1 else limit[:t]
        there = np.isfinite(held).ravel()
        reserved = form.variables(
            [f"reserve {i} {k}" for i in range(g) for k in range(r)],
            cost=np.where(there, np.nan_to_num(held.ravel(), posinf=0.0), 0.0) * t,
            upper=np.where(there, np.inf, 0.0),
            integer=self.whole,
        ).reshape(g, r)
        spot = form.variables(
            [f"spot {cell}" for cell in cells], cost=taken.ravel().repeat(t), upper=most.ravel(), integer=self.whole
        ).reshape(g, r, t)
        for i, name in enumerate(self.chips):
            for k, place in enumerate(self.regions):
                for h in range(t):
                    own = [running[i, k, h], rented[i, k, h], reserved[i, k], spot[i, k, h]]
                    words = f"{name} in {place} that run are had on some terms in hour {h}"
                    form.require(words, own, [1.0, -1.0, -1.0, -1.0], "<=", 0.0, elastic=False)
                    if self.reserved_run:
                        words = f"reserved {name} in {place} are on in hour {h}"
                        form.require(words, [reserved[i, k], running[i, k, h]], [1.0, -1.0], "<=", 0.0, elastic=False)
                    words = f"spot {name} in {place} are on in hour {h}"
                    row = [spot[i, k, h], running[i, k, h]]
                    form.require(words, row, [1.0, -self.spot_share], "<=", 0.0, elastic=False)
        return Columns(running, nothing, rented, reserved, spot)

    def _carry(
        self, form: Formulation, columns: Columns, loads: Floats, i: int, k: int, name: str, region: str
    ) -> None:
        """Replicas serve what they can in the time in which they are there."""
        terms = self.regions[region].spot.get(name)
        for h in range(self.hours):
            places, factors = columns.served[i, :, k, h], loads[i]
            places, factors = np.append(places, columns.running[i, k, h]), np.append(factors, -self.utilisation)
            if columns.spot is not None and terms is not None:
                lost = self.utilisation * (1.0 - terms.useful_ratio)
                places, factors = np.append(places, columns.spot[i, k, h]), np.append(factors, lost)
            words = f"{name} in {region} carry their load in hour {h}"
            form.require(words, places, factors, "<=", 0.0, elastic=False)

    def _limit(self, form: Formulation, columns: Integers, limit: float, name: str, region: str) -> None:
        """At most so many in any hour, bought once: one variable is the most that runs, so that one more has one price."""
        (most,) = form.variables([f"most {name} {region}"])
        for column in columns.tolist():
            form.require(f"{name} in {region} at most", [column, int(most)], [1.0, -1.0], "<=", 0.0, elastic=False)
        words = f"at most {limit:g} {name} in {region}"
        form.require(words, [int(most)], 1.0, "<=", limit, unit=name, more=f"one more {name} in {region}")

    def _serve_all(self, form: Formulation, served: Integers) -> None:
        for j, (name, bucket) in enumerate(self.buckets.items()):
            profile = np.array(bucket.profile[: self.hours] or np.ones(self.hours))
            groups: list[tuple[str, list[int], float]] = []
            places = {region: k for k, region in enumerate(self.regions)}
            if bucket.local:
                groups = [(f" of {region}", [places[region]], rate) for region, rate in bucket.rates.items()]
            else:
                groups = [("", list(places.values()), sum(bucket.rates.values()))]
            for where, ks, rate in groups:
                come = rate * profile
                if not bucket.slack_h:
                    for h in range(self.hours):
                        words = f"{name}{where} are served in hour {h}"
                        form.require(words, served[:, j, ks, h].ravel(), 1.0, "==", come[h], unit="requests/s")
                    continue
                total = np.cumsum(come)
                for h in range(self.hours):
                    columns = served[:, j, ks, : h + 1].ravel()
                    if h < self.hours - 1:
                        form.require(
                            f"{name}{where} come before they are served", columns, 1.0, "<=", total[h], elastic=False
                        )
                    due = (
                        total[-1] if h == self.hours - 1 else total[h - bucket.slack_h] if h >= bucket.slack_h else 0.0
                    )
                    if due > 0.0:
                        words = f"{name}{where} are served by hour {h}"
                        form.require(words, columns, 1.0, ">=", due, unit="requests/s, summed over hours")

    def _start(self, form: Formulation, running: Integers) -> None:
        for i, (name, chip) in enumerate(self.chips.items()):
            if chip.startup_cost <= 0.0:
                continue
            for k, region in enumerate(self.regions):
                names = [f"start {name} {region} {h}" for h in range(1, self.hours)]
                if not names:
                    continue
                started = form.variables(names, cost=chip.startup_cost)
                for h, column in enumerate(started, 1):
                    columns = [running[i, k, h], running[i, k, h - 1], column]
                    form.require(f"{name} in {region} start", columns, [1.0, -1.0, -1.0], "<=", 0.0, elastic=False)

    def _power(self, form: Formulation, running: Integers, served: Integers, idle_kw: Any, work_kw: Any) -> None:
        for k, (name, region) in enumerate(self.regions.items()):
            if region.power_limit is None:
                continue
            limit = region.power_limit / 1e3
            for h in range(self.hours):
                columns = np.concatenate([running[:, k, h], served[:, :, k, h].ravel()])
                factors = np.concatenate([idle_kw, work_kw.ravel()]) * region.pue
                words, more = f"at most {limit:g} kW in {name} in hour {h}", f"one more kW in {name} in hour {h}"
                form.require(words, columns, factors, "<=", limit, unit="kW", more=more)

    def _racks(self, form: Formulation, columns: Columns) -> None:
        """Racks for the most of each chip that ever runs or is reserved in a region."""
        for k, (name, region) in enumerate(self.regions.items()):
            if region.racks is None:
                continue
            kinds = []
            for i, (chip_name, chip) in enumerate(self.chips.items()):
                (most,) = form.variables([f"most {chip_name} in racks of {name}"])
                kinds.append((chip_name, int(most), chip.power))
                own = columns.running[i, k]
                for column in own if columns.reserved is None else np.append(own, columns.reserved[i, k]):
                    words = f"{chip_name} in {name} have a place"
                    form.require(words, [int(column), int(most)], [1.0, -1.0], "<=", 0.0, elastic=False)
            region.racks.require(form, kinds, self.whole, f" in {name}")

    def _cap(self, form: Formulation, running: Integers, served: Integers, idle_kw: Any, work_kwh: Any) -> None:
        """Carbon of all regions, and of each that has a limit of its own."""
        carbon = self._carbon_kg_per_kwh()
        idle = idle_kw[:, None, None] * carbon[None]
        work = work_kwh[:, :, None, None] * carbon[None, None]
        caps: list[tuple[str, slice, float]] = []
        if self.carbon_limit is not None:
            caps.append(("", slice(None), self.carbon_limit))
        for k, (name, region) in enumerate(self.regions.items()):
            if region.carbon_limit is not None:
                caps.append((f" in {name}", slice(k, k + 1), region.carbon_limit))
        for place, part, limit in caps:
            columns = np.concatenate([running[:, part].ravel(), served[:, :, part].ravel()])
            factors = np.concatenate([idle[:, part].ravel(), work[:, :, part].ravel()])
            words, more = f"at most {limit:g} kg of CO2{place}", f"one more kg of CO2{place}"
            form.require(words, columns, factors, "<=", limit, unit="kg", more=more)

    # --- the answer ---------------------------------------------------------------------------------------------------

    def with_utilisation(self, ratio: float) -> Self:
        """The same problem, planned with another share of each replica's throughput."""
        return self.model_copy(update={"utilisation": ratio})

    def solve(self, effort: Effort | None = None) -> Plan:
        """Solve the program."""
        return self.answer(effort)[0]

    def planned(self, effort: Effort | None = None) -> tuple[Plan, list[Hour]]:
        """Solve the program; what the plan has in every hour in every region."""
        plan, columns, values = self.answer(effort)
        table = np.array([chip.throughput for chip in self.chips.values()])
        loads = np.divide(1.0, table, out=np.zeros_like(table), where=table > 0)
        counts, kw = values[columns.running], self._kw(loads, values[columns.served])
        idle = np.array([chip.idle for chip in self.chips.values()])
        return plan, self._hours(values, columns, loads, counts * idle[:, None, None] + kw * 1e3)

    def _kw(self, loads: Floats, rates: Floats) -> Floats:
        """Power that work takes over idling [chip, region, hour]."""
        extra = np.array([chip.power - chip.idle for chip in self.chips.values()]) / 1e3
        power: Floats = np.einsum("gbrt,gb,g->grt", rates, loads, extra)
        return power

    def answer(self, effort: Effort | None = None) -> tuple[Plan, Columns, Floats]:
        """The plan, where the program's variables are, and their values."""
        table = np.array([chip.throughput for chip in self.chips.values()])
        lost = [name for j, name in enumerate(self.buckets) if table[:, j].max() <= 0.0]
        if lost:
            raise InputError(Finding(f"no chip serves {', '.join(lost)}", "chips", hint="give a throughput above 0"))
        program, columns = self.formulate()
        solution = require_solution(program, effort)
        counts, rates = solution.values[columns.running], solution.values[columns.served]
        loads = np.divide(1.0, table, out=np.zeros_like(table), where=table > 0)
        idle = np.array([chip.idle for chip in self.chips.values()]) / 1e3
        kwh = counts * idle[:, None, None] + self._kw(loads, rates)
        pue = np.array([region.pue for region in self.regions.values()])
        rows = []
        for i, name in enumerate(self.chips):
            for k, region in enumerate(self.regions):
                if counts[i, k].max() <= 1e-6:
                    continue
                rows.append(
                    {
                        "chip": name,
                        "region": region,
                        "most": float(counts[i, k].max()),
                        "least": float(counts[i, k].min()),
                        "replica hours": float(counts[i, k].sum()),
                        **self._terms(solution.values, columns, i, k),
                        "requests": float(rates[i, :, k].sum() * _HOUR_S),
                        "kWh": float(kwh[i, k].sum() * pue[k]),
                    }
                )
        figures = {
            "cost_usd": solution.objective,
            "cost_usd_per_h": solution.objective / self.hours,
            "energy_kwh": float((kwh.sum(axis=0) * pue[:, None]).sum()),
            "carbon_kg": float((kwh.sum(axis=0) * self._carbon_kg_per_kwh()).sum()),
            "requests": float(rates.sum() * _HOUR_S),
            "variables": float(len(program.names)),
            "requirements": float(len(program.requirements)),
        }
        figures |= self._bills(solution.values, columns)
        notes = [] if self.whole else ["replicas are divisible: round up, or set `whole: true`"]
        prices = shadow_prices(program, solution, effort)
        plan = solved(
            "regions", solution, "USD", fleet={}, figures=figures, table=tuple(rows), prices=prices, notes=notes
        )
        return plan, columns, solution.values

    def _hours(self, values: Floats, columns: Columns, loads: Floats, power_w: Floats) -> list[Hour]:
        """Replicas and rates of every hour in every region, parts of a replica rounded up; without spot replicas that are away."""
        found = []
        for k, (name, region) in enumerate(self.regions.items()):
            lost = np.array([1.0 - (t.useful_ratio if (t := region.spot.get(chip)) else 1.0) for chip in self.chips])
            for h in range(self.hours):
                away = 0.0 if columns.spot is None else np.ceil(values[columns.spot[:, k, h]] * lost - 1e-6)
                count = np.maximum(np.ceil(values[columns.running[:, k, h]] - 1e-6) - away, 0.0)
                rates = values[columns.served[:, :, k, h]]
                if count.sum() <= 0.0 or rates.sum() <= 1e-9:
                    continue
                busy = float((rates * loads).sum()) / float(count.sum())
                replicas = {chip: int(n) for chip, n in zip(self.chips, count, strict=True) if n > 0}
                served = dict(zip(self.buckets, rates.sum(axis=0).tolist(), strict=True))
                found.append(Hour(f"hour {h} in {name}", replicas, served, busy, float(power_w[:, k, h].sum())))
        return found

    def _terms(self, values: Floats, columns: Columns, i: int, k: int) -> dict[str, float]:
        """Replicas of a chip in a region by their terms; nothing where all are on demand."""
        if columns.reserved is None or columns.spot is None:
            return {}
        return {
            "reserved": round(float(values[columns.reserved[i, k]]), 9),
            "on-demand hours": round(abs(float(values[columns.rented[i, k]].sum())), 9),
            "spot hours": round(abs(float(values[columns.spot[i, k]].sum())), 9),
        }

    def _bills(self, values: Floats, columns: Columns) -> dict[str, float]:
        """What each term costs over the horizon; nothing where all are on demand."""
        if columns.reserved is None or columns.spot is None:
            return {}
        bills = {"cost_reserved_usd": 0.0, "cost_spot_usd": 0.0}
        for i, name in enumerate(self.chips):
            for k, region in enumerate(self.regions.values()):
                held = values[columns.reserved[i, k]] * region.reserved.get(name, 0.0) * self.hours
                terms = region.spot.get(name)
                taken = 0.0 if terms is None else values[columns.spot[i, k]].sum() * terms.price
                bills["cost_reserved_usd"] += float(held)
                bills["cost_spot_usd"] += float(taken)
        rented = values[columns.rented].sum(axis=2)
        return bills | {"cost_on_demand_usd": float((rented * self.rents()).sum())}
