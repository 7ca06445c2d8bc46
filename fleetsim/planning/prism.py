"""Prism's placement of models on accelerators: the one with the most pressure on its keys and values has as little as possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fleetsim.errors import Finding, InputError
from fleetsim.planning.program import Formulation
from fleetsim.planning.result import Plan
from fleetsim.planning.solve import Effort, optimise
from fleetsim.scenario.schema import Block, Count, Number

_CLOSE = 1e-4
_FULL = 1e-9


class PlacedModel(Block):
    """A model that must lie on one accelerator."""

    size: Annotated[Number, Field(gt=0)]
    """Memory of its weights [GB]."""
    rate: Annotated[Number, Field(ge=0)]
    """Arrivals [requests/s]."""
    slo: Annotated[Number, Field(gt=0)]
    """Its objective; a tighter one presses more."""

    @property
    def weight(self) -> float:
        """Rate over objective."""
        return self.rate / self.slo


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each model lies."""

    place: tuple[int, ...]
    """Accelerator of each model."""
    pressure: float
    """Largest sum of rate / objective over free memory [1/GB]."""


def pressure_of(models: Sequence[PlacedModel], place: Sequence[int], accelerators: int, memory_gb: float) -> float:
    """Largest pressure of a placement, checked as the published evaluator does not: every model is placed, and all of them fit.

    Raises
    ------
    ValueError
        If a model is missing or an accelerator too full.
    """
    if len(place) != len(models) or any(not 0 <= g < accelerators for g in place):
        raise ValueError("not every model is placed")
    used, weight = np.zeros(accelerators), np.zeros(accelerators)
    for model, g in zip(models, place, strict=True):
        used[g] += model.size
        weight[g] += model.weight
    if (used > memory_gb + _FULL).any():
        raise ValueError(f"accelerator {int(used.argmax())} holds {used.max():g} of {memory_gb:g} GB")
    free = memory_gb - used
    return float(np.where(weight > 0, weight / np.maximum(free, _FULL), 0.0).max())


def greedy(models: Sequence[PlacedModel], accelerators: int, memory_gb: float) -> Placement:
    """The published baseline: most pressing first, each to where pressure is lowest now and there is room.

    Raises
    ------
    InputError
        If a model finds no room.
    """
    used, weight = [0.0] * accelerators, [0.0] * accelerators
    place = [-1] * len(models)
    for number in sorted(range(len(models)), key=lambda k: -models[k].weight):
        model, best, least = models[number], -1, inf
        for g in range(accelerators):
            free = memory_gb - used[g]
            if model.size <= free and free > 0 and weight[g] / free < least:
                best, least = g, weight[g] / free
        if best < 0:
            message = f"no accelerator has {model.size:g} GB left for model {number}"
            raise InputError(Finding(message, "models", hint="add accelerators, or solve exactly (method: exact)"))
        place[number] = best
        used[best] += model.size
        weight[best] += model.weight
    return Placement(tuple(place), pressure_of(models, place, accelerators, memory_gb))


def exact(
    models: Sequence[PlacedModel], accelerators: int, memory_gb: float, effort: Effort | None = None
) -> tuple[Placement, float]:
    """The best placement and a bound, to a relative 1e-4: for a given pressure `t` the question is linear, so `t` is bisected.

    ``sum weight <= t (memory - sum size)`` for each accelerator. Models of equal accelerators are not told apart but by this order:
    the k-th model lies on one of the first k + 1.
    """
    form = Formulation("")
    names = [f"{m} on {g}" for m in range(len(models)) for g in range(accelerators)]
    upper = np.array([1.0 if g <= m else 0.0 for m in range(len(models)) for g in range(accelerators)])
    x = form.variables(names, upper=upper, integer=True).reshape(len(models), accelerators)
    for m in range(len(models)):
        form.require(f"model {m} is placed", x[m], 1.0, "==", 1.0)
    sizes = np.array([model.size for model in models])
    weights = np.array([model.weight for model in models])
    for g in range(accelerators):
        form.require(f"accelerator {g} has room", x[:, g], sizes, "<=", memory_gb, unit="GB")
    base = form.program()
    best: Placement | None = None
    low = float(weights.sum()) / max(accelerators * memory_gb - float(sizes.sum()), _FULL)
    try:
        best = greedy(models, accelerators, memory_gb)
    except InputError:
        best = None
    high = best.pressure if best else max(low * 64.0, 1.0)
    while best is None or high > low * (1.0 + _CLOSE):
        middle = high if best is None else (low + high) / 2.0
        rows = list(base.requirements)
        extra = Formulation("")
        extra.variables(names)
        for g in range(accelerators):
            extra.require(f"pressure of {g}", x[:, g], weights + middle * sizes, "<=", middle * memory_gb)
        rows += extra.program().requirements
        solution = optimise(
            type(base)(base.names, base.cost, base.lower, base.upper, base.integer, tuple(rows)), effort
        )
        if solution.status == "infeasible":
            if best is None:
                message = "the models do not fit on the accelerators"
                raise InputError(Finding(message, "models", hint="add accelerators or memory"))
            low = middle
            continue
        place = tuple(int(row.argmax()) for row in solution.values[x])
        best = Placement(place, pressure_of(models, place, accelerators, memory_gb))
        high = best.pressure
    return best, min(low, best.pressure)


class StatedPrism(Block):
    """Models on accelerators so that the largest pressure on keys and values is least."""

    kind: Literal["prism"]
    accelerators: Count
    """That there are."""
    memory: Annotated[Number, Field(gt=0)] = 80.0
    """Of each [GB]."""
    models: Annotated[tuple[PlacedModel, ...], Field(min_length=1)]
    """What is placed."""
    method: Literal["greedy", "exact"] = "exact"
    """The published baseline, or the optimum by integer programs."""

    def solve(self, effort: Effort | None = None) -> Plan:
        """Place the models."""
        if self.method == "greedy":
            found = greedy(self.models, self.accelerators, self.memory)
            bound = sum(m.weight for m in self.models) / max(
                self.accelerators * self.memory - sum(m.size for m in self.models), _FULL
            )
        else:
            found, bound = exact(self.models, self.accelerators, self.memory, effort)
        rows = []
        for g in range(self.accelerators):
            mine = [m for m, where in enumerate(found.place) if where == g]
            used = sum(self.models[m].size for m in mine)
            weight = sum(self.models[m].weight for m in mine)
            row = {"accelerator": g, "models": " ".join(map(str, mine)), "GB": used, "pressure": weight}
            row["pressure"] = weight / max(self.memory - used, _FULL)
            rows.append(row)
        figures = {"pressure": found.pressure, "score": 1.0 / found.pressure if found.pressure else inf}
        status = "optimal" if self.method == "exact" else "heuristic"
        return Plan("prism", status, found.pressure, "1/GB", bound, {}, figures, tuple(rows))


def published_cases(cases: int = 50, seed: int = 42) -> list[tuple[int, list[PlacedModel]]]:
    """The evaluator's cases: 5 to 9 accelerators and twice as many models, drawn by NumPy's old generator in this order."""
    rng = np.random.RandomState(seed)
    drawn = []
    for _ in range(cases):
        accelerators = int(rng.randint(5, 10))
        models = []
        for _ in range(2 * accelerators):
            size, rate, slo = rng.randint(10, 30), rng.randint(1, 10), rng.randint(5, 10)
            models.append(PlacedModel(size=float(size), rate=float(rate), slo=float(slo)))
        drawn.append((accelerators, models))
    return drawn


def score(pressures: Sequence[float]) -> float:
    """The evaluator's score without its success rate: one over the mean of the cases' largest pressures."""
    return 1.0 / float(np.mean(pressures))
