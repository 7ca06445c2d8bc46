"""A portfolio of reserved, on-demand and spot replicas, bought before it is known which demand comes: two stages, with risk."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fleetsim.errors import Finding, InputError
from fleetsim.planning.over_scenario import Verifiable
from fleetsim.planning.program import Formulation, Integers, LinearProgram
from fleetsim.planning.prove_hours import Hour
from fleetsim.planning.racks import Racks
from fleetsim.planning.result import Plan, solved
from fleetsim.planning.solve import Effort, require_solution, shadow_prices
from fleetsim.scenario.schema import Block, Count, Flag, Number, Ratio
from fleetsim.units import Quantity, SecondsOrZero, UsdPerHour, Watts

Text = Annotated[str, Field(min_length=1)]
Series = Annotated[tuple[Annotated[Number, Field(ge=0)], ...], Field(min_length=1)]
_HOUR_S = 3600.0
_TAIL = 1e-9
_WHOLE = 1e-6
"""Share of a replica that is left by a solver's tolerance."""


class Spot(Block):
    """Replicas that may be taken away."""

    price: UsdPerHour
    """Of a replica."""
    interruptions: Annotated[Number, Field(ge=0)] = 0.0
    """Of a replica, per hour."""
    lost: SecondsOrZero = 0.0
    """Work that an interruption destroys …"""
    restart: SecondsOrZero = 0.0
    """… and time until another replica serves in its place."""
    limit: Series | None = None
    """Replicas to be had in each hour; default: no limit."""

    @property
    def useful_ratio(self) -> float:
        """Share of a replica's time that serves: 1 - interruptions x (lost + restart)."""
        return 1.0 - self.interruptions * (self.lost + self.restart) / _HOUR_S


class PortfolioChip(Block):
    """A kind of replica and the terms on which it can be had."""

    throughput: Annotated[Number, Field(gt=0)]
    """Of a replica within the SLO [requests/s]."""
    reserved: UsdPerHour | None = None
    """Price of one that is paid for in every hour of the horizon; none: not to be had."""
    on_demand: UsdPerHour | None = None
    """Price of one that is paid for while it runs."""
    spot: Spot | None = None
    """Of one that may be taken away."""
    limit: Annotated[int, Field(ge=0, strict=True)] | None = None
    """Replicas on all terms together, in any hour; default: no limit."""
    power: Watts = 0.0
    """Of a replica at work; reserved ones are taken to be at work too."""


class DemandCase(Block):
    """A demand that may come."""

    probability: Annotated[Number, Field(gt=0, le=1)]
    """That it comes."""
    demand: Series
    """Requests per second in each hour, or one number for all."""


class StatedPortfolio(Verifiable):
    """Cheapest reservation today, with on-demand and spot replicas for what then comes."""

    kind: Literal["portfolio"]
    hours: Count = 24
    """Horizon."""
    chips: Annotated[dict[Text, PortfolioChip], Field(min_length=1)]
    """Kinds of replicas by name."""
    cases: Annotated[dict[Text, DemandCase], Field(min_length=1)]
    """Demands that may come; probabilities add up to 1."""
    utilisation: Annotated[Number, Field(gt=0, le=1)] = 0.85
    """Share of a replica's throughput to plan with."""
    spot_share: Ratio = 1.0
    """Of each hour's demand that spot replicas may serve at most; the rest is a floor of others."""
    risk: Literal["mean", "cvar", "robust"] = "mean"
    """What is minimised: the mean cost; a mix of it with the mean of the worst cases; or the cost of the worst case."""
    risk_weight: Ratio = 0.5
    """Weight of the worst cases against the mean (cvar)."""
    tail: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    """Probability of the worst cases that are averaged (cvar)."""
    power_limit: Watts | None = None
    """Of all replicas together, in any hour of any case, with the PUE."""
    racks: Racks | None = None
    """In which all replicas stand."""
    pue: Annotated[Number, Field(ge=1, le=10)] = 1.0
    """Energy of the site over energy of its replicas."""
    carbon: Annotated[float, Quantity("carbon intensity", "g/kWh", ge=0)] | Series = 0.0
    """Carbon intensity, or a series of it by hour [g/kWh]."""
    carbon_limit: Annotated[Number, Field(ge=0)] | None = None
    """Of the horizon, whichever case comes [kg]."""
    whole: Flag = True
    """Whole replicas only."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        total = sum(case.probability for case in self.cases.values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"probabilities add up to {total:g}, not to 1")
        series = [(f"demand of {name}", case.demand) for name, case in self.cases.items()]
        series += [(f"spot limit of {n}", c.spot.limit) for n, c in self.chips.items() if c.spot and c.spot.limit]
        if isinstance(self.carbon, tuple):
            series.append(("carbon", self.carbon))
        for what, values in series:
            if 1 < len(values) < self.hours:
                raise ValueError(
                    f"{what} ends after {len(values)} hours, the horizon is {self.hours}: give more values or fewer hours"
                )
        limited = self.power_limit is not None or self.racks is not None or self.carbon_limit is not None
        for name, chip in self.chips.items():
            if limited and chip.power <= 0.0:
                raise ValueError(f"{name} has no power, which the limits of power, racks or carbon need")
            if chip.reserved is chip.on_demand is None and chip.spot is None:
                raise ValueError(f"{name} has no price: give reserved, on_demand or spot")
            if chip.spot is not None and chip.spot.useful_ratio <= 0.0:
                raise ValueError(f"spot replicas of {name} are interrupted before they have served anything")
        return self

    def _hourly(self, values: tuple[float, ...]) -> list[float]:
        return [values[0] if len(values) == 1 else values[h] for h in range(self.hours)]

    def formulate(self) -> tuple[LinearProgram, dict[str, Integers]]:
        """The program, and columns of reserved [chip], on-demand and spot replicas [case, chip, hour], and costs [case].

        What on-demand and spot replicas cost in a case is a variable of its own, in which all measures of risk are linear: the mean
        of the worst share `a` of cases is ``min over v of v + sum p max(0, cost - v) / a`` (Rockafellar and Uryasev, 2000).
        """
        form = Formulation("USD")
        chips = list(self.chips.values())
        g, s, t = len(chips), len(self.cases), self.hours
        inf = np.inf
        reserved = form.variables(
            [f"reserved {name}" for name in self.chips],
            cost=np.array([(chip.reserved or 0.0) * t for chip in chips]),
            upper=np.array([0.0 if chip.reserved is None else inf for chip in chips]),
            integer=self.whole,
        )
        cells = [(case, name, h) for case in self.cases for name in self.chips for h in range(t)]
        allowed = np.array([[chip.on_demand is not None, chip.spot is not None] for chip in chips])
        on = np.tile(np.where(allowed[:, 0], inf, 0.0).repeat(t), s)
        most = [
            np.array(self._hourly(c.spot.limit)) if c.spot and c.spot.limit else np.full(t, inf if c.spot else 0.0)
            for c in chips
        ]
        demanded = form.variables([f"on demand {c} {n} {h}" for c, n, h in cells], upper=on, integer=self.whole)
        spot = form.variables(
            [f"spot {c} {n} {h}" for c, n, h in cells], upper=np.tile(np.concatenate(most), s), integer=self.whole
        )
        demanded, spot = demanded.reshape(s, g, t), spot.reshape(s, g, t)
        cost = form.variables([f"cost of {case}" for case in self.cases], cost=self._weights())
        columns = {"reserved": reserved, "on_demand": demanded, "spot": spot, "cost": cost}
        self._serve(form, columns)
        self._price(form, columns)
        self._limit(form, columns)
        return form.program(), columns

    def _most(self, form: Formulation, columns: dict[str, Integers], chip: str, where: str = "") -> int:
        """Column of the most replicas of a chip in any hour of any case: what limits it has then one price."""
        i = list(self.chips).index(chip)
        (most,) = form.variables([f"most {chip}{where}"]).tolist()
        for s, name in enumerate(self.cases):
            for h in range(self.hours):
                mine = [columns["reserved"][i], columns["on_demand"][s, i, h], columns["spot"][s, i, h], most]
                words = f"{chip} in hour {h} of {name}{where}"
                form.require(words, mine, [1.0, 1.0, 1.0, -1.0], "<=", 0.0, elastic=False)
        return int(most)

    def _limit(self, form: Formulation, columns: dict[str, Integers]) -> None:
        """Inventory, power in any hour, racks for the most that ever runs, and carbon of any case."""
        chips = list(self.chips.values())
        kw = np.array([chip.power for chip in chips]) * self.pue / 1e3
        for name, chip in self.chips.items():
            if chip.limit is not None:
                words, more = f"at most {chip.limit} {name}", f"one more {name}"
                form.require(words, [self._most(form, columns, name)], 1.0, "<=", chip.limit, unit=name, more=more)
        if self.power_limit is not None:
            limit = self.power_limit / 1e3
            (most,) = form.variables(["most power"])
            for s, name in enumerate(self.cases):
                for h in range(self.hours):
                    on = np.concatenate([columns["reserved"], columns["on_demand"][s, :, h], columns["spot"][s, :, h]])
                    words = f"power in hour {h} of {name}"
                    row = np.append(on, most), np.append(np.tile(kw, 3), -1.0)
                    form.require(words, *row, "<=", 0.0, elastic=False)
            words = f"at most {limit:g} kW"
            form.require(words, [int(most)], 1.0, "<=", limit, unit="kW", more="one more kW of power")
        if self.racks is not None:
            kinds = [
                (name, self._most(form, columns, name, " in racks"), chip.power) for name, chip in self.chips.items()
            ]
            self.racks.require(form, kinds, self.whole)
        if self.carbon_limit is not None:
            for s, name in enumerate(self.cases):
                kg = self._carbon_kg_per_kwh()[None, :] * kw[:, None]
                on = np.concatenate([columns["reserved"], columns["on_demand"][s].ravel(), columns["spot"][s].ravel()])
                factors = np.concatenate([kg.sum(axis=1), kg.ravel(), kg.ravel()])
                words, more = f"at most {self.carbon_limit:g} kg of CO2 in {name}", f"one more kg of CO2 in {name}"
                form.require(words, on, factors, "<=", self.carbon_limit, unit="kg", more=more)

    def _carbon_kg_per_kwh(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """By hour."""
        values = self._hourly(self.carbon) if isinstance(self.carbon, tuple) else [self.carbon] * self.hours
        return np.array(values) / 1e3

    def _weights(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        share = {"mean": 1.0, "cvar": 1.0 - self.risk_weight, "robust": 0.0}[self.risk]
        return np.array([case.probability * share for case in self.cases.values()])

    def _serve(self, form: Formulation, columns: dict[str, Integers]) -> None:
        speed = np.array([chip.throughput for chip in self.chips.values()]) * self.utilisation
        useful = np.array([chip.spot.useful_ratio if chip.spot else 0.0 for chip in self.chips.values()])
        for s, (name, case) in enumerate(self.cases.items()):
            for h, demand in enumerate(self._hourly(case.demand)):
                fixed = np.concatenate([columns["reserved"], columns["on_demand"][s, :, h]])
                taken = columns["spot"][s, :, h]
                factors = np.concatenate([speed, speed])
                form.require(
                    f"the demand of {name} in hour {h}",
                    np.concatenate([fixed, taken]),
                    np.concatenate([factors, speed * useful]),
                    ">=",
                    demand,
                    unit="requests/s",
                )
                if self.spot_share < 1.0:
                    words = f"others than spot serve {1 - self.spot_share:.0%} of {name} in hour {h}"
                    form.require(words, fixed, factors, ">=", demand * (1.0 - self.spot_share), unit="requests/s")

    def _price(self, form: Formulation, columns: dict[str, Integers]) -> None:
        on = np.array([chip.on_demand or 0.0 for chip in self.chips.values()]).repeat(self.hours)
        spot = np.array([chip.spot.price if chip.spot else 0.0 for chip in self.chips.values()]).repeat(self.hours)
        cost = columns["cost"].tolist()
        for s, name in enumerate(self.cases):
            bought = np.concatenate([columns["on_demand"][s].ravel(), columns["spot"][s].ravel(), [cost[s]]])
            form.require(f"bill of {name}", bought, np.concatenate([on, spot, [-1.0]]), "<=", 0.0, elastic=False)
        if self.risk == "robust":
            (worst,) = form.variables(["worst bill"], cost=1.0)
            for s, name in enumerate(self.cases):
                form.require(f"worst bill, {name}", [cost[s], int(worst)], [1.0, -1.0], "<=", 0.0, elastic=False)
        if self.risk == "cvar":
            (value,) = form.variables(["value at risk"], cost=self.risk_weight)
            chances = np.array([case.probability for case in self.cases.values()])
            beyond = form.variables(
                [f"beyond, {name}" for name in self.cases], cost=self.risk_weight * chances / self.tail
            )
            for s, name in enumerate(self.cases):
                row = [cost[s], int(value), int(beyond[s])]
                form.require(f"tail, {name}", row, [1.0, -1.0, -1.0], "<=", 0.0, elastic=False)

    def with_utilisation(self, ratio: float) -> Self:
        """The same problem, planned with another share of each replica's throughput."""
        return self.model_copy(update={"utilisation": ratio})

    def solve(self, effort: Effort | None = None) -> Plan:
        """Solve the program."""
        return self.planned(effort)[0]

    def planned(self, effort: Effort | None = None) -> tuple[Plan, list[Hour]]:
        """Solve the program; what the plan has in every hour of every case."""
        if not any(max(case.demand) > 0 for case in self.cases.values()):
            raise InputError(Finding("there is no demand in any case", "cases"))
        program, columns = self.formulate()
        solution = require_solution(program, effort)
        values = solution.values
        chances = np.array([case.probability for case in self.cases.values()])
        reserved = values[columns["reserved"]]
        first = sum(
            float(n) * (chip.reserved or 0.0) * self.hours
            for n, chip in zip(reserved, self.chips.values(), strict=True)
        )
        bills = self._bills(values, columns) + first
        rows = []
        for i, name in enumerate(self.chips):
            on = values[columns["on_demand"][:, i]].sum(axis=1)
            spot = values[columns["spot"][:, i]].sum(axis=1)
            rows.append(
                {
                    "chip": name,
                    "reserved": float(reserved[i]),
                    "mean on-demand hours": float(chances @ on),
                    "mean spot hours": float(chances @ spot),
                }
            )
        order = np.argsort(-bills, kind="stable")
        figures = {
            "cost_mean_usd": float(chances @ bills),
            "cost_worst_usd": float(bills.max()),
            "cost_tail_mean_usd": _tail_mean(bills[order], chances[order], self.tail),
            "cost_reserved_usd": first,
            **{f"cost_usd of {name}": float(bill) for name, bill in zip(self.cases, bills, strict=True)},
        }
        figures |= self._energy(values, columns)
        prices = shadow_prices(program, solution, effort)
        plan = solved(
            "portfolio",
            solution,
            "USD",
            fleet={},
            figures=figures,
            table=tuple(rows),
            prices=prices,
            notes=self._notes(),
        )
        return plan, self._hours(values, columns)

    def _hours(self, values: np.ndarray[tuple[int], np.dtype[np.float64]], columns: dict[str, Integers]) -> list[Hour]:
        """Replicas and demand of every hour of every case; of spot replicas those that are there in the mean, rounded down."""
        useful = np.array([chip.spot.useful_ratio if chip.spot else 0.0 for chip in self.chips.values()])
        power = np.array([chip.power for chip in self.chips.values()])
        speed = np.array([chip.throughput for chip in self.chips.values()])
        found = []
        for s, (name, case) in enumerate(self.cases.items()):
            for h, demand in enumerate(self._hourly(case.demand)):
                fixed = values[columns["reserved"]] + values[columns["on_demand"][s, :, h]]
                count = np.ceil(fixed - _WHOLE) + np.floor(values[columns["spot"][s, :, h]] * useful + _WHOLE)
                room = float(count @ speed)
                if room <= 0.0:
                    continue
                replicas = {chip: int(n) for chip, n in zip(self.chips, count, strict=True) if n > 0}
                label = f"hour {h} of {name}"
                found.append(Hour(label, replicas, {"requests": demand}, demand / room, float(count @ power)))
        return found

    def _energy(
        self, values: np.ndarray[tuple[int], np.dtype[np.float64]], columns: dict[str, Integers]
    ) -> dict[str, float]:
        """Largest power and, where there is an intensity, mean carbon; nothing where no chip has a power."""
        kw = np.array([chip.power for chip in self.chips.values()]) * self.pue / 1e3
        if not kw.any():
            return {}
        on = values[columns["reserved"]][None, :, None] + values[columns["on_demand"]] + values[columns["spot"]]
        drawn = np.einsum("sgh,g->sh", on, kw)
        figures = {"power_most_kw": float(drawn.max())}
        if self.carbon_limit is not None or np.any(self._carbon_kg_per_kwh()):
            chances = np.array([case.probability for case in self.cases.values()])
            figures["carbon_mean_kg"] = float(chances @ (drawn @ self._carbon_kg_per_kwh()))
        return figures

    def _bills(
        self, values: np.ndarray[tuple[int], np.dtype[np.float64]], columns: dict[str, Integers]
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """On-demand and spot cost of each case."""
        on = np.array([chip.on_demand or 0.0 for chip in self.chips.values()])
        spot = np.array([chip.spot.price if chip.spot else 0.0 for chip in self.chips.values()])
        taken = values[columns["on_demand"]].sum(axis=2) @ on + values[columns["spot"]].sum(axis=2) @ spot
        return np.asarray(taken, dtype=np.float64)

    def _notes(self) -> list[str]:
        notes = []
        for name, chip in self.chips.items():
            if chip.spot is not None:
                useful = chip.spot.useful_ratio
                notes.append(
                    f"a spot {name} serves {useful:.1%} of its time: {chip.spot.price / useful:.4g} USD per useful hour"
                )
            if chip.reserved is not None and chip.on_demand:
                ratio = chip.reserved / chip.on_demand
                notes.append(f"a reserved {name} pays where it is used more than {ratio:.0%} of the time")
        return notes


def _tail_mean(
    bills: np.ndarray[tuple[int], np.dtype[np.float64]],
    chances: np.ndarray[tuple[int], np.dtype[np.float64]],
    tail: float,
) -> float:
    """Mean of the worst share `tail` of bills, which fall."""
    left, total = tail, 0.0
    for bill, chance in zip(bills.tolist(), chances.tolist(), strict=True):
        part = min(chance, left)
        total += part * bill
        left -= part
        if left <= _TAIL:
            break
    return total / tail
