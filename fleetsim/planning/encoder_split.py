"""Which instances encode images, compute prompts and compute answers: xLLM's profiler for encode-prefill-decode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from fleetsim.errors import Finding, InputError
from fleetsim.planning.distserve import Trial, at_rate
from fleetsim.planning.judge import Confidence, judge
from fleetsim.planning.over_scenario import OverScenario, with_pools
from fleetsim.planning.parallelism import _proof
from fleetsim.planning.plan import require_slo
from fleetsim.planning.result import Plan
from fleetsim.planning.solve import Effort
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import Count, Number, SyntheticWorkload
from fleetsim.units import Seconds

Kind = Literal["together", "EP-D", "ED-P", "E-P-D"]
_LOWEST, _HIGHEST = -120, 120
"""Rungs of the ladder of rates at most, from the scenario's own rate."""


class Split(NamedTuple):
    """How many instances do what."""

    kind: Kind
    encode: int
    """Those that only encode."""
    prefill: int
    """Those for prompts; with EP-D they encode too. With `together` all of them, and they do everything."""
    decode: int
    """Those for answers; with ED-P they encode too."""

    def __str__(self) -> str:
        """Short: ``E-P-D 3 + 3 + 2``."""
        if self.kind == "together":
            return f"together {self.prefill}"
        counts = [self.encode, self.prefill, self.decode] if self.encode else [self.prefill, self.decode]
        return f"{self.kind} {' + '.join(map(str, counts))}"


def splits(instances: int) -> Iterator[Split]:
    """All that can be made of so many instances."""
    yield Split("together", 0, instances, 0)
    for prefill in range(1, instances):
        yield Split("EP-D", 0, prefill, instances - prefill)
        yield Split("ED-P", 0, prefill, instances - prefill)
    for encode in range(1, instances - 1):
        for prefill in range(1, instances - encode):
            yield Split("E-P-D", encode, prefill, instances - encode - prefill)


def pools_of(split: Split, block: dict[str, Any]) -> list[dict[str, Any]]:
    """A split as pools of a scenario, of instances like `block`, which has an encoder."""
    text = {key: value for key, value in block.items() if key != "encoder"}
    if split.kind == "together":
        return [{**block, "replicas": split.prefill}]
    prompts, answers = (block if split.kind == kind else text for kind in ("EP-D", "ED-P"))
    pools = [
        {**prompts, "name": "prompts", "role": "prefill", "replicas": split.prefill},
        {**answers, "name": "answers", "role": "decode", "replicas": split.decode},
    ]
    if split.encode:
        pools.insert(0, {**block, "name": "images", "role": "encode", "replicas": split.encode})
    return pools


class StatedEncoderSplit(OverScenario):
    """Roles of a pool's instances with images: which encode, compute prompts and compute answers, by simulation of the scenario.

    Rule: of all splits of the instances (together, EP-D, ED-P, E-P-D in all proportions) the one that keeps the scenario's
    objective at the highest Poisson rate. Each is tried, with the same random numbers, one rung of the ladder of rates above the
    best so far; only who holds there climbs on. The best is then judged with several seeds, and goes down the ladder until the
    objective holds.

    Charged: nothing; the report's profiler searches by bisection, whose order is not published.

    Source: xLLM Technical Report, arXiv:2510.14686.
    """

    kind: Literal["encoder-split"]
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = ("together", "EP-D", "ED-P", "E-P-D")
    """Kinds of splits that are tried."""
    requests: Count = 300
    """Of each run at least, …"""
    span: Seconds = 20.0
    """… and at least those of this time: some of the times that a request takes, or what is too much goes unnoticed."""
    tolerance: Annotated[Number, Field(gt=0, le=1)] = 0.05
    """Relative distance of two rates of the ladder."""
    confidence: Annotated[Number, Field(ge=0.5, lt=1)] = 0.95
    """Of the verdict about the best split."""
    max_seeds: Annotated[int, Field(ge=3, le=200, strict=True)] = 4
    """Its runs at each rate at most."""

    def solve(self, effort: Effort | None = None) -> Plan:  # noqa: ARG002 - simulations, no solver
        """Try all splits, then simulate the best with confidence."""
        loaded = self.loaded()
        require_slo(loaded)
        block, base_per_s = _instance(loaded), _rate_of(loaded)
        instances = loaded.scenario.pools[0].replicas
        trial = Trial(self.requests, self.span, self.tolerance, Confidence(self.confidence, 3, self.max_seeds))
        search = _Search(loaded, block, base_per_s, trial)
        tried = [split for split in splits(instances) if split.kind in self.kinds]
        if not tried:
            message = f"{instances} instances cannot be split in three"
            raise InputError(loaded.finding(("pools", 0, "replicas"), message, "give more, or name other kinds"))
        best, rung = search.best(tried)
        for _ in range(8):
            rate = search.rate(rung)
            judgement = judge(search.at(best, rate), confidence=trial.confidence)
            if judgement.met:
                break
            rung -= 1
        rows = [
            {"split": str(split), "requests/s": search.rate(found) if found is not None else 0.0}
            for split, found in sorted(
                search.rungs.items(), key=lambda item: _LOWEST if item[1] is None else item[1], reverse=True
            )
        ]
        figures = {
            "rate_per_s": rate,
            "instances": float(instances),
            "encode_instances": float(best.encode),
            "prefill_instances": float(best.prefill),
            "decode_instances": float(best.decode),
            "splits": float(len(tried)),
            "runs": float(search.runs),
        }
        note = (
            "rates of the table are those of one run each, and of splits that were the best when they were tried; 0: not above the "
            "best before it"
        )
        return Plan(
            "encoder-split",
            "optimal",
            rate,
            "requests/s",
            rate,
            {"pools": pools_of(best, block)},
            figures,
            tuple(rows[:10]),
            notes=(str(best), note),
            proof=_proof(judgement, trial.confidence, {"rate_per_s": rate}, [judgement.reason]),
        )


class _Search:
    """Climbs a ladder of rates with one split after the other."""

    def __init__(self, loaded: LoadedScenario, block: dict[str, Any], base_per_s: float, trial: Trial) -> None:
        self.loaded, self.block, self.base_per_s, self.trial = loaded, block, base_per_s, trial
        self.rungs: dict[Split, int | None] = {}
        """Highest rung that each split keeps, None where that is not above the best before it."""
        self.runs = 0

    def rate(self, rung: int) -> float:
        """Of a rung [1/s]."""
        return float(self.base_per_s * (1.0 + self.trial.tolerance) ** rung)

    def at(self, split: Split, rate_per_s: float) -> LoadedScenario:
        """The scenario with a split and a rate."""
        return with_pools(at_rate(self.loaded, rate_per_s, self.trial), pools_of(split, self.block))

    def best(self, tried: list[Split]) -> tuple[Split, int]:
        """The split that keeps the highest rung, the first of several, and that rung."""
        best, top = tried[0], self._first(tried[0])
        self.rungs[best] = top
        for split in tried[1:]:
            self.rungs[split] = None
            if self._holds(split, top + 1):
                best, top = split, self._climb(split, top + 1)
                self.rungs[split] = top
        return best, top

    def _first(self, split: Split) -> int:
        """Highest rung of the split that nobody came before."""
        low, stride = 0, 1
        while not self._holds(split, low):
            low, stride = low - stride, 2 * stride
            if low < _LOWEST:
                hint = "relax the limits or take faster instances"
                raise InputError(Finding(f"{split} keeps the objective at no rate", "problem.scenario", hint=hint))
        return self._climb(split, low)

    def _climb(self, split: Split, holds: int) -> int:
        """Highest rung from one that holds on, by steps that double and bisection."""
        low, high, stride = holds, holds + 1, 1
        while high < _HIGHEST and self._holds(split, high):
            low, stride = high, 2 * stride
            high = low + stride
        while high - low > 1:
            middle = (low + high) // 2
            if self._holds(split, middle):
                low = middle
            else:
                high = middle
        return low

    def _holds(self, split: Split, rung: int) -> bool:
        self.runs += 1
        judgement = judge(self.at(split, self.rate(rung)), confidence=Confidence(self.trial.confidence.level, 1, 1))
        return judgement.attainment[0] >= judgement.target


def _instance(loaded: LoadedScenario) -> dict[str, Any]:
    """The scenario's only pool, as what each of its instances can be."""
    pools = loaded.scenario.pools
    if len(pools) != 1 or pools[0].encoder is None or pools[0].role != "mixed":
        message = "a split is searched for the instances of one pool with an encoder that do everything"
        raise InputError(loaded.finding(("pools",), message, "give one pool with an `encoder` and no role"))
    return dict(pools[0].model_dump(mode="json", exclude_unset=True, exclude_none=True))


def _rate_of(loaded: LoadedScenario) -> float:
    """Where the ladder of rates begins [1/s]."""
    from fleetsim.planning.demand import demand_of

    workload = loaded.scenario.workload
    if isinstance(workload, SyntheticWorkload) and workload.images is None:
        raise InputError(loaded.finding(("workload",), "this workload has no images", "give it `images`"))
    return demand_of(loaded, 1, 1).mean_rate_per_s
