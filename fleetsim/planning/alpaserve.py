"""AlpaServe: several models share groups of accelerators, each a pipeline; a greedy search that simulates places them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fleetsim.errors import Finding, InputError
from fleetsim.planning.result import Plan
from fleetsim.planning.solve import Effort
from fleetsim.scenario.schema import Block, Count, Flag, Number
from fleetsim.units import PerSecond, Seconds

Text = Annotated[str, Field(min_length=1)]
Above = Annotated[Number, Field(gt=0)]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
_FULL = 1e-9


class SharedModel(Block):
    """A model whose requests take one pass each: a classifier, an encoder, or the prompts of an LLM."""

    size: Above
    """Memory of its weights [GB]."""
    latency: Seconds
    """Of a request on one accelerator."""
    rate: PerSecond
    """Mean arrivals."""
    cv: Annotated[Number, Field(gt=0)] = 1.0
    """Coefficient of variation of gaps between arrivals, which are gamma-distributed; 1 is Poisson."""
    limit: Seconds
    """A request must be done after this time, or it is refused on arrival."""


@dataclass(frozen=True, slots=True, order=True)
class Pipeline:
    """Accelerators that serve the same models, in stages of some ranks each."""

    tp: int
    pp: int
    models: tuple[int, ...] = ()
    """Which models lie there."""

    @property
    def accelerators(self) -> int:
        """Of the group."""
        return self.tp * self.pp

    def with_model(self, model: int) -> Pipeline:
        """The same group with one model more."""
        return Pipeline(self.tp, self.pp, tuple(sorted((*self.models, model))))


Placed = tuple[Pipeline, ...]


def stage_s(latency_s: float, tp: int, pp: int, tensor_efficiency: float, pipeline_overhead: float) -> float:
    """Time of a request in one stage [s].

    Tensor parallelism over `tp` ranks is ``tp x efficiency`` times as fast (1 with one rank). A pipeline's stages are equal, and
    take `pipeline_overhead` times the whole together: uneven layers and transfers.
    """
    speed_up = tp * tensor_efficiency if tp > 1 else 1.0
    return latency_s / speed_up * (pipeline_overhead if pp > 1 else 1.0) / pp


def served(
    pipelines: Sequence[Pipeline], stages_s: Floats, limits_s: Sequence[float], arrivals_s: Floats, models: Integers
) -> Floats:
    """Simulate pipelines that are first come, first served.

    A request goes to the pipeline that holds its model and has the fewest requests waiting for its first stage, the first of them
    where several have. All times are known when it arrives, so that one that would be late is refused at once and delays nobody.

    Parameters
    ----------
    pipelines : sequence of Pipeline
        The groups.
    stages_s : float array, shape (pipelines, models)
        Time in each stage [s].
    limits_s : sequence of float
        Of each model [s]; infinite: never refused.
    arrivals_s : float array, shape (requests,)
        In order [s].
    models : int array, shape (requests,)
        Of each request.

    Returns
    -------
    float array, shape (requests,)
        Time from arrival to end [s]; NaN of those refused.
    """
    hosts = [[g for g, one in enumerate(pipelines) if m in one.models] for m in range(stages_s.shape[1])]
    free = [[0.0] * one.pp for one in pipelines]
    waiting: list[deque[float]] = [deque() for _ in pipelines]
    took = np.full(len(arrivals_s), np.nan)
    stages = stages_s.tolist()
    for number, (now, model) in enumerate(zip(arrivals_s.tolist(), models.tolist(), strict=True)):
        best, fewest = -1, 0
        for g in hosts[model]:
            queue = waiting[g]
            while queue and queue[0] <= now:
                queue.popleft()
            if best < 0 or len(queue) < fewest:
                best, fewest = g, len(queue)
        if best < 0:
            continue
        step, at = stages[best][model], now
        starts = []
        for ready in free[best]:
            at = max(at, ready)
            starts.append(at)
            at += step
        if at - now > limits_s[model]:
            continue
        took[number] = at - now
        waiting[best].append(starts[0])
        free[best] = [start + step for start in starts]
    return took


class StatedAlpaServe(Block):
    """Which models lie on which groups of accelerators, and how each group is cut, so that most requests are in time."""

    kind: Literal["alpaserve"]
    accelerators: Count
    """That there are, all alike."""
    memory: Above = 80.0
    """Of each, for weights [GB]."""
    models: Annotated[dict[Text, SharedModel], Field(min_length=1)]
    """What is served, by name."""
    tensor_efficiency: Annotated[Number, Field(gt=0, le=1)] = 0.8
    """Speed-up of tensor parallelism over its ranks; the default is an assumption."""
    pipeline_overhead: Annotated[Number, Field(ge=1)] = 1.1
    """Time of a request in all stages over its time without a pipeline; the default is an assumption."""
    group_sizes: tuple[Count, ...] = ()
    """Sizes that are tried; default: all powers of two that divide the accelerators."""
    tensor: Flag = True
    """Whether groups may use tensor parallelism too."""
    beam: Count = 2
    """Placements that the search keeps at each step."""
    requests: Count = 4000
    """Of the simulation, all models together."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    """Of the arrivals: the same for all placements."""
    method: Literal["greedy", "exhaustive", "dedicated"] = "greedy"
    """The published search; all placements (small cases); or every model on accelerators of its own, one each in turn."""

    def arrivals(self) -> tuple[Floats, Integers]:
        """Times and models of requests."""
        rng = np.random.default_rng(self.seed)
        span_s = self.requests / sum(model.rate for model in self.models.values())
        times, owners = [], []
        for number, model in enumerate(self.models.values()):
            shape = 1.0 / model.cv**2
            count = int(span_s * model.rate * 1.5 + 40 * max(model.cv, 1.0) ** 2)
            at = np.cumsum(rng.gamma(shape, 1.0 / (shape * model.rate), count))
            times.append(at[at <= span_s])
            owners.append(np.full(len(times[-1]), number))
        all_times, all_owners = np.concatenate(times), np.concatenate(owners)
        order = np.argsort(all_times, kind="stable")
        return all_times[order], all_owners[order]

    def stages(self, pipelines: Placed) -> Floats:
        """Time in a stage, of each group and model [s]."""
        return np.array(
            [
                [
                    stage_s(m.latency, one.tp, one.pp, self.tensor_efficiency, self.pipeline_overhead)
                    for m in self.models.values()
                ]
                for one in pipelines
            ]
        )

    def attainment(self, pipelines: Placed, drawn: tuple[Floats, Integers]) -> float:
        """Share of requests in time."""
        limits = [model.limit for model in self.models.values()]
        took = served(pipelines, self.stages(pipelines), limits, *drawn)
        return float(np.isfinite(took).mean()) if len(took) else 1.0

    def has_room(self, pipeline: Pipeline) -> bool:
        """Whether its models fit; weights are cut evenly over all accelerators of a group."""
        sizes = [model.size for model in self.models.values()]
        return sum(sizes[m] for m in pipeline.models) <= pipeline.accelerators * self.memory + _FULL

    def empty_groups(self) -> Iterator[Placed]:
        """Divisions of the accelerators into equal groups of one shape, smaller groups first."""
        sizes = self.group_sizes or tuple(1 << k for k in range(self.accelerators.bit_length()))
        for size in sizes:
            if self.accelerators % size:
                continue
            for tp in [1 << k for k in range(size.bit_length())] if self.tensor else [1]:
                if size % tp == 0:
                    yield (Pipeline(tp, size // tp),) * (self.accelerators // size)

    def greedy(self, groups: Placed, drawn: tuple[Floats, Integers]) -> tuple[float, Placed]:
        """Add the replica of a model to a group that raises the simulated attainment most, and keep the `beam` best of each round.

        Ends when no model fits anywhere any more; the best placement on the way is the answer.
        """
        best = self.attainment(groups, drawn), groups
        beam = [best]
        seen: set[Placed] = {groups}
        while beam:
            options: dict[Placed, float] = {}
            for _, placed in beam:
                for g, model in product(range(len(placed)), range(len(self.models))):
                    if model in placed[g].models:
                        continue
                    more = tuple(sorted((*placed[:g], placed[g].with_model(model), *placed[g + 1 :])))
                    if more not in seen and self.has_room(placed[g].with_model(model)):
                        seen.add(more)
                        options[more] = self.attainment(more, drawn)
            beam = sorted(((share, placed) for placed, share in options.items()), reverse=True)[: self.beam]
            best = max([best, *beam], key=lambda one: one[0])
        return best

    def exhaustive(self, groups: Placed, drawn: tuple[Floats, Integers]) -> tuple[float, Placed]:
        """The best of all placements of models on these groups."""
        numbers = range(len(self.models))
        subsets = [c for count in range(len(self.models) + 1) for c in combinations(numbers, count)]
        best: tuple[float, Placed] = (-1.0, groups)
        for chosen in product(subsets, repeat=len(groups)):
            placed = tuple(Pipeline(one.tp, one.pp, models) for one, models in zip(groups, chosen, strict=True))
            if list(placed) == sorted(placed) and all(map(self.has_room, placed)):
                best = max(best, (self.attainment(placed, drawn), placed), key=lambda one: one[0])
        return best

    def dedicated(self, drawn: tuple[Floats, Integers]) -> tuple[float, Placed]:
        """Accelerators by turns to the models, each for one model alone."""
        count = len(self.models)
        placed = tuple(Pipeline(1, 1, (k % count,)) for k in range(self.accelerators))
        return (self.attainment(placed, drawn), placed) if all(map(self.has_room, placed)) else (0.0, placed)

    def solve(self, effort: Effort | None = None) -> Plan:  # noqa: ARG002 - simulations, no solver
        """Search.

        References
        ----------
        Z. Li et al., "AlpaServe: Statistical Multiplexing with Model Parallelism for Deep Learning Serving", OSDI 2023,
        algorithms 1 and 2 (without its buckets of models of like latency).
        """
        drawn = self.arrivals()
        alone = self.dedicated(drawn)
        found = [alone] if self.method == "dedicated" else []
        rows = []
        for groups in self.empty_groups() if self.method != "dedicated" else ():
            one = (self.greedy if self.method == "greedy" else self.exhaustive)(groups, drawn)
            found.append(one)
            rows.append(
                {
                    "groups": len(groups),
                    "tp": groups[0].tp,
                    "pp": groups[0].pp,
                    "in time": one[0],
                    "placement": _told(one[1]),
                }
            )
        share, placed = max(found, key=lambda one: one[0], default=(0.0, ()))
        if share <= 0.0:
            message = "no placement serves any request in time"
            hint = "give more memory or accelerators, or relax the limits"
            raise InputError(Finding(message, "problem.models", hint=hint))
        names = list(self.models)
        lost = [name for number, name in enumerate(names) if not any(number in one.models for one in placed)]
        notes = [f"{', '.join(lost)} lie nowhere: their requests are refused"] if lost else []
        notes += [f"models: {', '.join(f'{k} {name}' for k, name in enumerate(names))}"]
        figures = {
            "attainment_ratio": share,
            "attainment_dedicated_ratio": alone[0],
            "group_accelerators": float(placed[0].accelerators),
            "tp": float(placed[0].tp),
            "pp": float(placed[0].pp),
        }
        status = "optimal" if self.method == "exhaustive" else "heuristic"
        bound = share if self.method == "exhaustive" else 1.0
        rows = rows or [{"groups": len(placed), "tp": 1, "pp": 1, "in time": share, "placement": _told(placed)}]
        return Plan(
            "alpaserve", status, share, "of requests in time", bound, {}, figures, tuple(rows), notes=tuple(notes)
        )


def _told(placed: Placed) -> str:
    return " | ".join(" ".join(map(str, one.models)) or "–" for one in placed)
