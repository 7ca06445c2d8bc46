"""Papers to results: which runs they need, the figures, and what they are worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, isfinite, isnan, log10

from fleetsim.experiment.replicate import Figures, Kept, Notice, Task, perform
from fleetsim.metrics.statistics import mean_interval
from fleetsim.plugins import allowing_imports
from fleetsim.reproduce.functions import named
from fleetsim.reproduce.measure import measure
from fleetsim.reproduce.paper import (
    VERDICTS,
    Figure,
    Metric,
    MissingDataError,
    Named,
    Ours,
    PaperFile,
    Verdict,
)
from fleetsim.scenario.export import canonical_json

DIGITS = 4
"""Significant digits of a recorded figure at least."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a paper."""

    file: PaperFile
    ours: Sequence[Ours]
    """One per figure, in their order."""
    skipped: str = ""
    """Why it was not run."""

    @property
    def verdict(self) -> Verdict:
        """That of the worst headline figure."""
        if self.skipped:
            return "skipped"
        return worst([ours.verdict for figure, ours in self._pairs() if figure.headline])

    @property
    def differs(self) -> bool:
        """Whether a verdict is not the recorded one."""
        return not self.skipped and any(
            figure.ours is None or figure.ours.verdict != ours.verdict for figure, ours in self._pairs()
        )

    def _pairs(self) -> list[tuple[Figure, Ours]]:
        return list(zip(self.file.paper.figures, self.ours, strict=True))


def recorded(file: PaperFile) -> Outcome:
    """What the file says without running anything."""
    ours = [figure.ours or Ours(value=None) for figure in file.paper.figures]
    return Outcome(file, ours, "" if all(o.value is not None for o in ours) else "never run")


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst of some verdicts."""
    return max(verdicts, key=VERDICTS.index, default="skipped")


def reproduce(
    files: Sequence[PaperFile],
    jobs: int = 1,
    kept: Kept | None = None,
    notice: Notice = lambda _: None,
    allow_import: bool = False,
) -> list[Outcome]:
    """Run papers and judge their figures.

    Parameters
    ----------
    files : sequence of PaperFile
        See `fleetsim.reproduce.paper.load_paper`.
    jobs : int
        Processes.
    kept : Kept, optional
        Where finished runs are kept; none runs everything.
    notice : callable
        Told what is running.
    allow_import : bool
        Let scenarios name policies as ``module:Class``.

    Raises
    ------
    ScenarioError
        If a scenario of an arm is not valid.
    """
    plans: list[_Plan | Outcome] = []
    with allowing_imports(allow_import):
        for file in files:
            try:
                plans.append(_Plan(file, allow_import))
            except MissingDataError as missing:
                plans.append(Outcome(file, [Ours(value=None)] * len(file.paper.figures), str(missing)))
    tasks = [task for plan in plans if isinstance(plan, _Plan) for task in plan.tasks]
    found = dict(zip((task.key for task in tasks), perform(tasks, jobs, kept, notice), strict=True))
    return [plan if isinstance(plan, Outcome) else plan.outcome(found) for plan in plans]


class _Plan:
    """The runs of a paper."""

    def __init__(self, file: PaperFile, allow_import: bool) -> None:
        self.file = file
        self.tasks: list[Task] = []
        self._values: dict[tuple[int, int, str], tuple[str, str]] = {}
        """Key of the task and name of the figure by number of the figure, seed and arm."""
        metrics: dict[tuple[str, int], dict[str, Metric]] = {}
        for number, figure in enumerate(file.paper.figures):
            for seed in self._seeds(figure):
                if figure.check is not None:
                    self._add_check(number, figure.check, seed)
                for arm in figure.arms:
                    assert figure.metric is not None
                    metrics.setdefault((arm, seed), {})[figure.metric.model_dump_json()] = figure.metric
        for (arm, seed), wanted in metrics.items():
            self._add_runs(arm, seed, wanted, allow_import)

    def _seeds(self, figure: Figure) -> range:
        return range(1, (figure.seeds or (1 if figure.check else self.file.paper.seeds)) + 1)

    def _add_check(self, number: int, check: Named, seed: int) -> None:
        check.arguments  # noqa: B018 - raises where data are missing
        key = f"check {check.model_dump_json()} {seed}"
        self.tasks.append(Task(f"{self.file.name}: {check.function}", key, _check, (check, seed)))
        self._values[number, seed, ""] = (key, "value")

    def _add_runs(self, arm: str, seed: int, wanted: Mapping[str, Metric], allow_import: bool) -> None:
        """One task for the plain metrics of a run, one for each capacity."""
        scenario = self.file.loaded(arm, seed, {}, {}).scenario
        recipes = {name: made.model_dump(mode="json") for name, made in self.file.paper.traces.items()}
        base = f"{canonical_json(scenario)} {json.dumps(recipes, sort_keys=True)}"
        plain = {text: metric for text, metric in wanted.items() if metric.capacity is None}
        groups = [{text: metric} for text, metric in wanted.items() if metric.capacity is not None]
        for group in [plain, *groups] if plain else groups:
            key = f"{base} {' '.join(group)}"
            work = (self.file.path, arm, seed, tuple(group.values()), allow_import)
            label = f"{self.file.name}: {arm}, seed {seed}"
            self.tasks.append(Task(label, key, measure, work, keep=not allow_import))
            places = {text: str(place) for place, text in enumerate(group)}
            for number, figure in enumerate(self.file.paper.figures):
                text = figure.metric.model_dump_json() if figure.metric else ""
                if text in places and arm in figure.arms and seed in self._seeds(figure):
                    self._values[number, seed, arm] = (key, places[text])

    def outcome(self, found: Mapping[str, Figures]) -> Outcome:
        """Figures from what the tasks said."""
        ours = []
        for number, figure in enumerate(self.file.paper.figures):
            values = []
            for seed in self._seeds(figure):
                parts = []
                for arm in figure.arms or ("",):
                    key, name = self._values[number, seed, arm]
                    parts.append(found[key][name])
                values.append(combined(figure, parts))
            ours.append(judged(figure, values))
        return Outcome(self.file, ours)


def _check(check: Named, seed: int) -> Figures:
    return {"value": float(named(check.function, "check")(seed, **check.arguments))}


def combined(figure: Figure, parts: Sequence[float | None]) -> float:
    """A figure of one seed from what its arms say; NaN where one says nothing."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return float("nan")
    if figure.order:
        return float(all(a < b for a, b in pairwise(known)))
    if figure.over is not None:
        return known[0] / known[1] if known[1] else float("nan")
    return known[0] - known[1] if figure.minus is not None else known[0]


def judged(figure: Figure, values: Sequence[float]) -> Ours:
    """Mean, interval and verdict of a figure over the seeds."""
    mean, low, high = mean_interval(values)
    if isnan(mean):
        return Ours(value=None, seeds=len(values), verdict="not reproduced")
    digits = _digits(figure, mean)
    ends = {}
    if isfinite(low) and isfinite(high):
        ends = {"low": _short(low, digits), "high": _short(high, digits)}
    value = _short(mean, digits)
    return Ours(value=value, seeds=len(values), verdict=verdict_of(figure, value), **ends)


def _digits(figure: Figure, value: float) -> int:
    """Significant digits to record: enough to tell a narrow band's ends apart."""
    width = 0.0 if figure.band is None else figure.band[1] - figure.band[0]
    if not (width > 0.0 and value):
        return DIGITS
    return max(DIGITS, ceil(log10(abs(value) / width)) + 2)


def _short(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


ORDER_BAND = (0.8, 1.0)
"""An order must hold in four of five seeds."""


def verdict_of(figure: Figure, value: float) -> Verdict:
    """What a figure is worth: inside the band, or at least on the published side of the middle."""
    band = figure.band or (ORDER_BAND if figure.order else None)
    if band is not None and band[0] <= value <= band[1]:
        return "reproduced"
    if not same_side(figure, value):
        return "not reproduced"
    return "reproduced" if band is None else "direction only"


def same_side(figure: Figure, value: float) -> bool:
    """Whether a value is on the published figure's side of the middle (on the band's, where that is a text)."""
    middle = figure.middle
    if middle is None:
        return False
    published = figure.published
    if isinstance(published, str):
        assert figure.band is not None
        published = sum(figure.band) / 2
    return (value - middle) * (published - middle) > 0
