"""A job with a deadline, on spot capacity where there is some: policies on recorded availability ("can't be late")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, inf
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from fleetsim.errors import DataError, Finding, InputError
from fleetsim.faults.spot import read_availability
from fleetsim.planning.result import Plan
from fleetsim.planning.solve import Effort
from fleetsim.scenario.schema import Block, Count, Number
from fleetsim.units import Seconds, SecondsOrZero, UsdPerHour

Flags = Sequence[bool]
Choice = Literal["spot", "on-demand", "nothing"]
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Job:
    """What must be done, and what it costs; times in whole seconds."""

    work_s: int
    deadline_s: int
    overhead_s: int
    """Lost at every start: machine, image, and work since the last checkpoint."""
    tick_s: int
    """Between two decisions."""
    spot_usd_per_h: float
    on_demand_usd_per_h: float

    def price(self, choice: Choice) -> float:
        """Of a second [USD]."""
        if choice == "nothing":
            return 0.0
        return (self.spot_usd_per_h if choice == "spot" else self.on_demand_usd_per_h) / _HOUR_S


@dataclass(frozen=True, slots=True)
class Now:
    """What a policy sees: nothing of the future."""

    elapsed_s: int
    left_s: int
    """Work that is left."""
    available: bool
    """Whether there is spot capacity now."""
    running: Choice
    """What ran in the tick before; spot capacity that is gone counts as nothing."""


Policy = Callable[[Job, Now], Choice]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job."""

    cost_usd: float
    finished_s: float
    """Infinite if it was late."""
    on_demand_s: float
    spot_s: float
    starts: int


def safe(job: Job, now: Now) -> bool:
    """Whether another tick may be lost and on-demand capacity would still be in time: ``time left > work left + 2 d`` after it."""
    return job.deadline_s - now.elapsed_s - job.tick_s >= now.left_s + 2 * job.overhead_s


def on_demand(job: Job, now: Now) -> Choice:  # noqa: ARG001 - the rule needs neither
    """Never anything else."""
    return "on-demand"


def greedy(job: Job, now: Now) -> Choice:
    """Spot where there is some, nothing where there is none, and on-demand capacity for good where the deadline is near."""
    if not safe(job, now):
        return "on-demand"
    return "spot" if now.available else "nothing"


def uniform_progress(job: Job, now: Now) -> Choice:
    """Keep the progress on the line from nothing to all work at the deadline.

    Above the line spot where there is some, nothing otherwise; below it on-demand capacity where there is no spot. On-demand
    capacity is kept until the progress is on the line of two overheads later (hysteresis), spot capacity until it is taken
    (exploitation).
    """
    if not safe(job, now):
        return "on-demand"
    done = job.work_s - now.left_s
    if now.running == "on-demand" and done * job.deadline_s < (now.elapsed_s + 2 * job.overhead_s) * job.work_s:
        return "on-demand"
    if now.available:
        return "spot"
    return "on-demand" if done * job.deadline_s < now.elapsed_s * job.work_s else "nothing"


def time_sliced(job: Job, now: Now, slices: int = 10) -> Choice:
    """Greedy within slices of the time, each with its share of the work as a deadline of its own."""
    if not safe(job, now):
        return "on-demand"
    number = min(now.elapsed_s * slices // job.deadline_s, slices - 1)
    due_s = job.deadline_s * (number + 1) / slices
    wanted_s = job.work_s * (number + 1) / slices
    left_s = wanted_s - (job.work_s - now.left_s)
    near = due_s - now.elapsed_s - job.tick_s < left_s + 2 * job.overhead_s
    if left_s > 0 and near and (not now.available or now.running == "on-demand"):
        return "on-demand"
    return "spot" if now.available else "nothing"


POLICIES: dict[str, Policy] = {
    "on-demand": on_demand,
    "greedy": greedy,
    "uniform-progress": uniform_progress,
    "time-sliced": time_sliced,
}


def follow(policy: Policy, job: Job, available: Flags) -> Outcome:
    """Run a job by a policy.

    A start loses the overhead, which may last longer than a tick; the last tick is paid for as far as it is used. Work done stays
    done (checkpoints); spot capacity is there for whole ticks.

    Raises
    ------
    ValueError
        If the policy takes spot capacity where there is none.
    """
    left_s, lost_s, running, cost, starts = job.work_s, 0, "nothing", 0.0, 0
    used = {"spot": 0.0, "on-demand": 0.0, "nothing": 0.0}
    for number in range(-(-job.deadline_s // job.tick_s)):
        now_s = number * job.tick_s
        if running == "spot" and not available[number]:
            running = "nothing"
        choice = policy(job, Now(now_s, left_s, bool(available[number]), running))  # type: ignore[arg-type]
        if choice == "spot" and not available[number]:
            raise ValueError(f"spot capacity at {now_s} s, where there is none")
        if choice != running and choice != "nothing":
            lost_s, starts = job.overhead_s, starts + 1
        running = choice
        if choice == "nothing":
            continue
        span_s = min(job.tick_s, lost_s + left_s, job.deadline_s - now_s)
        cost += job.price(choice) * span_s
        used[choice] += span_s
        wasted = min(lost_s, span_s)
        lost_s -= wasted
        left_s -= span_s - wasted
        if left_s == 0:
            return Outcome(cost, float(now_s + span_s), used["on-demand"], used["spot"], starts)
    return Outcome(cost, inf, used["on-demand"], used["spot"], starts)


def oracle_usd(job: Job, available: Flags) -> float:
    """Cost of the cheapest way to be in time that knows the whole trace, by dynamic programming over ticks: no policy is cheaper.

    States are the work left and what runs with how much of its overhead left; times are counted in the largest unit that divides
    tick, overhead, work and deadline.
    """
    unit = gcd(job.tick_s, job.overhead_s or job.tick_s, job.work_s, job.deadline_s)
    tick, overhead, work = job.tick_s // unit, job.overhead_s // unit, job.work_s // unit
    ticks = -(-job.deadline_s // job.tick_s)
    last = (job.deadline_s - (ticks - 1) * job.tick_s) // unit
    # Overheads that can be left at the beginning of a tick of what already runs.
    lefts = [max(overhead - k * tick, 0) for k in range(1, -(-overhead // tick) + 1)] or [0]
    kinds: tuple[Choice, ...] = ("spot", "on-demand")
    states = {(kind, left): np.full(work + 1, inf) for kind in kinds for left in lefts}
    idle = np.full(work + 1, inf)
    idle[0] = 0.0
    for value in states.values():
        value[0] = 0.0
    left = np.arange(work + 1)
    for number in range(ticks - 1, -1, -1):
        room = last if number == ticks - 1 else tick
        options: dict[tuple[Choice, int], np.ndarray[Any, np.dtype[np.float64]]] = {}
        for kind in kinds:
            if kind == "spot" and not available[number]:
                continue
            for lost in {overhead, *lefts}:
                span = np.minimum(room, lost + left)
                wasted = np.minimum(lost, span)
                after = left - (span - wasted)
                carry = max(lost - room, 0)
                future = states[kind, carry if carry in lefts else lefts[-1]]
                options[kind, lost] = job.price(kind) * span * unit + np.where(after > 0, future[after], 0.0)
                options[kind, lost][0] = 0.0
        begin = np.minimum.reduce([idle, *[options[kind, overhead] for kind in kinds if (kind, overhead) in options]])
        fresh: dict[tuple[Choice, int], np.ndarray[Any, np.dtype[np.float64]]] = {}
        for kind, lost in states:
            fresh[kind, lost] = np.minimum(begin, options[kind, lost]) if (kind, lost) in options else begin
        states, idle = fresh, begin
    return float(idle[work])


def evaluate(policy: Policy, job: Job, traces: Sequence[Flags]) -> list[Outcome]:
    """Outcomes of a policy on traces of availability, one value a tick.

    Raises
    ------
    ValueError
        If a trace is shorter than the deadline, or the policy breaks a rule.
    """
    ticks = -(-job.deadline_s // job.tick_s)
    if any(len(trace) < ticks for trace in traces):
        raise ValueError(f"a trace ends before the deadline: {ticks} ticks are needed")
    return [follow(policy, job, trace) for trace in traces]


def resampled(samples: Sequence[tuple[float, float]], tick_s: int, nodes: float = 1.0) -> list[bool]:
    """Whether so many nodes were available in each tick: as the sample under way at its beginning says."""
    times = np.array([time for time, _ in samples])
    counts = np.array([count for _, count in samples])
    ticks = np.arange(0.0, times[-1] + 1e-9, tick_s)
    found: list[bool] = (counts[np.searchsorted(times, ticks, side="right") - 1] >= nodes).tolist()
    return found


class DrawnSpot(Block):
    """Spot capacity that comes and goes at random, with exponential times."""

    traces: Count = 20
    up: Seconds = 4 * _HOUR_S
    """Mean time that it is there."""
    down: Seconds = 1.5 * _HOUR_S
    """Mean time that it is not."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0

    def draw(self, ticks: int, tick_s: int) -> list[list[bool]]:
        """Availability of each trace in each tick."""
        rng = np.random.default_rng(self.seed)
        share = self.up / (self.up + self.down)
        found = []
        for _ in range(self.traces):
            there, line = bool(rng.random() < share), []
            chance = {True: -np.expm1(-tick_s / self.up), False: -np.expm1(-tick_s / self.down)}
            for _ in range(ticks):
                line.append(there)
                if rng.random() < chance[there]:
                    there = not there
            found.append(line)
        return found


class StatedSpotDeadline(Block):
    """Cheapest way to be in time on spot capacity: policies beside each other, on-demand capacity alone and an oracle."""

    kind: Literal["spot-deadline"]
    work: Seconds
    """Of the job on either capacity."""
    deadline: Seconds
    """From its beginning."""
    overhead: SecondsOrZero = 360.0
    """Lost at every start."""
    spot: UsdPerHour
    on_demand: UsdPerHour
    tick: Seconds = 300.0
    """Between decisions."""
    availability: DrawnSpot | tuple[Annotated[str, Field(min_length=1)], ...] = DrawnSpot()
    """Drawn, or files as for the fault model `spot`, relative to this file."""
    starts: Count = 1
    """Beginnings of the job in each recorded trace, evenly spaced over it."""
    nodes: Annotated[Number, Field(gt=0)] = 1
    """Nodes that must be available in a recorded trace."""
    policies: Annotated[tuple[Literal["on-demand", "greedy", "uniform-progress", "time-sliced"], ...], Field(min_length=1)] = (
        "on-demand", "greedy", "uniform-progress", "time-sliced",
    )  # fmt: skip
    """Which are compared."""
    _base_dir: Path = PrivateAttr(Path())

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name in ("work", "deadline", "overhead", "tick"):
            if getattr(self, name) != round(getattr(self, name)):
                raise ValueError(f"{name} must be whole seconds")
        if self.deadline < self.work + self.overhead:
            short = self.work + self.overhead - self.deadline
            raise ValueError(f"nothing is in time: work and one start end {short:g} s after the deadline")
        return self

    def in_folder(self, folder: Path) -> Self:
        """The same problem with its files found from there."""
        placed = self.model_copy()
        placed._base_dir = folder
        return placed

    def job(self) -> Job:
        """In whole seconds."""
        work_s, deadline_s, overhead_s, tick_s = (
            round(value) for value in (self.work, self.deadline, self.overhead, self.tick)
        )
        return Job(work_s, deadline_s, overhead_s, tick_s, self.spot, self.on_demand)

    def lines(self) -> list[list[bool]]:
        """Availability from each beginning."""
        job = self.job()
        ticks = -(-job.deadline_s // job.tick_s)
        if isinstance(self.availability, DrawnSpot):
            return self.availability.draw(ticks, job.tick_s)
        found = []
        for name in self.availability:
            line = resampled(read_availability(self._base_dir / name), job.tick_s, self.nodes)
            if len(line) < ticks:
                hours = len(line) * job.tick_s / _HOUR_S
                message = f"{name} ends after {hours:.4g} h, the deadline is {self.deadline / _HOUR_S:.4g} h"
                raise DataError(Finding(message, "problem.availability", hint="leave it out, or take a shorter job"))
            last = len(line) - ticks
            begins = sorted({round(k * last / max(self.starts - 1, 1)) for k in range(self.starts)})
            found += [line[begin : begin + ticks] for begin in begins]
        return found

    def solve(self, effort: Effort | None = None) -> Plan:  # noqa: ARG002 - policies and dynamic programming
        """Compare the policies.

        References
        ----------
        Z. Wu et al., "Can't Be Late: Optimizing Spot Instance Savings under Deadlines", NSDI 2024.
        """
        job, lines = self.job(), self.lines()
        if not lines:
            raise InputError(Finding("there is no trace of availability", "problem.availability"))
        least = float(np.mean([oracle_usd(job, line) for line in lines]))
        alone = float(np.mean([one.cost_usd for one in evaluate(on_demand, job, lines)]))
        rows = []
        for name in self.policies:
            outcomes = evaluate(POLICIES[name], job, lines)
            cost = float(np.mean([one.cost_usd for one in outcomes]))
            rows.append(
                {
                    "policy": name,
                    "USD": cost,
                    "of on-demand": cost / alone,
                    "above the oracle": cost / least - 1.0,
                    "in time": float(np.mean([one.finished_s <= job.deadline_s for one in outcomes])),
                    "on-demand h": float(np.mean([one.on_demand_s for one in outcomes])) / _HOUR_S,
                    "starts": float(np.mean([one.starts for one in outcomes])),
                }
            )
        rows.sort(key=lambda row: (-float(str(row["in time"])), float(str(row["USD"]))))
        best = rows[0]
        figures = {"cases": float(len(lines)), "oracle_usd": least, "on_demand_usd": alone}
        for row in rows:
            figures |= {
                f"{row['policy']}_usd": float(str(row["USD"])),
                f"{row['policy']}_in_time_ratio": float(str(row["in time"])),
            }
        share = float(np.mean([np.mean(line) for line in lines]))
        notes = [
            f"spot capacity is there {share:.0%} of the time",
            "the bound is what an oracle that knows the traces pays",
        ]
        objective = float(str(best["USD"]))
        return Plan(
            "spot-deadline",
            "heuristic",
            objective,
            "USD",
            min(least, objective),
            {},
            figures,
            tuple(rows),
            notes=tuple(notes),
        )
