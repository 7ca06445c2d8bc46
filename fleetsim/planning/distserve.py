"""DistServe: parallelism of prompts and of answers by simulation, and how many replicas of either a rate needs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any, Literal

from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.errors import Finding, InputError
from fleetsim.experiment.replicate import Notice
from fleetsim.planning.find_rate import search
from fleetsim.planning.judge import Confidence, Judgement, judge
from fleetsim.planning.layout import Group, Layout, Role, Site, described
from fleetsim.planning.over_scenario import with_pools
from fleetsim.planning.plan import require_slo
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import SyntheticWorkload, TraceWorkload
from fleetsim.units import show

_IDEAL = 8
"""Replicas of a side that must not be the bottleneck, each with the adapters of its server."""
_SLOW = 32.0
"""A group that misses its limit at its expected rate over this misses it at any."""
_ROUNDS = 8
_FREE_STEPS = {
    "model": "affine",
    "step": "1 us",
    "prompt_token": "0 s",
    "prompt_pair": "0 s",
    "context_token": "0 s",
    "sequence": "0 s",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """How sure searches are, and how long their runs."""

    requests: int
    """Of each run at least, …"""
    span_s: float
    """… and at least those of this time: a group that is fast takes more than it can serve for a while."""
    tolerance: float
    confidence: Confidence
    notice: Notice = lambda _: None

    def count(self, rate_per_s: float) -> int:
        """Requests of a run."""
        return max(self.requests, ceil(rate_per_s * self.span_s))


@dataclass(frozen=True, slots=True)
class Goodput:
    """The highest rate that a group, or a pair, was shown to serve within its limits."""

    groups: Layout
    rate_per_s: float
    """Of all of it; 0 if it keeps the limits at no rate."""
    price_usd_per_h: float

    @property
    def per_usd(self) -> float:
        """Requests for a dollar: what is compared. With one kind of accelerator the same as the rate of one accelerator."""
        return self.rate_per_s * 3600.0 / self.price_usd_per_h

    @property
    def per_accelerator(self) -> float:
        """Rate of one accelerator [1/s]."""
        return self.rate_per_s / sum(group.accelerators for group in self.groups)


def first_token_mean_s(service_s: float, rate_per_s: float, speed_up: float = 1.0, stages: int = 1) -> float:
    """Mean time to the first token of a prefill replica, as an M/D/1 queue: DistServe's equations 1 to 3.

    Parameters
    ----------
    service_s : float
        Time of a prompt on one accelerator, D [s].
    rate_per_s : float
        Poisson arrivals, R [1/s].
    speed_up : float
        Of tensor parallelism, K: ``D/K + R D^2 / (2 K (K - R D))``.
    stages : int
        Of a pipeline, S, whose slowest takes ``D / S``: ``D + R D^2 / (2 S (S - R D))``.

    Returns
    -------
    float
        Infinite where the queue grows without end.
    """
    if stages > 1 and speed_up != 1.0:
        raise ValueError("the formulas are for tensor parallelism or for a pipeline")
    work = rate_per_s * service_s
    servers = speed_up if stages == 1 else float(stages)
    if work >= servers:
        return float("inf")
    base = service_s / speed_up if stages == 1 else service_s
    return base + rate_per_s * service_s**2 / (2.0 * servers * (servers - work))


def goodput_of(site: Site, group: Group, trial: Trial, near: float) -> Goodput:
    """Highest rate of a group that computes prompts only, or answers only, by bisection.

    The other side is ideal: replicas whose steps take a microsecond and whose caches never fill up. So a prefill group is held by
    the limit to the first token alone, a decode group by the limit between tokens; keys and values move over the network.
    """
    slo = require_slo(site.loaded)
    limits: dict[str, Any] = {"attainment": slo.attainment}
    name = "ttft" if group.role == "prefill" else "tpot"
    value = getattr(slo, name)
    if value is None:
        message = f"there is no slo.{name}, and so no rate that a {group.role} group could not serve"
        raise InputError(site.loaded.finding(("slo",), message, f"give slo.{name}"))
    limits[name] = f"{value!r} s"
    ideal: dict[str, Any] = site.pool(Group(group.accelerator, 1, 1, _other(group.role)), _IDEAL)
    ideal["name"] = "ideal"
    ideal["engine"] = {
        "kind": "generic",
        "prefix_cache": False,
        "kv": {"capacity_tokens": 10**8},
        "step_time": _FREE_STEPS,
    }
    loaded = with_pools(site.loaded, [site.pool(group, 1), ideal], {"slo": limits, "gateway": {"router": "distserve"}})
    return Goodput((group,), _highest(loaded, trial, near), site.price((group,)))


def _other(role: Role) -> Role:
    return "decode" if role == "prefill" else "prefill"


def pair_goodput(site: Site, prefill: Group, decode: Group, trial: Trial, near: float) -> Goodput:
    """Highest rate of a prefill and a decode group that stand in one server."""
    loaded = with_pools(site.loaded, near_pools(site, (prefill, decode)), {"gateway": {"router": "distserve"}})
    return Goodput((prefill, decode), _highest(loaded, trial, near), site.price((prefill, decode)))


def near_pools(site: Site, layout: Layout) -> list[dict[str, Any]]:
    """Pools whose keys and values move over the links between accelerators, as fast as an accelerator's host link lets them."""
    return [
        pool
        for group in sorted(set(layout))
        for pool in site.pools([group] * layout.count(group), load_accelerator(group.accelerator).link)
    ]


def _highest(loaded: LoadedScenario, trial: Trial, near: float) -> float:
    """Bisected rate, from an expected one; 0 where load is not what breaks the limits."""
    start = at_rate(loaded, near, trial)
    slow = near / _SLOW
    if not judge(at_rate(loaded, slow, trial), confidence=trial.confidence, force=True).met:
        return 0.0
    return search(start, trial.tolerance, trial.confidence, trial.count).rate_per_s


def at_rate(loaded: LoadedScenario, rate_per_s: float, trial: Trial) -> LoadedScenario:
    """The scenario with Poisson arrivals of this rate, for as long as a trial; a trace is replayed that much faster or slower."""
    from fleetsim.planning.demand import demand_of
    from fleetsim.scenario.load import load_mapping

    workload = loaded.scenario.workload
    mapping = loaded.resolved
    if isinstance(workload, SyntheticWorkload):
        arrivals = {"process": "poisson", "rate": f"{rate_per_s!r} req/s"}
        own = {"arrivals": arrivals, "requests": trial.count(rate_per_s)}
        mapping = {**mapping, "workload": {**mapping["workload"], **own}}
        mapping["workload"].pop("duration", None)
    elif isinstance(workload, TraceWorkload) and workload.rate_scaling == "time":
        scale = workload.rate_scale * rate_per_s / demand_of(loaded, 1, 1).mean_rate_per_s
        own = {"rate_scale": scale, "limit": trial.count(rate_per_s)}
        mapping = {**mapping, "workload": {**mapping["workload"], **own}}
    else:
        message = "this workload has no single rate that could be set"
        raise InputError(loaded.finding(("workload",), message, "take a synthetic workload, or a trace scaled in time"))
    return load_mapping(mapping, base_dir=loaded.base_dir)


@dataclass(frozen=True, slots=True)
class Placement:
    """What DistServe's search found."""

    parts: tuple[Goodput, ...]
    """What was tried, best first."""
    layout: Layout
    chosen: tuple[Goodput, ...]
    """The prefill and the decode group, or the pair."""
    near: bool


def place(
    site: Site,
    tps: tuple[int, ...],
    pps: tuple[int, ...],
    rate_per_s: float,
    trial: Trial,
    where: Literal["anywhere", "one server"] = "anywhere",
) -> Placement:
    """The published search.

    ``anywhere`` (high node affinity): every tensor degree and number of stages of either side is simulated by itself, and the rate
    of a dollar bisected; ``n = ceil(R / g_prefill)`` replicas of the best prefill group and ``m = ceil(R / g_decode)`` of the best
    decode group serve the rate R. ``one server`` (low affinity): pairs with the same number of stages whose stages fit into one
    server together are simulated, and ``ceil(R / g)`` of the best pair are bought.

    Raises
    ------
    InputError
        If no parallelism keeps the limits.

    References
    ----------
    Y. Zhong et al., "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model Serving", OSDI 2024,
    section 4, algorithms 1 and 2.
    """
    shapes = {name: site.shapes(name, tps, pps) for name in site.prices}
    if not any(shapes.values()):
        message = f"{site.template.llm} fits on {', '.join(shapes)} with none of tp {tps} and pp {pps}"
        raise InputError(Finding(message, "problem.tp", hint="allow more of either, or offer more memory"))
    found: list[Goodput] = []
    expected = rate_per_s
    if where == "one server":
        for name, options in shapes.items():
            room = load_accelerator(name).per_node
            for (tp, pp), (other, stages) in product(options, options):
                if pp != stages or tp + other > room:
                    continue
                pair = Group(name, tp, pp, "prefill"), Group(name, other, pp, "decode")
                found.append(pair_goodput(site, *pair, trial, expected))
                _tell(trial, found[-1])
                expected = found[-1].rate_per_s or expected
        best = max(found, key=lambda g: g.per_usd, default=None)
        if best is None or not best.rate_per_s:
            raise InputError(_nothing("pair in one server"))
        count = ceil(rate_per_s / best.rate_per_s)
        return Placement(_sorted(found), tuple(sorted(best.groups * count)), (best,), True)
    chosen = []
    layout: list[Group] = []
    for role in ("prefill", "decode"):
        mine = []
        for name, options in shapes.items():
            for tp, pp in options:
                group = Group(name, tp, pp, role)
                mine.append(goodput_of(site, group, trial, expected))
                _tell(trial, mine[-1])
                expected = mine[-1].rate_per_s or expected
        best = max(mine, key=lambda g: g.per_usd)
        if not best.rate_per_s:
            raise InputError(_nothing(f"{role} group"))
        found += mine
        chosen.append(best)
        layout += list(best.groups) * ceil(rate_per_s / best.rate_per_s)
    return Placement(_sorted(found), tuple(sorted(layout)), tuple(chosen), False)


def _nothing(what: str) -> Finding:
    hint = "relax the limit, allow more parallelism, or offer faster accelerators"
    return Finding(f"no {what} keeps its limit at any rate", "slo", hint=hint)


def _sorted(found: list[Goodput]) -> tuple[Goodput, ...]:
    return tuple(sorted(found, key=lambda g: -g.per_usd))


def _tell(trial: Trial, goodput: Goodput) -> None:
    trial.notice(f"{described(goodput.groups)}: {show(goodput.rate_per_s, 'requests/s')}")


def prove(site: Site, placement: Placement, rate_per_s: float, trial: Trial) -> tuple[Layout, Judgement, list[str]]:
    """Simulate both sides together at the rate, and add a group of the side whose limit is missed until both limits hold."""
    layout, lines = placement.layout, list[str]()
    base = at_rate(site.loaded, rate_per_s, trial)
    while True:
        pools = near_pools(site, layout) if placement.near else site.pools(layout)
        loaded = with_pools(base, pools, {"gateway": {"router": "distserve"}})
        judgement = judge(loaded, confidence=trial.confidence)
        lines.append(f"{described(layout)}: {judgement.verdict}, {judgement.reason}")
        trial.notice(lines[-1])
        if judgement.met or len(lines) >= _ROUNDS:
            return layout, judgement, lines
        if placement.near:
            more = placement.chosen[0].groups
        else:
            late = judgement.missed_by.get("ttft", 0.0) >= judgement.missed_by.get("tpot", 0.0)
            more = placement.chosen[0 if late else 1].groups
        layout = tuple(sorted((*layout, *more)))
