"""Local search over layouts of mixed accelerators: groups are split, merged, reshaped and change their role."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import Literal

from fleetsim.errors import Finding, InputError
from fleetsim.planning.distserve import Trial, at_rate
from fleetsim.planning.judge import judge
from fleetsim.planning.layout import Group, Layout, Role, Site, complete, described
from fleetsim.planning.over_scenario import with_pools
from fleetsim.units import show

Move = Literal["flip", "reshape", "split", "merge", "add"]
MOVES: tuple[Move, ...] = ("flip", "reshape", "split", "merge", "add")
_MOST = 200_000
"""Layouts that are enumerated at most."""
_RUNGS = 40
"""Rungs of the ladder of rates, either way from the rate asked for; what keeps its limits on none of them serves nothing."""


@dataclass(frozen=True, slots=True)
class Space:
    """Which layouts there are."""

    site: Site
    stock: Mapping[str, int]
    """Accelerators of each kind."""
    shapes: Mapping[str, list[tuple[int, int]]]
    """Tensor degrees and stages that fit, by kind."""
    roles: tuple[Role, ...]

    def groups(self) -> list[Group]:
        """All kinds of groups."""
        return [
            Group(name, tp, pp, role)
            for name, shapes in self.shapes.items()
            for tp, pp in shapes
            if tp * pp <= self.stock[name]
            for role in self.roles
        ]

    def fits(self, layout: Layout) -> bool:
        """Whether there are as many accelerators."""
        used = Counter[str]()
        for group in layout:
            used[group.accelerator] += group.accelerators
        return all(count <= self.stock[name] for name, count in used.items())

    def all(self) -> Iterator[Layout]:
        """Every layout that no further group fits into."""
        kinds = sorted(self.groups())
        smallest = min((group.accelerators for group in kinds), default=1)
        most = sum(self.stock.values()) // smallest
        seen = 0
        for count in range(1, most + 1):
            for layout in combinations_with_replacement(kinds, count):
                seen += 1
                if seen > _MOST:
                    message = f"there are more than {_MOST:,} layouts"
                    raise InputError(Finding(message, "problem.strategy", hint="take `strategy: tabu`"))
                if complete(layout) and self.fits(layout) and self.full(layout):
                    yield layout

    def full(self, layout: Layout) -> bool:
        """Whether no further group of roles that are there fits."""
        roles = {group.role for group in layout}
        return not any(self.fits((*layout, group)) for group in self.groups() if group.role in roles)

    def start(self, role: Role) -> Layout | None:
        """The smallest groups that fit, as many as there are accelerators: all mixed, or prefill and decode in turn."""
        layout: list[Group] = []
        for name, shapes in self.shapes.items():
            left = self.stock[name]
            for tp, pp in shapes[:1]:
                while left >= tp * pp:
                    layout.append(Group(name, tp, pp, role))
                    left -= tp * pp
        if role != "mixed":
            layout = [Group(g.accelerator, g.tp, g.pp, "decode" if k % 2 else "prefill") for k, g in enumerate(layout)]
        found = tuple(sorted(layout))
        return found if found and complete(found) else None

    def neighbours(self, layout: Layout, moves: tuple[Move, ...]) -> list[Layout]:
        """Layouts one move away, in a fixed order."""
        found = {
            tuple(sorted(changed))
            for move in moves
            for changed in _MOVERS[move](self, layout)
            if changed and complete(changed) and self.fits(changed)
        }
        return sorted(found - {layout})

    def of_size(self, name: str, accelerators: int) -> list[tuple[int, int]]:
        """Shapes with so many accelerators."""
        return [shape for shape in self.shapes[name] if shape[0] * shape[1] == accelerators]


def _without(layout: Layout, *groups: Group) -> Layout:
    left = Counter(layout)
    left.subtract(groups)
    return tuple(left.elements())


def _flip(space: Space, layout: Layout) -> Iterator[Layout]:
    for group in sorted(set(layout)):
        for role in space.roles:
            if "mixed" not in (role, group.role) and role != group.role:
                yield (*_without(layout, group), Group(group.accelerator, group.tp, group.pp, role))


def _reshape(space: Space, layout: Layout) -> Iterator[Layout]:
    for group in sorted(set(layout)):
        for tp, pp in space.of_size(group.accelerator, group.accelerators):
            yield (*_without(layout, group), Group(group.accelerator, tp, pp, group.role))


def _split(space: Space, layout: Layout) -> Iterator[Layout]:
    for group in sorted(set(layout)):
        half = group.accelerators // 2
        if 2 * half != group.accelerators:
            continue
        for tp, pp in space.of_size(group.accelerator, half):
            part = Group(group.accelerator, tp, pp, group.role)
            yield (*_without(layout, group), part, part)


def _merge(space: Space, layout: Layout) -> Iterator[Layout]:
    for first in sorted(set(layout)):
        for second in sorted(set(_without(layout, first))):
            if (first.accelerator, first.role) != (second.accelerator, second.role) or second < first:
                continue
            for tp, pp in space.of_size(first.accelerator, first.accelerators + second.accelerators):
                yield (*_without(layout, first, second), Group(first.accelerator, tp, pp, first.role))


def _add(space: Space, layout: Layout) -> Iterator[Layout]:
    roles = {group.role for group in layout}
    for group in space.groups():
        if group.role in roles:
            yield (*layout, group)


_MOVERS = {"flip": _flip, "reshape": _reshape, "split": _split, "merge": _merge, "add": _add}


@dataclass
class Ladder:
    """Score of layouts: the highest rung of a ladder of rates at which the objective is attained, and attainment on the next.

    Each run has the same random numbers for every layout, and is long enough that what it cannot serve is late. A layout is climbed
    from where the best so far stands, so that most need two or three runs.
    """

    space: Space
    trial: Trial
    base_per_s: float
    step: float
    scores: dict[Layout, tuple[int, float]] = field(default_factory=dict)
    runs: int = 0
    _from: int = 0

    def rate(self, rung: int) -> float:
        """Of a rung [1/s]."""
        return float(self.base_per_s * self.step**rung)

    def score(self, layout: Layout) -> tuple[int, float]:
        """Highest rung that the layout keeps, and its attainment one rung above; higher is better."""
        if layout in self.scores:
            return self.scores[layout]
        found = self._climbed(layout)
        self.scores[layout] = found
        if found == max(self.scores.values()):
            self._from = found[0]
            self.trial.notice(f"{described(layout)}: {show(self.rate(found[0]), 'requests/s')}")
        return found

    def _climbed(self, layout: Layout) -> tuple[int, float]:
        """From the best rung so far up or down in steps that double, then by bisection between what holds and what does not."""
        shares: dict[int, float] = {}

        def holds(rung: int) -> bool:
            target, shares[rung] = self._attained(layout, rung)
            return shares[rung] >= target

        low = high = self._from
        stride = 1
        if holds(low):
            while holds(high := low + stride) and high < _RUNGS:
                low, stride = high, 2 * stride
        else:
            while not holds(low := high - stride):
                high, stride = low, 2 * stride
                if low < -_RUNGS:
                    return low, shares[low]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low, shares[high]

    def _attained(self, layout: Layout, rung: int) -> tuple[float, float]:
        self.runs += 1
        site = self.space.site
        loaded = with_pools(at_rate(site.loaded, self.rate(rung), self.trial), site.pools(layout))
        judgement = judge(loaded, confidence=self.trial.confidence, force=True)
        return judgement.target, judgement.attainment[0]


def enumerated(ladder: Ladder) -> Layout:
    """The best of all layouts into which no further group fits.

    Raises
    ------
    InputError
        If there is none, or there are too many.
    """
    layouts = list(ladder.space.all())
    if not layouts:
        raise InputError(_none(ladder.space))
    return max(layouts, key=lambda layout: (ladder.score(layout), layout))


def tabu(ladder: Ladder, moves: tuple[Move, ...], steps: int, patience: int = 3, start: Layout = ()) -> Layout:
    """The best layout of a tabu search: always on to the best neighbour that was not visited, however much worse it is.

    From the smallest groups that fit, all mixed and, if roles may differ, prefill and decode in turn; or from `start`. A search
    ends after `steps`, or after `patience` of them that found nothing better.

    Raises
    ------
    InputError
        If there is no layout to start from.

    References
    ----------
    Y. Jiang et al., "ThunderServe: High-performance and Cost-efficient LLM Serving in Cloud Environments", MLSys 2025; Y. Jiang
    et al., "HexGen: Generative Inference of Large Language Model over Heterogeneous Environment", ICML 2024 (its genetic search has
    the same moves: split, merge, swap).
    """
    space = ladder.space
    starts = [start] if start else [s for role in space.roles if role != "decode" and (s := space.start(role))]
    if not starts:
        raise InputError(_none(space))
    best: Layout = starts[0]
    for first in starts:
        here, visited, idle = first, {first}, 0
        if ladder.score(here) > ladder.score(best):
            best = here
        for _ in range(steps):
            options = [layout for layout in space.neighbours(here, moves) if layout not in visited]
            if not options or idle >= patience:
                break
            here = max(options, key=lambda layout: (ladder.score(layout), layout))
            visited.add(here)
            idle += 1
            if ladder.score(here) > ladder.score(best):
                best, idle = here, 0
    return best


def _none(space: Space) -> Finding:
    have = ", ".join(f"{count} {name}" for name, count in space.stock.items())
    message = f"{space.site.template.llm} has no layout on {have} with these roles and parallelisms"
    return Finding(message, "problem.accelerators", hint="give more accelerators, or allow more parallelism")
