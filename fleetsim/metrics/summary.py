"""From the tables of a run to the figures that answer its question."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fleetsim.catalog.llm import BYTES_PER_VALUE
from fleetsim.engine.gaps import edge_s
from fleetsim.fleet.ledger import Ledger
from fleetsim.fleet.pool import Pool
from fleetsim.fleet.supply import idle_j as idle_energy_j
from fleetsim.fleet.uptime import availability
from fleetsim.metrics.bills import Meters, added, constant_cost, meters
from fleetsim.metrics.bounds import optimal_tokens_per_s
from fleetsim.metrics.columns import Columns, Floats
from fleetsim.metrics.statistics import batch_means_interval, percentiles
from fleetsim.metrics.verdict import Verdict, verdict
from fleetsim.scenario.schema import Energy, Scenario

Figures = dict[str, float | int | None]
"""Figures by name; None where there is nothing to average."""

LATENCIES = ("ttft", "tpot", "ntpot", "e2el", "queue_wait")
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
STATES = ("finished", "rejected", "timed_out", "failed", "unfinished")
"""Terminal states, in the order in which they are reported."""
FINISHED, REJECTED = 0, 1
GROUPINGS = ("pool", "class", "tenant", "model", "site", "origin")
_NOBODY = -2
"""Code of a name that no row has."""
_CHARGED = {
    "energy_requests_j": "energy_j",
    "cost_requests_usd": "cost_usd",
    "carbon_requests_g": "carbon_g",
    "electricity_requests_usd": "electricity_usd",
    "embodied_requests_g": "embodied_g",
}
"""What a group's requests are charged for, and the column that it is summed from."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What the meters say at the end of a run."""

    end_s: float
    """Time simulated [s]."""
    skipped_rows: int
    peak_power_w: float
    gateway_energy_j: float = 0.0
    """Of the gateway's decisions."""
    network_bytes: float = 0.0
    """Keys and values sent between places."""
    migrations: int = 0
    """Running requests that moved to another replica."""
    migration_pause_s: float = 0.0
    """Time from leaving the one to waiting at the other, summed [s]."""
    loans: tuple[int, int] = (0, 0)
    """Loans of memory that began, and those that were recalled."""
    remote_bytes: float = 0.0
    """Queries and partial results of attention over what was lent."""
    recoveries: int = 0
    """Requests that were sent again because their replica was gone."""
    lost_tokens: int = 0
    """Tokens whose keys and values were lost with their replica, or that were computed in vain."""
    power_budget_peak_ratio: float | None = None
    """Largest power of a row over its budget; None without one."""
    ledger: Ledger | None = None
    """What charged at prices that change over time or from site to site; None where none do."""
    lost_j: float = 0.0
    """Energy that had gone into these."""
    lost_s: float = 0.0
    """Time of accelerators that had."""
    copied_bytes: float = 0.0
    """Keys and values of running requests that were sent to where copies lie."""
    restored_tokens: int = 0
    """Tokens whose keys and values came back from there."""
    uptime: tuple[float, float] = (0.0, 0.0)
    """Replica time that was wanted, and of that available [s]."""
    failed_tries: int = 0
    """Times that clients found no gateway."""


def summarise(
    tables: Columns, pools: Sequence[Pool], scenario: Scenario, totals: Totals
) -> tuple[Figures, list[dict[str, Any]], Verdict]:
    """Summary of a run, the same figures by pool, class, tenant and model, and the verdict.

    Columns are read one at a time, so memory stays a small multiple of one column.

    Returns
    -------
    summary : mapping
        Figures by name; None where there is nothing to average.
    groups : list of mapping
        One per group, with ``by`` and ``value``.
    verdict : Verdict
    """
    status = _status(tables)
    arrived = np.argsort(_floats(tables, "arrival_s"), kind="stable")
    if len(arrived) < 2**31:
        arrived = arrived.astype(np.int32)  # it stays for most of this function
    cut = int(scenario.run.warmup_ratio * len(arrived))
    counted = np.ones(len(arrived), dtype=bool)
    counted[arrived[:cut]] = False
    summary: Figures = _counts(status)
    summary["skipped_rows"] = totals.skipped_rows
    summary["measured_requests"] = int(counted.sum())
    summary |= _tokens(tables)
    summary |= _tiers(tables, pools)
    makespan_s = _makespan_s(tables)
    summary["makespan_s"] = makespan_s
    for name in LATENCIES:
        ordered = _there(_floats(tables, f"{name}_s")[arrived[cut:]])
        low, high = batch_means_interval(ordered)
        summary |= _latency(name, ordered)
        summary[f"{name}_mean_ci_low_s"], summary[f"{name}_mean_ci_high_s"] = _number(low), _number(high)
        del ordered
    summary |= _gaps(pools)
    met = _met(tables) if scenario.slo is not None else status == FINISHED
    summary |= _objective(met[arrived[cut:]], _window_s(tables, counted))
    word = _verdict(tables, arrived[(status != REJECTED)[arrived]], int((status == REJECTED).sum()))
    del arrived
    summary |= _rates(summary, makespan_s, sum(pool.accelerators for pool in pools))
    summary |= _machines(pools, totals.end_s, int(summary["output_tokens"] or 0))
    summary |= _energy_of_requests(tables, status)
    summary |= {"gateway_energy_j": totals.gateway_energy_j, "network_bytes": totals.network_bytes}
    paused = totals.migration_pause_s / totals.migrations if totals.migrations else None
    summary["migration_pause_mean_s"] = paused
    summary["loans"], summary["loans_recalled"] = totals.loans
    summary["remote_attention_bytes"] = totals.remote_bytes
    summary |= _power(pools, totals)
    summary |= {"recoveries": totals.recoveries, "lost_tokens": totals.lost_tokens}
    summary |= {"lost_energy_j": totals.lost_j, "lost_accelerator_s": totals.lost_s}
    summary |= {"copied_bytes": totals.copied_bytes, "restored_tokens": totals.restored_tokens}
    summary |= {"availability_ratio": availability(*totals.uptime), "failed_tries": totals.failed_tries}
    books = meters(pools, scenario.energy, totals.ledger, totals.gateway_energy_j, totals.end_s)
    summary |= _site(summary, pools, totals, books, scenario.energy)
    good = met & (status == FINISHED)
    summary |= _site_of_requests(tables, status)
    summary |= _per_good_token(tables, good, summary)
    summary["power_peak_w"] = totals.peak_power_w
    used = tables.floats("replicas", "kv_used_ratio")
    summary["kv_used_mean_ratio"] = float(used.mean()) if len(used) else 0.0
    summary["kv_used_max_ratio"] = float(used.max()) if len(used) else 0.0
    fragmented = tables.floats("fleet", "kv_fragmented_ratio")
    summary["kv_fragmented_mean_ratio"] = float(fragmented.mean()) if len(fragmented) else 0.0
    sites = {pool.config.site for pool in pools if pool.config.site is not None}
    groups = _groups(tables, status, met, counted, makespan_s, sites)
    _add_bills(groups, pools, books)
    bounds = {pool.name: pool.accelerators * _bound(pool) for pool in pools}
    for row in groups:
        row["compute_bound_tokens_per_s"] = bounds[row["value"]] if row["by"] == "pool" else None
    return summary, groups, word


def _counts(status: np.ndarray[Any, Any]) -> Figures:
    figures: Figures = {"requests": len(status)}
    return figures | {name: int((status == code).sum()) for code, name in enumerate(STATES)}


def _tokens(tables: Columns) -> Figures:
    prompts = _floats(tables, "prompt_tokens")
    scheduled = prompts[~np.isnan(_floats(tables, "first_scheduled_s"))].sum()
    outputs = _floats(tables, "output_tokens")
    cached = int(_floats(tables, "cached_tokens").sum())
    return {
        "prompt_tokens": int(prompts.sum()),
        "output_tokens": int(outputs.sum()),
        "prompt_tokens_mean": _number(prompts.mean()) if len(prompts) else None,
        "output_tokens_mean": _number(outputs.mean()) if len(prompts) else None,
        "cached_tokens": cached,
        "prefix_hit_ratio": cached / int(scheduled) if scheduled else 0.0,
        "approximate_tokens": int(_floats(tables, "approximate_tokens").sum()),
        "preemptions": int(_floats(tables, "preemptions").sum()),
        "migrations": int(_floats(tables, "migrations").sum()),
    }


def _tiers(tables: Columns, pools: Sequence[Pool]) -> Figures:
    """What came from below the accelerators' memory; None where there is no such tier."""
    loaded = _floats(tables, "loaded_tokens")
    waits = _floats(tables, "load_s")[loaded > 0]
    scheduled = int(_floats(tables, "prompt_tokens")[~np.isnan(_floats(tables, "first_scheduled_s"))].sum())
    figures: Figures = {
        "loaded_tokens": int(loaded.sum()),
        "load_mean_s": _number(waits.mean()) if len(waits) else None,
    }
    for name in ("host", "ssd", "store"):
        places = [place for pool in pools for tiers in pool.tiers for place in tiers.places if place.tier.name == name]
        tokens = sum(place.read_tokens for place in places)
        figures[f"kv_{name}_ratio"] = tokens / scheduled if places and scheduled else None
    figures["corrupt_tokens"] = _corrupt_tokens(pools)
    return figures


def _corrupt_tokens(pools: Sequence[Pool]) -> int:
    """Tokens whose keys and values were read from a lower tier and were not what they should be."""
    found: dict[int, int] = {}
    for pool in pools:
        for tier in (place.tier for tiers in pool.tiers for place in tiers.places):
            if tier.damage is not None:
                found[id(tier)] = tier.damage.found_blocks * pool.config.engine.kv.block_tokens
    return sum(found.values())


def _makespan_s(tables: Columns) -> float:
    ends = _floats(tables, "end_s")
    ends = ends[~np.isnan(ends)]
    return float(ends.max() - _floats(tables, "arrival_s").min()) if len(ends) else 0.0


def _window_s(tables: Columns, counted: np.ndarray[Any, Any]) -> float:
    """Time from the first measured arrival to the end of the last request."""
    if not counted.any():
        return 0.0
    ends = _floats(tables, "end_s")
    ends = ends[~np.isnan(ends)]
    return float(ends.max() - _floats(tables, "arrival_s")[counted].min()) if len(ends) else 0.0


def _there(values: Floats) -> Floats:
    """Values that are not NaN; the array itself if that is all."""
    missing = np.isnan(values)
    return values[~missing] if missing.any() else values


def _verdict(tables: Columns, order: np.ndarray[Any, Any], rejected: int) -> Verdict:
    """The verdict; `order` has the rows of requests that were not rejected, by arrival."""
    arrival, start, end = (_floats(tables, name)[order] for name in ("arrival_s", "first_scheduled_s", "end_s"))
    return verdict(arrival, start, end, rejected)


def _latency(name: str, values: Floats) -> Figures:
    """Mean and percentiles; leaves the values in another order."""
    figures: Figures = {f"{name}_mean_s": _number(values.mean()) if len(values) else None}
    for label, value in zip(PERCENTILES, percentiles(values, list(PERCENTILES.values()), in_place=True), strict=True):
        figures[f"{name}_{label}_s"] = _number(value)
    return figures


def _gaps(pools: Sequence[Pool]) -> Figures:
    counts = np.sum([pool.gaps.counts for pool in pools], axis=0)
    total = int(counts.sum())
    if not total:
        return dict.fromkeys(("itl_mean_s", *(f"itl_{label}_s" for label in PERCENTILES)))
    figures: Figures = {"itl_mean_s": sum(pool.gaps.total_s for pool in pools) / total}
    reached = np.cumsum(counts)
    for label, ratio in PERCENTILES.items():
        bucket = int(np.searchsorted(reached, ratio * total))
        figures[f"itl_{label}_s"] = (edge_s(bucket) * edge_s(bucket + 1)) ** 0.5
    return figures


def _objective(met: np.ndarray[Any, Any], window_s: float) -> Figures:
    ratio = float(met.mean()) if len(met) else 0.0
    low, high = batch_means_interval(met.astype(np.float64))
    return {
        "slo_attainment_ratio": ratio,
        "slo_attainment_ci_low_ratio": _number(max(low, 0.0)),
        "slo_attainment_ci_high_ratio": _number(min(high, 1.0)),
        "goodput_requests_per_s": float(met.sum()) / window_s if window_s else None,
    }


def _rates(summary: Mapping[str, Any], makespan_s: float, accelerators: int) -> Figures:
    if not makespan_s:
        return {"requests_per_s": None, "prompt_tokens_per_s": None, "output_tokens_per_s": None,
                "total_tokens_per_s": None, "output_tokens_per_s_per_accelerator": None}  # fmt: skip
    prompt, output = summary["prompt_tokens"] / makespan_s, summary["output_tokens"] / makespan_s
    figures: Figures = {
        "requests_per_s": summary["finished"] / makespan_s,
        "prompt_tokens_per_s": prompt,
        "output_tokens_per_s": output,
        "total_tokens_per_s": prompt + output,
        "output_tokens_per_s_per_accelerator": output / accelerators,
    }
    return figures


def _machines(pools: Sequence[Pool], end_s: float, output_tokens: int) -> Figures:
    """Energy, cost and use of the machines, from their meters."""
    energy_j = idle_j = cost_usd = cost_idle_usd = busy_s = flops = flop_room = read_bytes = byte_room = 0.0
    swap_s = swap_bytes = swap_j = 0.0
    tokens = steps = swaps = 0
    paid_s = accelerator_s = 0.0
    bound = bound_measured = 0.0
    for pool in pools:
        chips = pool.config.parallelism.accelerators
        accelerator, engine = pool.accelerator, pool.config.engine
        mean = pool.on_s(end_s) / end_s * chips if end_s else float(pool.accelerators)
        accelerator_s += pool.on_s(end_s) * chips
        bound += mean * _bound(pool)
        bound_measured += mean * _bound(pool, measured=True)
        for replica, life in zip(pool.replicas, pool.lives, strict=True):
            meter = replica.meter(end_s)
            on_s = life.on_s(end_s)
            spent_j = idle_energy_j(pool, replica, life, end_s)
            idle_j += spent_j
            energy_j += meter.energy_j + spent_j
            cost_usd += pool.price_usd_per_h * on_s / 3600.0
            cost_idle_usd += pool.price_usd_per_h * (on_s - meter.busy_s) / 3600.0
            busy_s += meter.busy_s
            paid_s += on_s
            for held, share in pool.shares(replica, end_s):
                llm = held.llm
                peak = accelerator.peak_flop_per_s[accelerator.arithmetic(llm.weights_dtype(engine.weights))]
                kv_bytes = (
                    llm.kv_values_per_token * llm.attention_layers * BYTES_PER_VALUE[llm.kv_dtype(engine.kv.dtype)]
                )
                steps += share.steps
                computed = share.prompt_tokens + share.output_tokens
                tokens += computed
                flops += 2.0 * llm.parameters_active * computed
                flop_room += peak * chips * share.busy_s
                read_bytes += share.steps * llm.weight_bytes(engine.weights) + share.ctx_tokens_read * kv_bytes
                byte_room += accelerator.bandwidth_bytes_per_s * chips * share.busy_s
            seat = pool.seats.get(replica.index)
            if seat is not None:
                swaps += seat.loads
                swap_s += seat.loading_s(end_s)
                swap_bytes += seat.load_bytes
                swap_j += seat.loading_j(end_s)
    idle_j += swap_j
    energy_j += swap_j
    return {
        "energy_j": energy_j,
        "energy_idle_j": idle_j,
        "energy_per_output_token_j": energy_j / output_tokens if output_tokens else None,
        "power_mean_w": energy_j / end_s if end_s else 0.0,
        "cost_usd": cost_usd,
        "cost_idle_usd": cost_idle_usd,
        "busy_ratio": busy_s / paid_s if paid_s else 0.0,
        "steps": steps,
        "batch_mean": tokens / steps if steps else 0.0,
        "mfu_ratio": flops / flop_room if flop_room else 0.0,
        "mbu_ratio": read_bytes / byte_room if byte_room else 0.0,
        "compute_bound_tokens_per_s": bound,
        "compute_bound_measured_tokens_per_s": bound_measured,
        "compute_bound_ratio": tokens / end_s / bound if end_s else 0.0,
        "simulated_s": end_s,
        "model_swaps": swaps,
        "model_swap_s": swap_s,
        "model_swap_bytes": swap_bytes,
        "model_swap_energy_j": swap_j,
        "accelerators": sum(pool.accelerators for pool in pools),
        "accelerator_hours": accelerator_s / 3600.0,
    }


def _bound(pool: Pool, measured: bool = False) -> float:
    if pool.config.role == "encode":
        return 0.0
    return optimal_tokens_per_s(pool.llm, pool.accelerator, pool.config.engine, measured)


def _power(pools: Sequence[Pool], totals: Totals) -> Figures:
    """For how long replicas were slowed down or slept, summed over them."""
    supplies = [supply for pool in pools for supply in pool.supplies.values()]
    states = [supply.states_s(totals.end_s) for supply in supplies]
    capped_s, braked_s, throttled_s, asleep_s = (sum([times[place] for times in states]) for place in range(4))
    hottest = [supply.heat.hottest_c for supply in supplies if supply.heat is not None]
    return {
        "power_capped_s": capped_s,
        "power_braked_s": braked_s,
        "power_brakes": sum([supply.brakes for supply in supplies]),
        "throttled_s": throttled_s,
        "asleep_s": asleep_s,
        "temperature_max_c": max(hottest, default=None),
        "power_budget_peak_ratio": totals.power_budget_peak_ratio,
    }


def _energy_of_requests(tables: Columns, status: np.ndarray[Any, Any]) -> Figures:
    energy = _floats(tables, "energy_j")
    finished = status == FINISHED
    return {
        "energy_requests_j": float(energy.sum()),
        "energy_per_request_mean_j": _number(energy[finished].mean()) if finished.any() else None,
        "cost_requests_usd": float(_floats(tables, "cost_usd").sum()),
    }


def _site(summary: Mapping[str, Any], pools: Sequence[Pool], totals: Totals, books: Meters, energy: Energy) -> Figures:
    """Price of the machines; energy of accelerators and servers with cooling, its carbon and its price."""
    host_j, host_idle_j = summary["gateway_energy_j"], 0.0
    for pool in pools:
        for replica, life in zip(pool.replicas, pool.lives, strict=True):
            busy_s = replica.meter(totals.end_s).busy_s
            idle_j = pool.host_idle_w * (life.on_s(totals.end_s) - busy_s)
            host_idle_j += idle_j
            host_j += idle_j + pool.host_busy_w * busy_s
    whole, idle = books.whole()
    if totals.ledger is None:  # one price for all: as exact as a sum over pools, and one rounding less
        whole = constant_cost(summary["cost_usd"], summary["energy_j"] + host_j, energy)
        idle = constant_cost(summary["cost_idle_usd"], summary["energy_idle_j"] + host_idle_j, energy)
    tokens = summary["output_tokens"]

    def per_million(value: float | None) -> float | None:
        return None if value is None or not tokens else value / tokens * 1e6

    return {
        "cost_usd": whole.usd,
        "cost_idle_usd": idle.usd,
        "cost_per_million_output_tokens_usd": per_million(whole.usd),
        "host_energy_j": host_j,
        "host_energy_idle_j": host_idle_j,
        "site_energy_j": whole.site_j,
        "site_energy_idle_j": idle.site_j,
        "site_energy_per_output_token_j": whole.site_j / tokens if tokens else None,
        "carbon_g": whole.carbon_g,
        "carbon_idle_g": idle.carbon_g,
        "carbon_per_million_output_tokens_g": per_million(whole.carbon_g),
        "embodied_g": whole.embodied_g,
        "embodied_idle_g": idle.embodied_g,
        "electricity_cost_usd": whole.electricity_usd,
        "electricity_idle_usd": idle.electricity_usd,
    }


def _site_of_requests(tables: Columns, status: np.ndarray[Any, Any]) -> Figures:
    """What requests are charged for; None for what the scenario says nothing of."""
    finished = status == FINISHED
    figures: Figures = {"site_energy_requests_j": float(_floats(tables, "site_energy_j").sum())}
    for name, column in (("carbon_requests_g", "carbon_g"), ("embodied_requests_g", "embodied_g")):
        figures[name] = _number(_floats(tables, column).sum())
    figures["electricity_requests_usd"] = _number(_floats(tables, "electricity_usd").sum())
    for name, column in (("carbon_per_request_mean_g", "carbon_g"), ("cost_per_request_mean_usd", "cost_usd")):
        figures[name] = _number(_floats(tables, column)[finished].mean()) if finished.any() else None
    return figures


def _per_good_token(tables: Columns, good: np.ndarray[Any, Any], summary: Figures) -> Figures:
    """What the fleet cost over the tokens of requests within their objectives."""
    tokens = int(_floats(tables, "output_tokens")[good].sum())

    def per_million(value: float | int | None) -> float | None:
        return None if value is None or not tokens else value / tokens * 1e6

    return {
        "slo_output_tokens": tokens,
        "cost_per_million_slo_tokens_usd": per_million(summary["cost_usd"]),
        "carbon_per_million_slo_tokens_g": per_million(summary["carbon_g"]),
    }


def _add_bills(groups: Sequence[dict[str, Any]], pools: Sequence[Pool], books: Meters) -> None:
    """What the machines of each pool and site cost, idle time included; None for other groups."""
    for row in groups:
        chosen = [
            whole
            for pool, (whole, _) in zip(pools, books.pools, strict=True)
            if (row["by"], row["value"]) in (("pool", pool.name), ("site", pool.config.site))
        ]
        cost = added(chosen) if chosen else None
        row["cost_usd"] = None if cost is None else cost.usd
        row["site_energy_j"] = None if cost is None else cost.site_j
        row["carbon_g"] = None if cost is None else cost.carbon_g
        row["electricity_cost_usd"] = None if cost is None else cost.electricity_usd


def _groups(
    tables: Columns,
    status: np.ndarray[Any, Any],
    met: np.ndarray[Any, Any],
    counted: np.ndarray[Any, Any],
    makespan_s: float,
    sites: Collection[str],
) -> list[dict[str, Any]]:
    """The main figures for each pool, class, tenant and model that occurs, and for each site, one column of the table at a time."""
    rows: list[dict[str, Any]] = []
    places: list[tuple[np.ndarray[Any, Any], int]] = []
    for by in GROUPINGS:
        codes, names = tables.codes("requests", by)
        if len(names) < 2**15:
            codes = codes.astype(np.int16)  # they all stay until the end of this function
        for value in sorted({*names, *sites} if by == "site" else names):
            place = names.index(value) if value in names else _NOBODY
            members = codes == place
            if (not members.any() and by != "site") or (by in ("tenant", "model") and members.all()):
                continue  # one tenant or model only: the summary says the same
            measured = members & counted
            row: dict[str, Any] = {"by": by, "value": value, **_counts(status[members])}
            row["slo_attainment_ratio"] = _number(met[measured].mean()) if measured.any() else None
            row["goodput_requests_per_s"] = float(met[members].sum()) / makespan_s if makespan_s else None
            rows.append(row)
            places.append((codes, place))
    tokens = _floats(tables, "output_tokens")
    for row, (codes, place) in zip(rows, places, strict=True):
        row["output_tokens"] = int(tokens[codes == place].sum())
        row["output_tokens_per_s"] = row["output_tokens"] / makespan_s if makespan_s else None
    for name in ("ttft", "tpot", "e2el"):
        values = _floats(tables, f"{name}_s")
        usable = counted & ~np.isnan(values)
        for row, (codes, place) in zip(rows, places, strict=True):
            row |= _latency(name, values[usable & (codes == place)])
    for key, column in _CHARGED.items():
        values = _floats(tables, column)
        for row, (codes, place) in zip(rows, places, strict=True):
            row[key] = _number(values[codes == place].sum())
    good = met & (status == FINISHED)
    for row, (codes, place) in zip(rows, places, strict=True):
        members = codes == place
        good_tokens, served = int(tokens[members & good].sum()), int((members & (status == FINISHED)).sum())
        row["slo_output_tokens"] = good_tokens
        row["cost_per_request_mean_usd"] = row["cost_requests_usd"] / served if served else None
        row["carbon_per_request_mean_g"] = (
            row["carbon_requests_g"] / served if served and row["carbon_requests_g"] else None
        )
        for name, charged in (("cost", "cost_requests_usd"), ("carbon", "carbon_requests_g")):
            unit, value = charged.rpartition("_")[2], row[charged]
            per_million = None if value is None or not good_tokens else value / good_tokens * 1e6
            row[f"{name}_requests_per_million_slo_tokens_{unit}"] = per_million
    return rows


def too_short(summary: Mapping[str, Any], attainment: float) -> str | None:
    """Warning if the run has too few requests to tell the attainment that the SLO names; None if it has enough.

    The 99 % confidence interval of a proportion near `attainment` should be no wider than half of the misses allowed, each way.
    """
    needed = 26.5 * attainment / max(1 - attainment, 1e-9)
    measured = int(summary["measured_requests"])
    if measured >= needed or attainment >= 1:
        return None
    return (
        f"{measured} measured requests are few for an attainment of {attainment:g}: "
        f"at least {needed:,.0f} are needed for a 99 % interval of half the misses allowed"
    )


def _met(tables: Columns) -> np.ndarray[Any, Any]:
    return np.asarray(_floats(tables, "slo_met") == 1.0)  # null is no


def _floats(tables: Columns, column: str) -> Floats:
    return tables.floats("requests", column)


def _status(tables: Columns) -> np.ndarray[Any, Any]:
    """Terminal states as places in STATES."""
    codes, names = tables.codes("requests", "status")
    return np.array([STATES.index(name) for name in names] or [0], dtype=np.int8)[codes]


def _number(value: float) -> float | None:
    """A JSON-safe number: None for NaN."""
    return None if np.isnan(value) else float(value)
