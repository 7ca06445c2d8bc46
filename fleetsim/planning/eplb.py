"""Replicas of experts and where they lie, so that no accelerator has more to do than the others: EPLB, per accelerator."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from fleetsim.errors import Finding, InputError
from fleetsim.planning.result import Plan
from fleetsim.planning.solve import Effort
from fleetsim.scenario.schema import Block, Count, Number
from fleetsim.units import Bytes, Seconds

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
_GOOD_S = 0.02
"""Time of a plan that earns the full time score (the published evaluator's)."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where experts may lie."""

    accelerators: int
    slots: int
    """Replicas of experts in one layer, over all accelerators."""
    nodes: int = 1
    groups: int = 1
    """Groups of experts that routing visits together; each lies on one node."""

    @property
    def each(self) -> int:
        """Slots of one accelerator in one layer."""
        return self.slots // self.accelerators


Balancer = Callable[[Floats, Cluster], Integers]
"""Loads [layers, experts] to the expert of every slot [layers, slots]; the slots of an accelerator stand together."""


def replicate(load: Floats, slots: int) -> Integers:
    """Replicas of each expert: always one more of the one whose replicas have most to do.

    No other way to give out so many has a smaller largest load of a replica.
    """
    counts = np.ones(len(load), dtype=np.int64)
    heap = [(-float(value), expert) for expert, value in enumerate(load)]
    heapq.heapify(heap)
    for _ in range(slots - len(load)):
        _, expert = heap[0]
        counts[expert] += 1
        heapq.heapreplace(heap, (-float(load[expert]) / int(counts[expert]), expert))
    return counts


def pack(weights: Floats, packs: int) -> Integers:
    """Pack of each item, equally many in each: heaviest first, to the lightest pack with room (LPT)."""
    room, total = [len(weights) // packs] * packs, [0.0] * packs
    chosen = np.empty(len(weights), dtype=np.int64)
    for item in np.argsort(-weights, kind="stable").tolist():
        best = min((k for k in range(packs) if room[k]), key=lambda k: total[k])
        chosen[item] = best
        room[best] -= 1
        total[best] += float(weights[item])
    return chosen


def _laid_out(load: Floats, experts: Integers, slots: int, accelerators: int) -> Integers:
    """Experts of the slots of some accelerators, replicated by load and packed."""
    counts = replicate(load[experts], slots)
    items = np.repeat(experts, counts)
    weights = np.repeat(load[experts] / counts, counts)
    return items[np.argsort(pack(weights, accelerators), kind="stable")]


def greedy(loads: Floats, cluster: Cluster) -> Integers:
    """Replicate and pack over all accelerators, whatever the nodes."""
    experts = np.arange(loads.shape[1])
    return np.array([_laid_out(load, experts, cluster.slots, cluster.accelerators) for load in loads])


def hierarchical(loads: Floats, cluster: Cluster) -> Integers:
    """The published baseline: groups to nodes, then replicas within each node, then replicas to its accelerators.

    Where groups or accelerators cannot be divided by nodes, `greedy`.

    References
    ----------
    deepseek-ai/EPLB; scored as in "Barbarians at the Gate: How AI is Upending Systems Research", arXiv:2510.06189, but on the
    accelerators, not on their slots.
    """
    nodes, groups, experts = cluster.nodes, cluster.groups, loads.shape[1]
    if groups % nodes or cluster.accelerators % nodes or experts % groups or cluster.slots % nodes:
        return greedy(loads, cluster)
    size, laid = experts // groups, []
    for load in loads:
        node_of = pack(load.reshape(groups, size).sum(axis=1), nodes)
        parts = []
        for node in range(nodes):
            mine = np.concatenate([np.arange(g * size, (g + 1) * size) for g in np.flatnonzero(node_of == node)])
            parts.append(_laid_out(load, mine, cluster.slots // nodes, cluster.accelerators // nodes))
        laid.append(np.concatenate(parts))
    return np.array(laid)


BALANCERS: dict[str, Balancer] = {"hierarchical": hierarchical, "greedy": greedy}


def require_valid(plan: Integers, loads: Floats, cluster: Cluster) -> None:
    """Refuse a plan that leaves an expert out, or does not say the expert of every slot.

    Raises
    ------
    ValueError
        Which layer, and what is wrong with it.
    """
    layers, experts = loads.shape
    if plan.shape != (layers, cluster.slots):
        raise ValueError(f"a plan of shape {plan.shape} for {layers} layers of {cluster.slots} slots")
    for layer, slots in enumerate(plan):
        if slots.min() < 0 or slots.max() >= experts:
            raise ValueError(f"layer {layer} has an expert that there is not")
        if len(np.unique(slots)) < experts:
            raise ValueError(f"layer {layer} leaves out {experts - len(np.unique(slots))} experts")


def loads_of(plan: Integers, loads: Floats, cluster: Cluster) -> tuple[Floats, Floats]:
    """Load of each accelerator [layers, accelerators] and of each slot [layers, slots]; replicas share evenly."""
    slots = np.empty(plan.shape)
    for layer, (mine, load) in enumerate(zip(plan, loads, strict=True)):
        counts = np.bincount(mine, minlength=len(load))
        slots[layer] = load[mine] / counts[mine]
    return slots.reshape(len(plan), cluster.accelerators, cluster.each).sum(axis=2), slots


@dataclass(frozen=True, slots=True)
class Balance:
    """What a balancer is worth."""

    per_accelerator: float
    """Mean over windows and layers of mean over largest load of an accelerator."""
    per_slot: float
    """Sum over layers of mean over sum of largest loads of slots, averaged over windows: the published measure."""
    moved_ratio: float
    """Share of slots whose expert was not on that accelerator in the window before."""


def evaluate(balancer: Balancer, windows: Sequence[Floats], cluster: Cluster) -> Balance:
    """Plan on each window, score on the next: a balancer never sees what it is scored on.

    Raises
    ------
    ValueError
        If a plan is not valid.
    """
    per_accelerator, per_slot, moved = [], [], []
    before: Integers | None = None
    for seen, following in pairwise(windows):
        plan = np.asarray(balancer(seen.copy(), cluster), dtype=np.int64)
        require_valid(plan, seen, cluster)
        accelerators, slots = loads_of(plan, following, cluster)
        most = accelerators.max(axis=1)
        per_accelerator.append(
            float(np.where(most > 0, accelerators.mean(axis=1) / np.where(most > 0, most, 1.0), 1.0).mean())
        )
        largest = float(slots.max(axis=1).sum())
        per_slot.append(float(slots.mean(axis=1).sum()) / largest if largest else 1.0)
        if before is not None:
            moved.append(_moved(before, plan, cluster))
        before = plan
    return Balance(float(np.mean(per_accelerator)), float(np.mean(per_slot)), float(np.mean(moved)) if moved else 0.0)


def _moved(before: Integers, after: Integers, cluster: Cluster) -> float:
    """Share of slots whose expert has to come to their accelerator."""
    shape = (-1, cluster.accelerators, cluster.each)
    new = 0
    for old_layer, new_layer in zip(before.reshape(shape), after.reshape(shape), strict=True):
        for had, has in zip(old_layer, new_layer, strict=True):
            new += len(set(has.tolist()) - set(had.tolist()))
    return new / after.size


class DrawnLoads(Block):
    """Loads of experts that are drawn: popularities as in a Zipf law that drift from window to window."""

    layers: Count = 8
    experts: Count = 64
    windows: Annotated[int, Field(ge=2, strict=True)] = 10
    zipf: Annotated[Number, Field(ge=0, le=5)] = 0.8
    """Exponent of the popularities; the default is an assumption."""
    drift: Annotated[Number, Field(ge=0, le=1)] = 0.95
    """Correlation of log-popularities with the window before (AR(1)); 1: they stay. The default is an assumption."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0

    def draw(self) -> list[Floats]:
        """Loads of each window [layers, experts], which add up to 1 in every layer."""
        rng = np.random.default_rng(self.seed)
        ranks = -self.zipf * np.log(np.arange(1, self.experts + 1))
        spread = float(ranks.std())
        state = np.array([rng.permutation(ranks - ranks.mean()) for _ in range(self.layers)])
        windows = []
        for _ in range(self.windows):
            weights = np.exp(state)
            windows.append(weights / weights.sum(axis=1, keepdims=True))
            noise = rng.standard_normal(state.shape) * spread * np.sqrt(1.0 - self.drift**2)
            state = self.drift * state + noise
        return windows


Row = tuple[Annotated[Number, Field(ge=0)], ...]


class StatedEplb(Block):
    """Replicas of experts and their places, planned on one window of loads and scored on the next."""

    kind: Literal["eplb"]
    accelerators: Count
    """That there are."""
    slots: Count
    """Replicas of experts in one layer, over all accelerators."""
    nodes: Count = 1
    """Servers of equally many accelerators."""
    groups: Count = 1
    """Groups of experts, each of which lies on one node (hierarchical)."""
    method: Literal["hierarchical", "greedy"] = "hierarchical"
    """The published baseline, or replicas over all accelerators."""
    loads: DrawnLoads | tuple[tuple[Row, ...], ...] = DrawnLoads()
    """Drawn, or loads of each window, layer and expert."""
    expert_bytes: Bytes | None = None
    """Of one expert: what moves between plans is then told in bytes."""
    time: Seconds | None = None
    """Time that a plan takes: with it there is the published score of both, half for balance and half for min(1, 0.02 s / time). It
    is stated, since times of this machine are no result."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.slots % self.accelerators:
            raise ValueError(f"{self.slots} slots cannot be divided by {self.accelerators} accelerators")
        if not isinstance(self.loads, DrawnLoads):
            if len(self.loads) < 2:
                raise ValueError("loads need two windows at least: a plan is made on one and scored on the next")
            shapes = {(len(window), *(len(layer) for layer in window)) for window in self.loads}
            if len(shapes) > 1 or len(set(next(iter(shapes))[1:])) != 1:
                raise ValueError("all windows need as many layers, and all layers as many experts")
        experts = self._windows()[0].shape[1]
        if self.slots < experts:
            raise ValueError(f"{self.slots} slots for {experts} experts: each needs one")
        return self

    def _windows(self) -> list[Floats]:
        if isinstance(self.loads, DrawnLoads):
            return self.loads.draw()
        return [np.array(window, dtype=np.float64) for window in self.loads]

    def solve(self, effort: Effort | None = None) -> Plan:  # noqa: ARG002 - a rule, no solver
        """Balance every window and score it on the next."""
        windows = self._windows()
        if not all(window.sum() > 0 for window in windows):
            raise InputError(Finding("a window has no load", "problem.loads", hint="leave it out"))
        cluster = Cluster(self.accelerators, self.slots, self.nodes, self.groups)
        found = evaluate(BALANCERS[self.method], windows, cluster)
        plan = BALANCERS[self.method](windows[-1], cluster)
        figures = {
            "balance_ratio": found.per_accelerator,
            "balance_per_slot_ratio": found.per_slot,
            "moved_ratio": found.moved_ratio,
        }
        if self.expert_bytes is not None:
            figures["moved_bytes"] = found.moved_ratio * plan.size * self.expert_bytes
        if self.time is not None:
            figures["score"] = 0.5 * found.per_accelerator + 0.5 * min(1.0, _GOOD_S / self.time)
        accelerators, _ = loads_of(plan, windows[-1], cluster)
        rows = [
            {
                "layer": layer,
                "accelerator": int(load.argmax()),
                "its share": float(load.max() / load.sum()),
                "its experts": " ".join(
                    map(str, sorted(plan[layer].reshape(-1, cluster.each)[int(load.argmax())].tolist()))
                ),
            }
            for layer, load in enumerate(accelerators)
        ]
        notes = [
            "planned on each window, scored on the next; the table shows the busiest accelerators of the last plan"
        ]
        ratio = found.per_accelerator
        return Plan(
            "eplb",
            "heuristic",
            ratio,
            "of the largest load in the mean",
            1.0,
            {},
            figures,
            tuple(rows),
            notes=tuple(notes),
        )
