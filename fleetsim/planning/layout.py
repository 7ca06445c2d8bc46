"""A fleet as groups of accelerators, each of a kind, with a parallelism and a role: what searches over these change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.data import catalogue
from fleetsim.catalog.llm import load_llm
from fleetsim.catalog.memory import memory_plan
from fleetsim.catalog.price import price_of
from fleetsim.errors import Finding, InputError, nearest
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import Parallelism
from fleetsim.scenario.schema import Pool as PoolConfig

Role = Literal["mixed", "prefill", "decode"]


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """Accelerators of one kind that are one replica."""

    accelerator: str
    tp: int
    pp: int
    role: Role = "mixed"

    @property
    def accelerators(self) -> int:
        """Of the group."""
        return self.tp * self.pp

    def __str__(self) -> str:
        """Short: ``prefill a100-80 tp2 pp1``."""
        return f"{self.role} {self.accelerator} tp{self.tp} pp{self.pp}"


Layout = tuple[Group, ...]
"""A fleet: its groups in order, equal ones as often as they are there."""


def described(layout: Iterable[Group]) -> str:
    """A layout in a few words."""
    return " + ".join(f"{count} x {group}" for group, count in sorted(Counter(layout).items()))


def complete(layout: Sequence[Group]) -> bool:
    """Whether it computes prompts and answers: groups that do both, or groups of either side."""
    roles = {group.role for group in layout}
    return roles == {"mixed"} or roles == {"prefill", "decode"}


@dataclass(frozen=True, slots=True)
class Site:
    """What a layout is made for: the scenario, and what each kind of group costs and needs."""

    loaded: LoadedScenario
    template: PoolConfig
    """LLM and engine of every group: the scenario's first pool."""
    prices: dict[str, float]
    """Of one accelerator [USD/h]."""

    def shapes(self, accelerator: str, tps: Sequence[int], pps: Sequence[int]) -> list[tuple[int, int]]:
        """Tensor degrees and stages whose weights and one step's tokens fit, fewest accelerators first.

        Tensor degrees stay within a server and divide the query heads; there are no more stages than layers.
        """
        chip = load_accelerator(accelerator)
        llm = load_llm(self.template.llm, self.loaded.base_dir)
        engine = self.template.engine.located(self.loaded.base_dir)
        found = []
        for tp in tps:
            for pp in pps:
                if tp > chip.per_node or llm.heads % tp or pp > llm.layers:
                    continue
                plan = memory_plan(llm, chip, Parallelism(tp=tp, pp=pp), engine)
                wanted = getattr(engine.scheduler.config, "max_batched_tokens", None) or plan.block_tokens
                if plan.capacity_tokens >= wanted:
                    found.append((tp, pp))
        return sorted(found, key=lambda shape: (shape[0] * shape[1], shape))

    def pool(self, group: Group, replicas: int, nic: str | None = None) -> dict[str, Any]:
        """A group as a pool of a scenario; `nic` replaces the adapters of its servers."""
        block = self.template.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        for key in ("min_replicas", "max_replicas", "autoscaler", "forecaster", "models", "swap"):
            block.pop(key, None)
        if group.accelerator != self.template.accelerator:
            for key in ("link", "power", "price", "server"):
                block.pop(key, None)
            if self.prices[group.accelerator] != load_accelerator(group.accelerator).price_usd_per_h:
                block["price"] = f"{self.prices[group.accelerator]!r} USD/h"
        if nic is not None:
            block["server"] = {**block.get("server", {}), "nic": nic}
        spread = {"tp": group.tp, "pp": group.pp}
        name = str(group).replace(" ", "-")
        more = {"name": name, "accelerator": group.accelerator, "parallelism": spread, "replicas": replicas}
        return {**block, **more, "role": group.role}

    def pools(self, layout: Iterable[Group], nic: str | None = None) -> list[dict[str, Any]]:
        """A layout as pools of a scenario."""
        return [self.pool(group, count, nic) for group, count in sorted(Counter(layout).items())]

    def price(self, layout: Iterable[Group]) -> float:
        """Of all groups together [USD/h]."""
        return sum(self.prices[group.accelerator] * group.accelerators for group in layout)


def site_of(loaded: LoadedScenario, accelerators: Iterable[str] = ()) -> Site:
    """What layouts of these accelerators are made for; default: those of the scenario's pools.

    Raises
    ------
    InputError
        If an accelerator is unknown or has no price, or the scenario has several LLMs.
    """
    pools = loaded.scenario.pools
    if len({pool.llm for pool in pools}) > 1 or any(pool.models for pool in pools):
        message = "parallelism and roles are searched for one LLM, the scenario has several"
        raise InputError(loaded.finding(("pools",), message, "state one problem for each LLM"))
    names = list(dict.fromkeys(accelerators)) or list(dict.fromkeys(pool.accelerator for pool in pools))
    known = catalogue("accelerator")
    findings = [
        Finding(f'unknown accelerator "{name}"', "problem.accelerators", hint=nearest(name, known, "accelerators"))
        for name in names
        if name not in known
    ]
    if findings:
        raise InputError(findings)
    own = {
        pool.accelerator: price_of(pool.price, load_accelerator(pool.accelerator), loaded.base_dir).average
        for pool in pools
        if pool.price is not None
    }
    prices = {}
    for name in names:
        price = own.get(name, load_accelerator(name).price_usd_per_h)
        if price is None or not isfinite(price):
            hint = "set `price` in the scenario's pool, or leave it out"
            raise InputError(Finding(f"{name} has no price", "problem.accelerators", hint=hint))
        prices[name] = price
    return Site(loaded, pools[0], prices)
