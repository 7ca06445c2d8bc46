"""One run: from a scenario to a result. The only place that wires the stages."""

from __future__ import annotations

import gc
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fleetsim import __version__
from fleetsim.catalog.own import engine_profile
from fleetsim.errors import LawError
from fleetsim.experiment.check import open_workload, require_valid
from fleetsim.experiment.watch import Watch, Watcher
from fleetsim.fleet.fleet import Fleet
from fleetsim.kernel.clock import Clock
from fleetsim.kernel.streams import Streams
from fleetsim.metrics.answers import answer_figures, with_arms
from fleetsim.metrics.summary import Totals, summarise, too_short
from fleetsim.output.parquet import MANIFEST, ResultFolder
from fleetsim.output.recorder import RequestLog, Sampler, table_of, write_events, write_gaps
from fleetsim.output.tables import SCHEMA_VERSION
from fleetsim.plugins import allowing_imports
from fleetsim.routing.decisions import DecisionLog
from fleetsim.scaling.future import Future
from fleetsim.scenario.export import digest
from fleetsim.scenario.load import LoadedScenario, load_mapping, load_scenario
from fleetsim.scenario.merge import Overrides
from fleetsim.scenario.schema import Scenario
from fleetsim.workload.request import Request

Progress = Callable[[int, "int | None", float], None]
"""Called now and then with (requests ended, requests in all if known, simulated time [s])."""

NO_GROUPS = pa.Table.from_batches([], pa.schema({"by": pa.string(), "value": pa.string()}))
"""Of a run without requests."""
VERIFY_EVERY = 256
"""With checks on: boundaries of a replica between full recounts of its books."""


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """A finished run."""

    name: str
    verdict: str
    """STABLE, BACKLOGGED or OVERLOADED."""
    verdict_reason: str
    """The rule that gave the verdict, with its numbers."""
    summary: Mapping[str, Any]
    """Figures of the run by name."""
    groups: Sequence[Mapping[str, Any]]
    """The main figures by pool, class, tenant and model."""
    out: Path
    """Folder with the tables."""
    files: Sequence[Path]
    wall_s: float
    events: int
    """Events that the clock ran."""
    slo_met: bool | None
    """Whether the attainment was reached; None without an SLO."""
    warnings: Sequence[str] = ()
    assumptions: Sequence[str] = field(default=())
    """Catalogue values used that are assumed, not sourced."""
    extrapolated: Sequence[str] = ()
    """Step times beyond what anybody measured, and why."""
    interrupted: bool = False

    def __repr__(self) -> str:
        """One line; the figures are in `summary`."""
        return f"Result({self.name!r}, {self.verdict}, {self.summary['requests']:,} requests, out={str(self.out)!r})"

    def table(self, name: str) -> pa.Table:
        """A table of the run: requests, replicas, fleet, events, gaps, summary or groups."""
        return pq.read_table(self.out / f"{name}.parquet")

    def requests(self) -> pa.Table:
        """The request table: one row per request."""
        return self.table("requests")


def run(
    scenario: str | os.PathLike[str] | Mapping[str, Any] | Scenario | LoadedScenario,
    out: str | os.PathLike[str] | None = None,
    *,
    overrides: Overrides = (),
    check: bool = False,
    allow_import: bool = False,
    progress: Progress | None = None,
    watch: Watch | None = None,
    force: bool = False,
    explain: Sequence[int] = (),
    steer: Mapping[int, int] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Result:
    """Simulate a scenario and write its tables.

    Parameters
    ----------
    scenario : path, mapping, Scenario or LoadedScenario
        What to simulate: a file, ``embedded:NAME``, what would stand in a file, or either of them loaded.
    out : path, optional
        Folder for the tables; default ``fleetsim-out/<name>``. It appears when the run is complete, not before.
    overrides : str, sequence of str, or mapping
        ``path=value`` texts, or values by path, laid over the scenario. A policy may be a class of your own, with parameters or
        without: ``{"gateway.router": MyRouter}``, ``{"gateway.router": {"policy": MyRouter, "patience": 3}}``.
    check : bool
        Check the laws of the simulation while it runs.
    allow_import : bool
        Let the scenario name policies as ``module:Class``.
    progress : callable, optional
        Told how far the run is.
    watch : callable, optional
        Shown what each pool is doing (`fleetsim.experiment.watch.Now`), at most five times a second.
    explain : sequence of int
        Requests whose routing is explained, by id: a table ``decisions`` tells what the gateway saw of each candidate.
    steer : mapping of int to int, optional
        Requests sent to a replica of your choice whatever the router says, by their ids; replicas are numbered over the fleet. The
        same run with one decision changed tells what that decision cost.
    force : bool
        Run although an SLO is below the physical floor of every pool.
    notes : mapping, optional
        Further entries of the manifest, as JSON has them.

    Raises
    ------
    InputError
        If the scenario, a trace, the catalogue or `out` cannot be used.
    LawError
        If a law is broken (with `check`).
    """
    started = time.perf_counter()
    with allowing_imports(allow_import):
        loaded = _load(scenario, overrides)
        warnings = [str(finding) for finding in require_valid(loaded, force)]
        target = Path(out) if out is not None else Path("fleetsim-out") / folder_name(loaded.scenario.name)
        streams = Streams(loaded.scenario.seed)
        clock = Clock()
        live = _Live(loaded, clock, streams, check)
        if explain:
            live.fleet.gateway.decisions = DecisionLog(explain)
        live.fleet.gateway.steered = dict(steer or {})
        folder = ResultFolder(target, {"scenario_digest": live.digest, "fleetsim_version": __version__})
        try:
            return _simulate(live, folder, progress, watch, warnings, started, notes or {})
        except BaseException:
            folder.discard()
            raise


def _load(
    scenario: str | os.PathLike[str] | Mapping[str, Any] | Scenario | LoadedScenario, overrides: Overrides
) -> LoadedScenario:
    if isinstance(scenario, LoadedScenario):
        if not overrides:
            return scenario
        return replace(load_mapping(scenario.scenario, overrides, scenario.base_dir), path=scenario.path)
    if isinstance(scenario, Scenario | Mapping):
        return load_mapping(scenario, overrides)
    return load_scenario(scenario, overrides)


class _Live:
    """The stages of a run, built before anything is written, so that bad input leaves no trace."""

    def __init__(self, loaded: LoadedScenario, clock: Clock, streams: Streams, check: bool) -> None:
        scenario = loaded.scenario
        self.loaded, self.scenario, self.clock, self.check = loaded, scenario, clock, check
        self.digest = digest(scenario)
        self.workload = open_workload(loaded, streams)
        self.log = RequestLog(scenario.slo, scenario.energy)
        ended = self._verified if check else self.log.take
        every = VERIFY_EVERY if check else 0
        self.fleet = Fleet(scenario, loaded.base_dir, clock, streams, ended, every, _future(loaded))

    def _verified(self, request: Request) -> None:
        _verify_request(request)
        self.log.take(request)


def _future(loaded: LoadedScenario) -> Future | None:
    """What will come, if a policy of the scenario says that it knows: the workload read once before the run."""
    choices = [choice for pool in loaded.scenario.pools for choice in (pool.autoscaler, pool.forecaster)]
    if not any(choice is not None and choice.says("knows_future") for choice in choices):
        return None
    return Future(open_workload(loaded, Streams(loaded.scenario.seed)).requests())


def _simulate(
    live: _Live,
    folder: ResultFolder,
    progress: Progress | None,
    watch: Watch | None,
    warnings: list[str],
    started: float,
    notes: Mapping[str, Any],
) -> Result:
    scenario, clock, fleet = live.scenario, live.clock, live.fleet
    total: int | None = getattr(live.workload, "total", None)
    notice = None if progress is None else lambda ended: progress(ended, total, clock.now_s)
    log = live.log
    log.bind(fleet, folder, notice)
    sampler = Sampler(folder, fleet, scenario.run.interval, scenario.energy)
    if watch is not None:
        watcher = Watcher(fleet, log, sampler, total, watch)
        log.bind(fleet, folder, _both(notice, watcher.pass_by))
    fleet.feed(live.workload)
    until_s = float("inf") if scenario.run.horizon is None else scenario.run.horizon
    interrupted = _run_clock(clock, until_s)
    while not interrupted and clock.now_s < until_s and fleet.in_flight and fleet.unlock():
        interrupted = _run_clock(clock, until_s)
    stopped = interrupted or bool(fleet.in_flight) or fleet.unsettled or not fleet.exhausted
    end_s = clock.now_s if stopped else fleet.last_end_s
    if stopped:
        fleet.stop()
    if not interrupted:  # an interrupt may strike between two lines that belong together
        fleet.verify_conservation()
    sampler.sample(end_s)
    sampler.flush()
    log.flush()
    if live.check and not interrupted:
        fleet.verify(end_s)
    write_gaps(folder, fleet.pools)
    decisions = fleet.gateway.decisions
    if decisions is not None and decisions.rows:
        folder.add_table("decisions", table_of(decisions.rows))
    write_events(folder, fleet, end_s)
    folder.close_tables()
    totals = Totals(
        end_s,
        live.workload.skipped_rows,
        sampler.peak_power_w,
        fleet.gateway.energy_j,
        fleet.network_bytes,
        fleet.gateway.moves.completed,
        sum(fleet.gateway.moves.paused_in_s),
        fleet.gateway.lending.counts(),
        sum(replica.remote_bytes for replica in fleet.replicas),
        fleet.gateway.presence.recoveries,
        fleet.gateway.presence.lost_tokens + sum(replica.lost_tokens for replica in fleet.replicas),
        None if fleet.powering is None else fleet.powering.budget_peak_ratio,
        fleet.ledger,
        fleet.gateway.presence.lost_j,
        fleet.gateway.presence.lost_s,
        0.0 if fleet.copies is None else fleet.copies.copied_bytes,
        0 if fleet.copies is None else fleet.copies.restored_tokens,
        _uptime(fleet, end_s),
        0 if fleet.lifecycle is None else fleet.lifecycle.gateway_loss.failed_tries,
    )
    summary, grouped, word = summarise(folder, fleet.pools, scenario, totals)
    groups = with_arms(grouped, fleet.answering)
    summary |= getattr(live.workload, "figures", dict)()
    summary |= answer_figures(folder, fleet.answering)
    if live.check:
        _verify_totals(summary)
    slo = scenario.slo
    met = None if slo is None else (summary["slo_attainment_ratio"] or 0.0) >= slo.attainment
    if slo is not None and (short := too_short(summary, slo.attainment)):
        warnings.append(short)
    warnings += _remarks(live, interrupted)
    wall_s = time.perf_counter() - started
    row = {"run": live.digest[:12], "name": scenario.name, "seed": scenario.seed, "verdict": word.word, **summary}
    folder.add_table("summary", table_of([row]))
    folder.add_table("groups", table_of(groups) if groups else NO_GROUPS)
    assumptions, extrapolated = _assumptions(fleet), _extrapolated(fleet)
    manifest = _manifest(live, row, wall_s, warnings, interrupted, word.reason)
    manifest |= {"assumptions": assumptions, "extrapolated": extrapolated, **notes}
    files = folder.publish(manifest)
    return Result(
        name=scenario.name,
        verdict=word.word,
        verdict_reason=word.reason,
        summary=summary,
        groups=groups,
        out=folder.out,
        files=files,
        wall_s=wall_s,
        events=clock.events,
        slo_met=met,
        warnings=warnings,
        assumptions=assumptions,
        extrapolated=extrapolated,
        interrupted=interrupted,
    )


def _remarks(live: _Live, interrupted: bool) -> list[str]:
    """What a reader of the figures should know of how they came about."""
    fleet, said = live.fleet, []
    if unserved := getattr(live.workload, "unserved", 0):
        said.append(f"{unserved} requests name a model that no pool serves; they were sent to any pool")
    if fleet.unlocked:
        said.append(
            f"{fleet.unlocked} prompts were computed again: replicas were full of blocks that waited for each other's room"
        )
    if fleet.lifecycle is not None and fleet.lifecycle.stranding.failed:
        failed = fleet.lifecycle.stranding.failed
        said.append(f"{failed} requests failed: every replica that could take them was lost, and none comes back")
    if interrupted:
        said.append("interrupted: what had not ended is counted as unfinished")
    return said


def _both(notice: Callable[[int], None] | None, look: Callable[[], None]) -> Callable[[int], None]:
    def told(ended: int) -> None:
        if notice is not None:
            notice(ended)
        look()

    return told


def _uptime(fleet: Fleet, end_s: float) -> tuple[float, float]:
    """Replica time that all pools wanted, and of that available [s]."""
    pools = [fleet.uptime(pool, end_s) for pool in fleet.pools]
    return sum(wanted_s for wanted_s, _ in pools), sum(available_s for _, available_s in pools)


def _run_clock(clock: Clock, until_s: float) -> bool:
    """Run the events; whether the user interrupted.

    The collector of reference cycles is off meanwhile: the loop makes none, and looking for them among a million requests costs a
    tenth of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        clock.run(until_s)
    except KeyboardInterrupt:
        return True
    finally:
        if collecting:
            gc.enable()
    return False


def _manifest(
    live: _Live,
    row: Mapping[str, Any],
    wall_s: float,
    warnings: Sequence[str],
    interrupted: bool,
    reason: str,
) -> dict[str, Any]:
    """What makes the run repeatable, and how it went."""
    packages = ("simpy", "numpy", "pyarrow", "pydantic")
    return {
        "schema_version": SCHEMA_VERSION,
        "fleetsim_version": __version__,
        "scenario_digest": live.digest,
        "scenario_file": str(live.loaded.path) if live.loaded.path else None,
        "scenario": live.loaded.resolved,
        "seed": live.scenario.seed,
        "status": "interrupted" if interrupted else "complete",
        "verdict": row["verdict"],
        "verdict_reason": reason,
        "python": platform.python_version(),
        "platform": sys.platform,
        "packages": {name: _version(name) for name in packages},
        "wall_s": wall_s,
        "events": live.clock.events,
        "checked": live.check,
        "warnings": list(warnings),
        "summary": dict(row),
        "manifest": MANIFEST,
    }


_version = cache(version)
"""Of an installed package: looked up once, which takes as long as a thousand requests."""


def _assumptions(fleet: Fleet) -> list[str]:
    """Catalogue values in use whose source is an assumption."""
    texts: dict[str, None] = {}
    for pool in fleet.pools:
        chip, parallelism = pool.accelerator, pool.config.parallelism
        engine = engine_profile(pool.config.engine)
        used = [(chip.name, chip.sourced), (f"engine {engine.name}", engine.sourced)]
        if parallelism.accelerators > 1:
            used.append((f"link {pool.link.name}", pool.link.sourced))
        for name, values in used:
            for path, value in values.items():
                if path.startswith("thermal.") and pool.config.power.thermal is None:
                    continue
                if value.is_assumed:
                    texts[f"{name}.{path} = {value.published:g} {value.unit}".rstrip()] = None
    return list(texts)


def _extrapolated(fleet: Fleet) -> list[str]:
    """Chips whose step times nobody measured, and what step-time models remark on how far they reach."""
    texts: dict[str, None] = {}
    for pool in fleet.pools:
        chip = pool.accelerator
        if chip.status != "measured":
            texts[f"{chip.name}: step times are {chip.status}, from the data sheet and generic efficiencies"] = None
        texts |= dict.fromkeys(f"{pool.name}: {text}" for text in getattr(pool.model, "remarks", tuple)())
    return list(texts)


def _verify_request(request: Request) -> None:
    """Law 2: a request's times are in order and it got what it asked for."""
    from fleetsim.workload.request import FINISHED

    if request.status != FINISHED:
        return
    if request.images:
        encoded = (request.arrival_s, request.encode_start_s, request.encode_end_s)
        if (
            not all(earlier <= later for earlier, later in pairwise(encoded))
            or request.encode_end_s > request.first_scheduled_s
        ):
            raise LawError(f"law 2 (order of times): request {request.id} was encoded at {encoded}")
    times = (request.arrival_s, request.queued_s, request.first_scheduled_s, request.first_token_s, request.end_s)
    if not all(earlier <= later for earlier, later in pairwise(times)):  # NaN is out of order too
        raise LawError(f"law 2 (order of times): request {request.id} has {times}")
    if request.generated != request.output_tokens:
        raise LawError(
            f"law 2 (tokens): request {request.id} got {request.generated} of {request.output_tokens} tokens"
        )


def _verify_totals(summary: Mapping[str, Any]) -> None:
    """Laws 1 and 5: requests and energy add up."""
    states = sum(summary[k] for k in ("finished", "rejected", "timed_out", "failed", "unfinished"))
    if states != summary["requests"]:
        raise LawError(f"law 1 (conservation): {summary['requests']} requests, {states} in terminal states")
    for meter in ("energy", "site_energy"):
        total = summary[f"{meter}_j"]
        charged = summary[f"{meter}_requests_j"] + summary[f"{meter}_idle_j"]
        if abs(charged - total) > 1e-9 * max(total, 1.0):
            raise LawError(f"law 5 ({meter.replace('_', ' ')}): meter {total} J, requests and idle {charged} J")
    for what, meter, requests, idle, unit in (
        ("carbon", "carbon_g", "carbon_requests_g", "carbon_idle_g", "g"),
        ("embodied carbon", "embodied_g", "embodied_requests_g", "embodied_idle_g", "g"),
        ("electricity", "electricity_cost_usd", "electricity_requests_usd", "electricity_idle_usd", "USD"),
        ("cost", "cost_usd", "cost_requests_usd", "cost_idle_usd", "USD"),
    ):
        if summary.get(meter) is not None:
            charged = summary[requests] + summary[idle]
            if abs(charged - summary[meter]) > 1e-9 * max(abs(summary[meter]), 1e-3):
                raise LawError(f"law 5 ({what}): meter {summary[meter]} {unit}, requests and idle {charged} {unit}")


def folder_name(name: str) -> str:
    """A scenario's name as the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-")[:80] or "scenario"
