"""SageServe's hourly integer program: how many instances of which chip each model gains or gives up in each region."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fleetsim.planning.program import Formulation, LinearProgram
from fleetsim.planning.result import Plan, solved
from fleetsim.planning.solve import Effort, require_solution, shadow_prices
from fleetsim.scenario.schema import Block, Number

Text = Annotated[str, Field(min_length=1)]
NotNegative = Annotated[Number, Field(ge=0)]


class SageModel(Block):
    """A model that is served."""

    tokens_per_s: Annotated[dict[Text, NotNegative], Field(min_length=1)]
    """Of an instance, by chip; chips that are missing do not serve it."""
    startup_cost: dict[Text, NotNegative] = Field(default_factory=dict)
    """Of starting an instance, by chip, in the unit of the chips' costs; default: none."""
    forecast: Annotated[dict[Text, NotNegative], Field(min_length=1)]
    """Tokens per second expected in the next hour, by region."""
    instances: dict[Text, dict[Text, Annotated[int, Field(ge=0, strict=True)]]] = Field(default_factory=dict)
    """What it has now, by region and chip."""


class StatedSageServe(Block):
    """Changes of instances that serve the next hour's forecast at the least cost of running and starting them."""

    kind: Literal["sageserve"]
    costs: Annotated[dict[Text, NotNegative], Field(min_length=1)]
    """Of an instance-hour, by chip [USD]."""
    models: Annotated[dict[Text, SageModel], Field(min_length=1)]
    """Models by name."""
    limits: dict[Text, dict[Text, Annotated[int, Field(ge=0, strict=True)]]] = Field(default_factory=dict)
    """Instances of all models together, by region and chip; default: no limit."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, model in self.models.items():
            for chip in model.tokens_per_s:
                if chip not in self.costs:
                    raise ValueError(f"{name} runs on {chip}, which has no cost")
            for region, held in model.instances.items():
                if unknown := sorted(set(held) - set(model.tokens_per_s)):
                    raise ValueError(f"{name} has instances in {region} on {', '.join(unknown)}, which do not serve it")
        return self

    def cells(self) -> list[tuple[str, str, str]]:
        """Model, region and chip of every change."""
        return [
            (name, region, chip)
            for name, model in self.models.items()
            for region in dict.fromkeys((*model.forecast, *model.instances))
            for chip in model.tokens_per_s
        ]

    def now(self, cell: tuple[str, str, str]) -> int:
        """Instances before the change."""
        name, region, chip = cell
        return self.models[name].instances.get(region, {}).get(chip, 0)

    def formulate(self) -> LinearProgram:
        """The integer program: instances after the change, and how many of them are started.

        min sum cost (n + D) + startup max(0, D), which is the published objective plus the constant cost n.
        """
        form = Formulation("USD")
        cells = self.cells()
        place = {cell: k for k, cell in enumerate(cells)}
        after = form.variables(
            [f"after {' '.join(cell)}" for cell in cells], cost=[self.costs[chip] for _, _, chip in cells], integer=True
        )
        starts = form.variables(
            [f"started {' '.join(cell)}" for cell in cells],
            cost=[self.models[name].startup_cost.get(chip, 0.0) for name, _, chip in cells],
        )
        for cell, k in place.items():
            words = f"{' '.join(cell)} starts what it gains"
            form.require(words, [after[k], starts[k]], [1.0, -1.0], "<=", self.now(cell), elastic=False)
        for name, model in self.models.items():
            for region, forecast in model.forecast.items():
                mine = [place[name, region, chip] for chip in model.tokens_per_s]
                speeds = list(model.tokens_per_s.values())
                form.require(
                    f"{name} in {region} has its forecast", after[mine], speeds, ">=", forecast, unit="tokens/s"
                )
        for region, by_chip in self.limits.items():
            for chip, limit in by_chip.items():
                mine = [k for (_, where, what), k in place.items() if where == region and what == chip]
                words, more = f"at most {limit} {chip} in {region}", f"one more {chip} in {region}"
                form.require(words, after[mine], 1.0, "<=", limit, unit=chip, more=more)
        return form.program()

    def solve(self, effort: Effort | None = None) -> Plan:
        """Solve the program."""
        program = self.formulate()
        solution = require_solution(program, effort)
        rows = []
        for k, cell in enumerate(self.cells()):
            after = round(solution.values[k])
            if after or self.now(cell):
                name, region, chip = cell
                rows.append(
                    {
                        "model": name,
                        "region": region,
                        "chip": chip,
                        "now": self.now(cell),
                        "change": after - self.now(cell),
                    }
                )
        started = sum(max(row["change"], 0) for row in rows)
        kept = sum(self.costs[chip] * self.now((name, region, chip)) for name, region, chip in self.cells())
        figures = {
            "cost_usd": solution.objective,
            "published_objective_usd": solution.objective - kept,
            "started": float(started),
        }
        prices = shadow_prices(program, solution, effort)
        return solved("sageserve", solution, "USD", fleet={}, figures=figures, table=tuple(rows), prices=prices)
