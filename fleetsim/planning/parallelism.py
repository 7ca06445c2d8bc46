"""Which parallelism and which roles: one state (groups, their tensor degrees, stages and roles), several strategies."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import nan
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fleetsim.errors import Finding, InputError
from fleetsim.planning.demand import demand_of
from fleetsim.planning.distserve import Goodput, Trial, at_rate, near_pools, place, prove
from fleetsim.planning.judge import Confidence, Judgement, judge
from fleetsim.planning.layout import Group, Layout, Role, Site, site_of
from fleetsim.planning.layout_search import MOVES, Ladder, Move, Space, enumerated, tabu
from fleetsim.planning.over_scenario import OverScenario, with_pools
from fleetsim.planning.plan import require_slo
from fleetsim.planning.result import Plan, Proof
from fleetsim.planning.solve import Effort
from fleetsim.scenario.schema import Count, Number
from fleetsim.units import PerSecond, Seconds

Text = Annotated[str, Field(min_length=1)]


class StatedParallelism(OverScenario):
    """Tensor degrees, pipeline stages and roles of groups of accelerators, by simulation of the scenario."""

    kind: Literal["parallelism"]
    strategy: Literal["distserve", "distserve-near", "tabu", "enumerate"] = "distserve"
    """``distserve``: the best prefill and the best decode group by themselves, as many of either as the rate needs;
    ``distserve-near``: the best pair in one server; ``tabu``: the highest rate of a stock of accelerators by local search over
    groups and roles (ThunderServe, HexGen); ``enumerate``: the same by trying all layouts."""
    accelerators: dict[Text, Annotated[int, Field(ge=1, strict=True)] | None] = Field(default_factory=dict)
    """Kinds, and how many there are (all that the local search may use); default: those of the scenario's pools, without limit."""
    rate: PerSecond | None = None
    """To be served (DistServe); default: the scenario's own."""
    tp: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2, 4, 8)
    """Tensor degrees that are tried."""
    pp: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 2)
    """Numbers of pipeline stages that are tried."""
    roles: Literal["mixed", "apart", "any"] = "any"
    """Of groups in local searches: all do both, prompts and answers apart, or whichever is better."""
    moves: Annotated[tuple[Move, ...], Field(min_length=1)] = MOVES
    """Of the tabu search; ``flip`` alone is ThunderServe's light re-scheduling, from the scenario's own pools."""
    steps: Count = 12
    """Of the tabu search at most, from each start."""
    requests: Count = 300
    """Of each run at least, …"""
    span: Seconds = 20.0
    """… and at least those of this time: some of the times that a request takes, or what is too much goes unnoticed."""
    tolerance: Annotated[Number, Field(gt=0, le=1)] = 0.1
    """Relative width at which bisections end, and the step of the local search's ladder of rates."""
    confidence: Annotated[Number, Field(ge=0.5, lt=1)] = 0.95
    """Of verdicts about attainment."""
    max_seeds: Annotated[int, Field(ge=3, le=200, strict=True)] = 4
    """Runs of each rate at most."""

    @model_validator(mode="after")
    def _stocked(self) -> Self:
        endless = [name for name, count in self.accelerators.items() if count is None]
        if self.strategy in ("tabu", "enumerate") and (endless or not self.accelerators):
            raise ValueError(
                f"strategy {self.strategy} needs to know how many accelerators there are: name and count each"
            )
        return self

    def solve(self, effort: Effort | None = None) -> Plan:  # noqa: ARG002 - simulations, no solver
        """Search, then simulate what was found."""
        loaded = self.loaded()
        require_slo(loaded)
        site = site_of(loaded, self.accelerators)
        sure = Confidence(self.confidence, 3, self.max_seeds)
        trial = Trial(self.requests, self.span, self.tolerance, sure)
        if self.strategy in ("tabu", "enumerate"):
            return self._searched(site, trial)
        return self._placed(site, trial)

    # --- DistServe ----------------------------------------------------------------------------------------------------

    def _placed(self, site: Site, trial: Trial) -> Plan:
        rate = self.rate or demand_of(site.loaded, 1, 1).mean_rate_per_s
        near = self.strategy == "distserve-near"
        found = place(site, self.tp, self.pp, rate, trial, "one server" if near else "anywhere")
        layout, judgement, lines = prove(site, found, rate, trial)
        self._require_stock(layout)
        cost = site.price(layout)
        least = sum(part.price_usd_per_h * rate / part.rate_per_s for part in found.chosen)
        figures = {
            "rate_per_s": rate,
            "accelerators": float(sum(group.accelerators for group in layout)),
            "cost_usd_per_h": cost,
            "rate_per_accelerator_per_s": rate / sum(group.accelerators for group in layout),
        }
        for part in found.chosen:
            for group in part.groups:
                figures |= {f"{group.role}_tp": float(group.tp), f"{group.role}_pp": float(group.pp)}
                figures[f"{group.role}_rate_per_s"] = part.rate_per_s
        pools = near_pools(site, layout) if near else site.pools(layout)
        return Plan(
            "parallelism",
            "heuristic",
            cost,
            "USD/h",
            min(least, cost),
            {"pools": pools, "gateway": {"router": "distserve"}},
            figures,
            tuple(_row(part, layout) for part in found.parts),
            notes=self._notes(near),
            proof=_proof(judgement, trial.confidence, {"cost_usd_per_h": cost}, lines),
        )

    def _require_stock(self, layout: Layout) -> None:
        used = Counter[str]()
        for group in layout:
            used[group.accelerator] += group.accelerators
        for name, count in used.items():
            have = self.accelerators.get(name)
            if have is not None and count > have:
                message = f"the rate needs {count} {name}, there are {have}: missed by {count - have} {name}"
                raise InputError(Finding(message, f"problem.accelerators.{name}", hint="lower the rate or offer more"))

    def _notes(self, near: bool) -> tuple[str, ...]:
        notes = ["the bound is what these groups' rates cost if replicas were divisible"]
        if near:
            notes.append(
                "both groups of a pair stand in one server: keys and values move over its links, as fast as the host link of an "
                "accelerator (servers shared by two pools are not modelled)"
            )
        return tuple(notes)

    # --- local search -------------------------------------------------------------------------------------------------

    def _searched(self, site: Site, trial: Trial) -> Plan:
        roles: tuple[Role, ...] = {
            "mixed": ("mixed",),
            "apart": ("prefill", "decode"),
            "any": ("mixed", "prefill", "decode"),
        }[self.roles]  # type: ignore[assignment]
        stock = {name: count or 0 for name, count in self.accelerators.items()}
        space = Space(site, stock, {name: site.shapes(name, self.tp, self.pp) for name in stock}, roles)
        quick = replace(trial, confidence=Confidence(self.confidence, 1, 1))
        base = self.rate or demand_of(site.loaded, 1, 1).mean_rate_per_s
        ladder = Ladder(space, quick, base, 1.0 + self.tolerance)
        if self.strategy == "enumerate":
            layout = enumerated(ladder)
        else:
            own = _own_layout(site) if self.moves == ("flip",) else ()
            layout = tabu(ladder, self.moves, self.steps, start=own)
        rung, _ = ladder.score(layout)
        judgement, rate = self._judged(site, layout, ladder, rung, trial)
        cost = site.price(layout)
        figures = {
            "rate_per_s": rate,
            "accelerators": float(sum(group.accelerators for group in layout)),
            "cost_usd_per_h": cost,
            "layouts": float(len(ladder.scores)),
            "runs": float(ladder.runs),
        }
        ranked = sorted(ladder.scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
        rows = [
            {"layout": " + ".join(f"{n} x {g}" for g, n in Counter(found).items()), "requests/s": ladder.rate(score[0])}
            for found, score in ranked[:10]
        ]
        notes = ["rates of the table are those of one run each; the first is then judged with confidence"]
        if self.strategy == "tabu":
            notes.append("a local optimum: no bound is known")
        return Plan(
            "parallelism",
            "heuristic" if self.strategy == "tabu" else "optimal",
            rate,
            "requests/s",
            nan if self.strategy == "tabu" else rate,
            {"pools": site.pools(layout)},
            figures,
            tuple(rows),
            notes=tuple(notes),
            proof=_proof(judgement, trial.confidence, {"rate_per_s": rate}, [judgement.reason]),
        )

    def _judged(self, site: Site, layout: Layout, ladder: Ladder, rung: int, trial: Trial) -> tuple[Judgement, float]:
        """The layout with several seeds: down the ladder until the objective holds with confidence."""
        for lower in range(8):
            rate = ladder.rate(rung - lower)
            loaded = with_pools(at_rate(site.loaded, rate, trial), site.pools(layout))
            judgement = judge(loaded, confidence=trial.confidence)
            if judgement.met:
                break
        return judgement, rate


def _own_layout(site: Site) -> Layout:
    groups = [
        Group(
            pool.accelerator, pool.parallelism.tp, pool.parallelism.pp, "mixed" if pool.role == "encode" else pool.role
        )
        for pool in site.loaded.scenario.pools
        for _ in range(pool.replicas)
    ]
    return tuple(sorted(groups))


def _row(part: Goodput, layout: Layout) -> dict[str, Any]:
    return {
        "groups": " + ".join(map(str, part.groups)),
        "requests/s": part.rate_per_s,
        "of an accelerator": part.per_accelerator,
        "requests/USD": part.per_usd,
        "bought": min(layout.count(group) for group in part.groups),
    }


def _proof(judgement: Judgement, confidence: Confidence, predicted: dict[str, float], lines: list[str]) -> Proof:
    mean, low, high = judgement.attainment
    return Proof(
        judgement.met,
        mean,
        low,
        high,
        judgement.target,
        confidence.level,
        judgement.seeds,
        {"attainment_ratio": judgement.target, **predicted},
        {"attainment_ratio": mean, **judgement.figures},
        tuple(lines),
        "" if judgement.met else f"not proved after {len(lines)} layouts: {judgement.reason}",
    )
