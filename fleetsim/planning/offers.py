"""Kinds of replicas that could serve a scenario's LLM: candidate accelerators with the parallelism that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from fleetsim.catalog.accelerator import load_accelerator
from fleetsim.catalog.data import catalogue
from fleetsim.catalog.llm import load_llm
from fleetsim.catalog.memory import parallelisms_that_fit
from fleetsim.catalog.price import price_of
from fleetsim.errors import DataError, Finding, InputError, nearest
from fleetsim.fleet.pool import Pool, describe_pool
from fleetsim.planning.melange import Offer
from fleetsim.scenario.load import LoadedScenario
from fleetsim.scenario.schema import Parallelism
from fleetsim.scenario.schema import Pool as PoolConfig


@dataclass(frozen=True, slots=True)
class Candidate:
    """An offer with the physics of its replicas."""

    offer: Offer
    pool: Pool


def candidates_for(
    loaded: LoadedScenario, accelerators: Sequence[str] = (), prices: Mapping[str, float] | None = None
) -> list[Candidate]:
    """Kinds of replicas that can serve the scenario's LLM.

    Engine, cache and LLM are those of the scenario's first pool. Each accelerator is offered with every tensor parallelism within a
    node for which weights and one step's tokens fit (pipelines only where nothing else fits).

    Parameters
    ----------
    loaded : LoadedScenario
        From `load_scenario`.
    accelerators : sequence of str
        Names in the catalogue; default: those of the scenario's pools.
    prices : mapping of str to float, optional
        Prices of one accelerator that stand in place of the catalogue's [USD/h].

    Raises
    ------
    InputError
        If an accelerator is unknown, has no price, or the LLM fits on none.
    """
    template = _template(loaded)
    names = list(dict.fromkeys(accelerators)) or list(dict.fromkeys(pool.accelerator for pool in loaded.scenario.pools))
    known = catalogue("accelerator")
    findings = [
        Finding(f'unknown accelerator "{name}"', "candidates", hint=nearest(name, known, "accelerators"))
        for name in (*names, *(prices or {}))
        if name not in known
    ]
    if findings:
        raise InputError(findings)
    own = {
        pool.accelerator: price_of(pool.price, load_accelerator(pool.accelerator), loaded.base_dir).average
        for pool in loaded.scenario.pools
        if pool.price is not None
    }
    own |= prices or {}
    found: list[Candidate] = []
    for name in names:
        found += _of(loaded, template, name, own)
    if not found:
        message = f"{template.llm} fits on none of {', '.join(names)}"
        raise InputError(
            Finding(message, "candidates", hint="offer accelerators with more memory, or narrower weights")
        )
    return found


def _template(loaded: LoadedScenario) -> PoolConfig:
    pools = loaded.scenario.pools
    llms = sorted({pool.llm for pool in pools})
    if len(llms) > 1 or any(pool.models for pool in pools):
        message = f"a fleet is planned for one LLM, the scenario has {', '.join(llms)}"
        raise InputError(loaded.finding(("pools",), message, "plan for each LLM by itself: one scenario each"))
    if any(pool.role != "mixed" for pool in pools):
        message = "pools with roles: kinds of replicas are planned that compute prompts and answers"
        raise InputError(loaded.finding(("pools",), message, "leave `role` out"))
    return pools[0]


def _of(loaded: LoadedScenario, template: PoolConfig, accelerator: str, prices: Mapping[str, float]) -> list[Candidate]:
    chip = load_accelerator(accelerator)
    llm = load_llm(template.llm, loaded.base_dir)
    engine = template.engine.located(loaded.base_dir)
    spreads = parallelisms_that_fit(llm, chip, engine)
    flat = [spread for spread in spreads if spread.pp == 1] or spreads[:1]
    flat = [s for s in flat if llm.attention == "mla" or llm.kv_heads % s.tp == 0 or s.tp % llm.kv_heads == 0]
    if accelerator == template.accelerator and template.parallelism not in flat and template.parallelism.dp > 1:
        flat.append(template.parallelism)
    price = prices.get(accelerator, chip.price_usd_per_h)
    found = []
    for spread in flat:
        name = accelerator if spread.accelerators == 1 else f"{accelerator}-{spread_name(spread)}"
        block = _block(template, accelerator, spread, name, price)
        try:
            config = PoolConfig.model_validate(block)
            pool = describe_pool(config, 0, loaded.base_dir)
        except DataError as error:
            raise InputError(error.findings) from None
        whole = (nan if price is None else price) * spread.accelerators
        found.append(Candidate(Offer(name, whole, accelerator, spread.accelerators, 0.0, block), pool))
    return found


def spread_name(spread: Parallelism) -> str:
    """Short name: ``tp2``, ``tp4pp2``."""
    return "".join(f"{key}{value}" for key, value in spread.model_dump().items() if value > 1) or "tp1"


def _block(
    template: PoolConfig, accelerator: str, spread: Parallelism, name: str, price: float | None
) -> dict[str, Any]:
    """The pool as it would stand in a scenario; what is the template's chip's own is left out on other chips."""
    block = template.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    for key in ("replicas", "min_replicas", "max_replicas", "autoscaler", "role", "models", "swap"):
        block.pop(key, None)
    if accelerator != template.accelerator:
        power = block.get("power", {})
        for key in ("link", "power", "price"):
            block.pop(key, None)
        servers = {key: power[key] for key in ("host_idle", "host_busy") if key in power}
        if servers:
            block["power"] = servers
    block |= {"name": name, "accelerator": accelerator}
    block["parallelism"] = {key: value for key, value in spread.model_dump().items() if value > 1} or {"tp": 1}
    if price is not None and (price != load_accelerator(accelerator).price_usd_per_h or "price" in block):
        block["price"] = f"{price!r} USD/h"
    return block
