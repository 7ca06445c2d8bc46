"""Systems compared: what differs in their figures and how surely, and what differs in their scenarios."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from fleetsim.errors import InputError, nearest
from fleetsim.metrics.statistics import LEVEL
from fleetsim.results.changes import Change, changes
from fleetsim.results.columns import column_of
from fleetsim.results.folder import Results, Run, open_results
from fleetsim.results.labels import short_names
from fleetsim.results.paired import Spread, between_seeds, holm, welch
from fleetsim.results.within import FIGURES, Figure, WithinRuns, figure_of

_BENEFITS = ("ttft_p99_s", "slo_attainment_ratio", "goodput_requests_per_s", "tpot_p99_s", "e2el_p99_s")
"""Of which the first that differ go into the verdict …"""
_PRICES = ("cost_usd", "energy_j", "carbon_g")
"""… and all of these."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Runs of one system that differ in their seeds only."""

    label: str
    runs: Sequence[Run]

    @property
    def seeds(self) -> dict[int, Run]:
        """Runs by seed."""
        return {run.seed: run for run in self.runs if run.seed is not None}


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of two systems."""

    figure: str
    title: str
    unit: str
    base: float
    """Mean over the runs of the baseline that were compared."""
    other: float
    difference: float
    """Other less base."""
    relative: float | None
    """Difference over base; None where that is 0."""
    low: float | None
    """Ends of the confidence interval of the difference; None where there is too little to tell."""
    high: float | None
    p: float | None
    """Adjusted for the number of figures (Holm)."""
    significant: bool
    better: bool | None
    """Whether the other is better; None where neither way is, or they are equal."""


@dataclass(frozen=True, slots=True)
class Against:
    """One system against the baseline."""

    label: str
    verdict: str
    method: str
    """What was paired with what."""
    differences: Sequence[Difference]
    changes: Sequence[Change]
    """Fields of the scenarios that differ."""


@dataclass(frozen=True, slots=True)
class Block:
    """Systems that are compared with one baseline."""

    at: Mapping[str, Any]
    """Values of the other axes of the study."""
    base: str
    others: Sequence[Against]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found."""

    by: str
    """Axis whose values are compared; empty outside studies."""
    level: float
    blocks: Sequence[Block]

    def __str__(self) -> str:
        """The verdicts, one a line."""
        return "\n".join(against.verdict for block in self.blocks for against in block.others)

    def table(self) -> pa.Table:
        """One row per system and figure."""
        rows = [
            {"at": _at(block.at), "base_label": block.base, "label": against.label, **asdict(difference)}
            for block in self.blocks
            for against in block.others
            for difference in against.differences
        ]
        return pa.Table.from_pylist(rows)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return asdict(self)


def compare(
    *paths: str | os.PathLike[str] | Results,
    by: str | None = None,
    base: str | None = None,
    figures: Sequence[str] | None = None,
    level: float = LEVEL,
) -> Comparison:
    """Compare systems by their figures, with confidence intervals of the differences.

    Runs whose scenarios differ in the seed only are one system. In a study, the values of one axis are compared at each setting
    of the others. `fleetsim.results.paired` says how sure a difference is taken to be.

    Parameters
    ----------
    *paths : path or Results
        What `open_results` takes; the first system is the baseline.
    by : str, optional
        Axis of a study, by its path or its last part; default: the first whose values are names, else the first.
    base : str, optional
        Label of the baseline, or a part of it.
    figures : sequence of str, optional
        Columns of the summary, instead of `FIGURES`.
    level : float
        Of the confidence intervals, 0 to 1.

    Raises
    ------
    InputError
        If there are not two systems, or a name is not known.

    Examples
    --------
    >>> import fleetsim
    >>> print(fleetsim.compare("before", "after"))  # doctest: +SKIP
    """
    opened = [path for path in paths if isinstance(path, Results)]
    if opened and len(paths) > 1:
        raise InputError("compare: give paths, or runs that were opened together, not both")
    results = opened[0] if opened else open_results(*paths)  # type: ignore[arg-type]
    chosen = _chosen(results, figures)
    axis, blocks = _blocks(results, by)
    compared = []
    for at, arms in blocks:
        if base is not None:
            arms = _with_base(arms, base)
        others = [_against(results, arms[0], arm, chosen, level) for arm in arms[1:]]
        compared.append(Block(at, arms[0].label, _adjusted(arms[0].label, others, at, level)))
    return Comparison(axis, level, compared)


def _chosen(results: Results, figures: Sequence[str] | None) -> list[Figure]:
    if not figures:
        return list(FIGURES)
    known = {figure.name: figure for figure in FIGURES}
    schema = results.summary().schema
    numbers = [field.name for field in schema if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)]
    for name in figures:
        if name not in numbers:
            raise InputError(f'no figure "{name}" in the summary. {nearest(name, numbers, "figures")}')
    return [known.get(name, Figure(name, name)) for name in figures]


def _blocks(results: Results, by: str | None) -> tuple[str, list[tuple[dict[str, Any], list[Arm]]]]:
    """Systems that are compared with each other, and the axes' values at which they are."""
    runs = list(results.runs)
    axes = [path for path, values in results.axes().items() if len(set(values.to_pylist())) > 1]
    axis = _axis(results, axes, by)
    if axis:
        others = [path for path in axes if path != axis]
        short = short_names(axes)

        def at(run: Run) -> tuple[Any, ...]:
            return tuple(run.axes.get(path) for path in others)

        settings = dict.fromkeys(map(at, runs))
        blocks = []
        for setting in settings:
            arms = _arms([run for run in runs if at(run) == setting])
            named = [replace(arm, label=f"{short[axis]}={_value(arm.runs[0].axes.get(axis))}") for arm in arms]
            blocks.append((dict(zip((short[path] for path in others), setting, strict=True)), named))
        if any(len(arms) > 1 for _, arms in blocks):
            return axis, [(setting, arms) for setting, arms in blocks if len(arms) > 1]
        if by is not None:
            raise InputError(f"at no setting of the other axes are there two values of {axis}: leave out --by")
    arms = _arms(runs)
    if len(arms) < 2:
        found = f"there is one only: {arms[0].label}" if arms else "there is none"
        raise InputError(f"compare needs two systems; {found}. Runs that differ in the seed only are one system")
    return "", [({}, arms)]


def _axis(results: Results, axes: Sequence[str], by: str | None) -> str:
    if by is None:
        names = [path for path in axes if pa.types.is_string(results.axes()[path].type)]
        return next(iter([*names, *axes]), "")
    short = {name: path for path, name in short_names(axes).items()}
    path = short.get(by, by)
    if path not in axes:
        raise InputError(f'no axis "{by}" that varies. {nearest(by, [*short, *axes], "axes")}')
    return path


def _arms(runs: Sequence[Run]) -> list[Arm]:
    """Systems: runs with the same scenario but for the seed; a seed that is there twice makes another system."""
    found: dict[tuple[str, int], list[Run]] = {}
    seen: dict[tuple[str, Any], int] = {}
    for run in runs:
        scenario = {key: value for key, value in (run.manifest.get("scenario") or {}).items() if key != "seed"}
        key = json.dumps(scenario, sort_keys=True) if scenario else run.id
        place = seen[key, run.seed] = seen.get((key, run.seed), -1) + 1
        found.setdefault((key, place), []).append(run)
    return [Arm(re.sub(r" #\d+$", "", group[0].label), group) for group in found.values()]


def _with_base(arms: list[Arm], base: str) -> list[Arm]:
    matches = [arm for arm in arms if base in (arm.label, arm.label.partition("=")[2])] or [
        arm for arm in arms if base in arm.label
    ]
    if len(matches) != 1:
        problem = "more than one system is called so" if matches else "no system is called so"
        raise InputError(f'--base "{base}": {problem}. {nearest(base, [arm.label for arm in arms], "systems")}')
    return [matches[0], *(arm for arm in arms if arm is not matches[0])]


Pairs = tuple[str, list[Run], list[Run], Callable[[Figure], "Spread | None"]]


def _against(results: Results, base: Arm, other: Arm, figures: Sequence[Figure], level: float) -> Against:
    method, of_base, of_other, spread = _method(results, base, other, level)
    differences = []
    for figure in figures:
        values = [[figure_of(run, figure.name) for run in runs] for runs in (of_base, of_other)]
        told = [[value for value in side if value is not None] for side in values]
        if not told[0] or not told[1]:
            continue
        means = [sum(side) / len(side) for side in told]
        complete = all(len(side) == len(all_) for side, all_ in zip(told, values, strict=True))
        found = spread(figure) if complete else None
        differences.append(_difference(figure, means[0], means[1], found))
    return Against(other.label, "", method, differences, _changes(of_base[0], of_other[0]))


def _method(results: Results, base: Arm, other: Arm, level: float) -> Pairs:
    """How these two are compared: what was paired, the runs that are, and the spread of each figure's difference."""
    common = sorted(base.seeds.keys() & other.seeds.keys())
    if len(common) > 1:
        pairs = [base.seeds[seed] for seed in common], [other.seeds[seed] for seed in common]
        return f"paired by {len(common)} seeds", *pairs, _of_seeds(*pairs, between_seeds, level)
    if not common and len(base.runs) > 1 and len(other.runs) > 1:
        pairs = list(base.runs), list(other.runs)
        method = f"independent: {len(base.runs)} and {len(other.runs)} seeds, none in common"
        return method, *pairs, _of_seeds(*pairs, welch, level)
    one, two = (base.seeds[common[0]], other.seeds[common[0]]) if common else (base.runs[0], other.runs[0])
    within = WithinRuns(results, one, two, level)
    return within.method, [one], [two], within.spread


def _of_seeds(
    base: Sequence[Run],
    other: Sequence[Run],
    test: Callable[[Sequence[float], Sequence[float], float], Spread],
    level: float,
) -> Callable[[Figure], Spread]:
    def spread(figure: Figure) -> Spread:
        return test(*([float(figure_of(run, figure.name) or 0.0) for run in runs] for runs in (base, other)), level)  # type: ignore[call-arg, arg-type]

    return spread


def _difference(figure: Figure, base: float, other: float, spread: Spread | None) -> Difference:
    difference = other - base if spread is None else spread.difference
    better = None if not difference or not figure.better else difference * figure.better > 0
    unit = column_of("summary", figure.name).unit
    low, high, p = (None, None, None) if spread is None else (spread.low, spread.high, spread.p)
    relative = difference / abs(base) if base else None
    return Difference(figure.name, figure.title, unit, base, other, difference, relative, low, high, p, False, better)


def _adjusted(base: str, others: Sequence[Against], at: Mapping[str, Any], level: float) -> list[Against]:
    """The same with p-values that take account of how many there are, and verdicts."""
    adjusted = iter(holm([difference.p for against in others for difference in against.differences]))
    told = []
    for against in others:
        differences = []
        for difference, p in zip(against.differences, adjusted, strict=False):
            significant = p is not None and p < 1 - level
            differences.append(replace(difference, p=p, significant=significant))
        told.append(replace(against, differences=differences, verdict=_verdict(base, against.label, differences, at)))
    return told


def _verdict(base: str, other: str, differences: Sequence[Difference], at: Mapping[str, Any]) -> str:
    """One line: what the other does better or worse, at which price, and what was not shown."""
    known = {difference.figure: difference for difference in differences}
    listed = [known[name] for name in (*_BENEFITS, *_PRICES) if name in known] or list(differences)
    shown = [difference for difference in listed if difference.significant]
    benefits = [_said(difference) for difference in shown if difference.figure not in _PRICES][:2]
    prices = [_price(difference) for difference in shown if difference.figure in _PRICES]
    where = f"at {_at(at)}: " if at else ""
    if not shown:
        return f"{where}{other} and {base} do not differ significantly"
    text = ", ".join(benefits) + ((" at " if benefits else "") + ", ".join(prices) if prices else "")
    unsure = [d.title for d in listed if not d.significant and (d.figure in _PRICES or d.figure in _BENEFITS[:2])]
    tail = f"; not significant: {', '.join(unsure)}" if unsure else ""
    return f"{where}{other} against {base}: {text}{tail}"


def _said(difference: Difference) -> str:
    way = "higher" if difference.difference > 0 else "lower"
    if difference.figure.endswith("_ratio"):
        return f"{difference.title} {abs(difference.difference) * 100:.3g} points {way}"
    if difference.relative is None:
        return f"{difference.title} {way}, from 0"
    if difference.relative >= 1:
        return f"{difference.title} {1 + difference.relative:.3g} times as high"
    return f"{difference.title} {_percent(difference.relative)} {way}"


def _price(difference: Difference) -> str:
    if difference.relative is None:
        return f"{difference.title} from 0"
    return f"{_percent(difference.relative)} {'more' if difference.difference > 0 else 'less'} {difference.title}"


def _percent(relative: float) -> str:
    percent = abs(relative) * 100
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def _at(at: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in at.items())


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _changes(old: Run, new: Run) -> list[Change]:
    """What differs between two runs besides their seeds."""
    if old.is_measured or new.is_measured:  # a measurement has no scenario
        tools = [str(run.manifest.get("tool") or "fleetsim") for run in (old, new)]
        return [Change("tool", *tools)] if tools[0] != tools[1] else []
    scenarios = [run.manifest.get("scenario") or {} for run in (old, new)]
    return [*changes(*scenarios), *_versions(old, new)]


def _versions(old: Run, new: Run) -> Iterator[Change]:
    """Versions of fleetsim and of what it stands on that differ."""
    pairs = {"fleetsim": (old.manifest.get("fleetsim_version"), new.manifest.get("fleetsim_version"))}
    packages = [run.manifest.get("packages") or {} for run in (old, new)]
    for name in packages[0].keys() & packages[1].keys():
        pairs[name] = (packages[0][name], packages[1][name])
    for name, (was, now) in sorted(pairs.items()):
        if was != now and was and now:
            yield Change(f"version of {name}", str(was), str(now))
