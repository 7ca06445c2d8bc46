"""Queues of groups in which nobody is late: a search by branch and bound for the integer program of QLM."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

_ROUNDING_S = 1e-9
GAP = 0.05
"""Relative distance to the least sum of ends that will do."""


class Program(NamedTuple):
    """Groups to be put into queues, each to be done in time, so that the queues end as early as they can."""

    models: Sequence[str]
    """LLM of each group, those with the earliest deadlines first."""
    place_s: Sequence[Sequence[float]]
    """Time of each group on each replica [s]; below 0 where it cannot run."""
    slack_s: Sequence[float]
    """Time within which each group must be done [s]."""
    runs_s: Sequence[float]
    """Time until each replica is free [s]."""
    lasts: Sequence[str]
    """LLM that each will hold then."""
    swaps_s: Sequence[dict[str, float]]
    """Time in which each changes to an LLM [s]."""


def assigned(program: Program, nodes: int) -> list[list[int]] | None:
    """Queues of groups in which none ends after its slack, and whose sum of ends is the least but for `GAP`.

    Groups are placed one after the other, at any place of any queue, the one that adds least to the ends first. What a group adds
    is never less than its time on the replica that suits it best, and a queue never gets shorter by one more group, so that
    branches which cannot come out better, or in which somebody is late, are not followed.

    Parameters
    ----------
    program : Program
        Whom to place.
    nodes : int
        Groups placed at most, over all branches; then the best queues so far count.

    Returns
    -------
    list of list of int, or None
        Groups of each replica in their order; None if no such queues were found.
    """
    return _Search(program, nodes).run()


class _Search:
    def __init__(self, program: Program, nodes: int) -> None:
        self.program = program
        self.left = nodes
        self.queues: list[list[int]] = [[] for _ in program.runs_s]
        self.ends_s = list(program.runs_s)
        self.best: list[list[int]] | None = None
        self.best_s = inf
        self.rest_s = [0.0]
        """From each group on: the least that all that are still to be placed can add [s]."""
        for times in reversed(program.place_s):
            self.rest_s.append(self.rest_s[-1] + min([time_s for time_s in times if time_s >= 0.0], default=inf))
        self.rest_s.reverse()
        self.kinds = [
            (
                program.runs_s[i],
                program.lasts[i],
                tuple(program.swaps_s[i].items()),
                tuple([times[i] for times in program.place_s]),
            )
            for i in range(len(program.runs_s))
        ]
        """Replicas that are alike: only one of those without a group is tried."""

    def run(self) -> list[list[int]] | None:
        if self.rest_s[0] < inf:  # else somebody can run nowhere
            self._place(0, sum(self.ends_s))
        return self.best

    def _place(self, group: int, total_s: float) -> None:
        """Place a group, and those behind it, where the ends of all queues add up to `total_s` so far."""
        if group == len(self.program.models):
            self.best, self.best_s = [list(queue) for queue in self.queues], total_s
            return
        for added_s, end_s, i, position in sorted(self._choices(group)):
            if total_s + added_s + self.rest_s[group + 1] >= self.best_s * (1.0 - GAP) or not self.left:
                return
            self.left -= 1
            before_s = self.ends_s[i]
            self.queues[i].insert(position, group)
            self.ends_s[i] = end_s
            self._place(group + 1, total_s + added_s)
            del self.queues[i][position]
            self.ends_s[i] = before_s

    def _choices(self, group: int) -> list[tuple[float, float, int, int]]:
        """What placing a group adds to the ends, its queue's end, the queue, and where in it, as far as nobody is late there."""
        found: list[tuple[float, float, int, int]] = []
        empty = set()
        for i, queue in enumerate(self.queues):
            if self.program.place_s[group][i] < 0.0:
                continue
            if not queue:
                if self.kinds[i] in empty:
                    continue
                empty.add(self.kinds[i])
            for position in range(len(queue), -1, -1):
                end_s = self._end_s(i, [*queue[:position], group, *queue[position:]])
                if end_s < inf:
                    found.append((end_s - self.ends_s[i], end_s, i, position))
        return found

    def _end_s(self, i: int, queue: Sequence[int]) -> float:
        """When a queue would be done; infinite if anybody in it would be late [s]."""
        models, place_s, slack_s, runs_s, lasts, swaps_s = self.program
        end_s, model = runs_s[i], lasts[i]
        for group in queue:
            if models[group] != model:
                model = models[group]
                end_s += swaps_s[i][model]
            end_s += place_s[group][i]
            if end_s > slack_s[group] + _ROUNDING_S:
                return inf
        return end_s
