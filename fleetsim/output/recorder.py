"""Rows as they happen, turned into Arrow batches column by column."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from fleetsim.engine.gaps import BUCKETS, edge_s
from fleetsim.engine.replica import Meter
from fleetsim.fleet.fleet import Fleet
from fleetsim.fleet.gateway import Gateway
from fleetsim.fleet.ledger import Bill
from fleetsim.fleet.pool import Pool
from fleetsim.fleet.tariffs import Tariffs
from fleetsim.fleet.uptime import availability
from fleetsim.fleet.ways import Ways
from fleetsim.kernel.clock import SAMPLE
from fleetsim.metrics.columns import array_of, column
from fleetsim.metrics.slo import slo_met
from fleetsim.output.answers import answer_columns
from fleetsim.output.tables import arrow_schema
from fleetsim.scenario.schema import Energy, Slo
from fleetsim.units import UNITS
from fleetsim.workload.request import FINISHED, STATUS, Request

if TYPE_CHECKING:
    from fleetsim.fleet.answering import Answering

KWH_J = UNITS["energy"]["kWh"]
NO_BILL = Bill()
"""Of requests that used nothing."""
FLUSH_ROWS = 2048
"""Few enough that ended requests are still in the processor's cache when their columns are made."""


class Sink(Protocol):
    """Takes batches of rows."""

    def write(self, table: str, batch: pa.RecordBatch) -> None:
        """Append rows to a table."""
        ...


class RequestLog:
    """Ended requests, kept as objects until there are enough for a batch.

    Parameters
    ----------
    slo : Slo or None
        Limits for the column ``slo_met``.
    energy : Energy
        Overheads and carbon intensity of the site.
    """

    def __init__(self, slo: Slo | None, energy: Energy) -> None:
        self.written = 0
        """Rows written so far."""
        self._slo = slo
        self._energy = energy
        self._on_notice: Callable[[int], None] | None = None
        self._sink: Sink | None = None
        self._rows: list[Request] = []
        self._pools: np.ndarray[Any, Any] = np.zeros(0, np.int32)
        self._pool_names: list[str] = []
        self._llm_names: list[str] = []
        self._swapping: np.ndarray[Any, Any] = np.zeros(0, np.bool_)
        self._usd_per_s: np.ndarray[Any, Any] = np.zeros(0)
        self._host_w: np.ndarray[Any, Any] = np.zeros(0)
        self._tariffs: Tariffs | None = None
        self._ways: Ways | None = None
        self._answering: Answering | None = None
        self._sites: list[str] = []
        self._placed: np.ndarray[Any, Any] = np.zeros(0, np.int32)
        """Site of each pool, below 0 where there are none."""
        self._good: np.ndarray[Any, Any] | None = None
        """Requests of each pool that kept their objectives, where somebody watches."""

    def count_good(self) -> None:
        """Count from now on the requests of each pool that keep their objectives (that finish, where there are none)."""
        self._good = np.zeros(len(self._pool_names), dtype=np.int64)

    def good_by_pool(self) -> list[int]:
        """That count; what has ended and is not written yet is missing."""
        return [] if self._good is None else [int(count) for count in self._good]

    def bind(self, fleet: Fleet, sink: Sink, on_notice: Callable[[int], None] | None = None) -> None:
        """Learn which replica belongs to which pool, where batches go, and whom to tell now and then how many ended."""
        self._sink = sink
        self._on_notice = on_notice
        self._pools = np.array([pool.index for pool in fleet.pool_of], dtype=np.int32)
        self._pool_names = [pool.name for pool in fleet.pools]
        self._llm_names = [pool.llm.name for pool in fleet.pools]
        self._swapping = np.array([pool.swapping for pool in fleet.pools])
        self._usd_per_s = np.array([pool.price_usd_per_h / 3600.0 for pool in fleet.pool_of])
        self._host_w = np.array([pool.host_busy_w for pool in fleet.pool_of])
        self._tariffs = None if fleet.ledger is None else fleet.tariffs
        self._ways = fleet.ways
        self._answering = fleet.answering
        self._sites = list(fleet.tariffs.sites) or [""]
        placed = [pool.config.site for pool in fleet.pools]
        self._placed = np.array([-1 if site is None else self._sites.index(site) for site in placed], dtype=np.int32)

    def take(self, request: Request) -> None:
        """Record a request that ended."""
        rows = self._rows
        rows.append(request)
        if len(rows) >= FLUSH_ROWS:
            self.flush()
            if self._on_notice is not None:
                self._on_notice(self.written)

    def flush(self) -> None:
        """Write what is waiting."""
        rows = self._rows
        if not rows:
            return
        assert self._sink is not None
        self._sink.write("requests", self._batch(rows))
        self.written += len(rows)
        rows.clear()

    def _batch(self, rows: Sequence[Request]) -> pa.RecordBatch:
        def floats(name: str) -> np.ndarray[Any, Any]:
            return np.fromiter(map(attrgetter(name), rows), np.float64, len(rows))

        def ints(name: str) -> np.ndarray[Any, Any]:
            return np.fromiter(map(attrgetter(name), rows), np.int64, len(rows))

        arrival, end, first = floats("arrival_s"), floats("end_s"), floats("first_token_s")
        queued, scheduled = floats("queued_s"), floats("first_scheduled_s")
        output, replica = ints("generated"), ints("replica")
        prefill, images = ints("prefill_replica"), ints("images")
        encoder, encode_start, encode_end = images, np.full(len(rows), np.nan), np.full(len(rows), np.nan)
        if images.any():
            encoder, encode_start, encode_end = ints("encode_replica"), floats("encode_start_s"), floats("encode_end_s")
        status = ints("status")
        finished = status == FINISHED
        served = replica >= 0
        pool = np.where(served, self._pools[replica], -1)
        with np.errstate(invalid="ignore", divide="ignore"):
            back, first_back = self._ways_back(rows)
            ttft, e2el = first + first_back - arrival, np.where(finished, end + back - arrival, np.nan)
            tpot = np.where(finished & (output > 1), (end - first) / (output - 1), np.nan)
            ntpot = e2el / output
        classes = list(map(attrgetter("klass"), rows))
        met = slo_met(self._slo, classes, finished, ttft, tpot, e2el) if self._slo is not None else None
        if self._good is not None:
            good = served & (finished if met is None else met)
            self._good += np.bincount(pool[good], minlength=len(self._good))
        busy, energy = floats("cost_share_s"), floats("energy_j")
        cost = floats("paid_usd") + busy * np.where(served, self._usd_per_s[replica], 0.0)
        hosts = floats("host_energy_j") + busy * np.where(served, self._host_w[replica], 0.0)
        site, carbon, electricity, embodied = self._site(rows, energy, hosts)
        columns: dict[str, Any] = {
            "request_id": ints("id"),
            "session_id": _ints_or_null(ints("session")),
            "turn": column(ints("turn"), None, pa.int32()),
            "tenant": _names(list(map(attrgetter("tenant"), rows))),
            "class": _names(classes),
            "model": self._models(rows, pool),
            "pool": _coded(pool, self._pool_names),
            "replica": column(replica, ~served, pa.int32()),
            "site": _coded(np.where(pool >= 0, self._placed[pool], -1), self._sites),
            "origin": _names(list(map(attrgetter("origin"), rows))),
            "prefill_replica": column(prefill, prefill < 0, pa.int32()),
            "encode_replica": column(encoder, np.isnan(encode_start), pa.int32()),
            "status": _coded(status, STATUS),
            "reason": _names(list(map(attrgetter("reason"), rows))),
            "arrival_s": arrival,
            "encode_start_s": _float_or_null(encode_start),
            "encode_end_s": _float_or_null(encode_end),
            "queued_s": _float_or_null(queued),
            "first_scheduled_s": _float_or_null(scheduled),
            "first_token_s": _float_or_null(first),
            "end_s": _float_or_null(end),
            "prompt_tokens": ints("prompt_tokens"),
            "images": column(images, None, pa.int32()),
            "image_tokens": ints("image_tokens") if images.any() else images,
            "output_tokens": output,
            "cached_tokens": ints("cached_tokens"),
            "loaded_tokens": ints("loaded_tokens"),
            "load_s": floats("load_s"),
            "dropped_tokens": ints("dropped_tokens"),
            "approximate_tokens": ints("approximate_tokens"),
            "preemptions": column(ints("preemptions"), None, pa.int32()),
            "migrations": column(ints("migrations"), None, pa.int32()),
            "ttft_s": _float_or_null(ttft),
            "tpot_s": _float_or_null(tpot),
            "ntpot_s": _float_or_null(ntpot),
            "e2el_s": _float_or_null(e2el),
            "encode_s": _float_or_null(encode_end - encode_start),
            "queue_wait_s": _float_or_null(scheduled - queued),
            "return_s": back if isinstance(back, np.ndarray) else np.zeros(len(rows)),
            **_parts(scheduled, first, end, finished, floats),
            "itl_max_s": _float_or_null(np.where(output > 1, floats("itl_max_s"), np.nan)),
            "energy_j": energy,
            "site_energy_j": site,
            "carbon_g": carbon,
            "embodied_g": embodied,
            "electricity_usd": electricity,
            "cost_usd": cost,
            "slo_met": pa.nulls(len(rows), pa.bool_()) if met is None else column(met),
            **answer_columns(rows, self._answering),
        }
        return as_batch("requests", columns)

    def _ways_back(self, rows: Sequence[Request]) -> tuple[np.ndarray[Any, Any] | float, np.ndarray[Any, Any] | float]:
        """Time until the last, and until the first token of each is where the request came from; 0 without sites."""
        ways = self._ways
        if ways is None:
            return 0.0, 0.0

        def back_s(request: Request, replica: int) -> float:
            return ways.back_s(request.origin, replica) if replica >= 0 else 0.0

        last = np.fromiter((back_s(r, r.replica) for r in rows), np.float64, len(rows))
        prompts = (r.replica if r.prefill_replica < 0 else r.prefill_replica for r in rows)
        return last, np.fromiter(map(back_s, rows, prompts), np.float64, len(rows))

    def _site(
        self, rows: Sequence[Request], energy_j: np.ndarray[Any, Any], hosts_j: np.ndarray[Any, Any]
    ) -> tuple[np.ndarray[Any, Any], pa.Array, pa.Array, pa.Array]:
        """Energy of the site, its carbon and its price, and embodied carbon; nulls for what the scenario says nothing of."""
        tariffs = self._tariffs
        if tariffs is None:
            energy = self._energy
            site_j = energy.pue * (energy_j + hosts_j)
            rates = (energy.carbon_intensity, energy.electricity_price)
            carbon, electricity = (site_j / KWH_J * rate if isinstance(rate, float) else None for rate in rates)
            return site_j, _known(carbon, rows), _known(electricity, rows), _known(None, rows)
        bills = [request.bill or NO_BILL for request in rows]

        def floats(name: str, reported: bool = True) -> np.ndarray[Any, Any] | None:
            return np.fromiter(map(attrgetter(name), bills), np.float64, len(rows)) if reported else None

        site = floats("site_j")
        assert site is not None
        return (
            site,
            _known(floats("carbon_g", tariffs.reports_carbon), rows),
            _known(floats("electricity_usd", tariffs.reports_electricity), rows),
            _known(floats("embodied_g", tariffs.reports_embodied), rows),
        )

    def _models(self, rows: Sequence[Request], pool: np.ndarray[Any, Any]) -> pa.DictionaryArray:
        """LLM that served each: the pool's, or where its replicas change theirs, the one asked for."""
        if not self._swapping.any():
            return _coded(pool, self._llm_names)
        names: list[str | None] = []
        for request, number in zip(rows, pool.tolist(), strict=True):
            named = number >= 0 and not self._swapping[number]
            names.append(self._llm_names[number] if named else request.model if number >= 0 else None)
        return _names(names)


class Sampler:
    """Rows of the `replicas` and `fleet` tables: what happened since the last sample."""

    def __init__(self, sink: Sink, fleet: Fleet, interval_s: float, energy: Energy) -> None:
        self._sink = sink
        self._energy = energy
        self._fleet = fleet
        self._interval_s = interval_s
        self._start_s = 0.0
        self._ticks = 0
        self._meters = [Meter(0.0, 0.0, 0, 0, 0, 0)] * len(fleet.replicas)
        self._on_s = [0.0] * len(fleet.replicas)
        self._idle_j: dict[int, float] = {}
        """Idle energy up to the last sample, by replica, where idle power changes."""
        self._loading_j: dict[int, float] = {}
        """Energy of loading LLMs up to the last sample, by replica."""
        self._rows: dict[str, list[tuple[Any, ...]]] = {"replicas": [], "fleet": []}
        self._sent = [0] * len(fleet.pools)
        self._ended = [0] * len(fleet.pools)
        self._uptimes = [(0.0, 0.0)] * len(fleet.pools)
        self.peak_power_w = 0.0
        self.power_w = [0.0] * len(fleet.pools)
        """Mean power of each pool's accelerators in the last interval [W]."""
        self.on_tick: Callable[[], None] | None = None
        """Told of each sample, where somebody watches."""
        self._billed = [(Bill(), Bill())] * len(fleet.pools)
        """What each pool had cost at the last sample, where prices change."""
        self._schedule()

    def _schedule(self) -> None:
        self._ticks += 1
        self._fleet.clock.at(self._ticks * self._interval_s, self._tick, SAMPLE)

    def _tick(self) -> None:
        fleet = self._fleet
        if fleet.exhausted and not fleet.in_flight and not fleet.expected:
            return
        self.sample(fleet.clock.now_s)
        if self.on_tick is not None:
            self.on_tick()
        if fleet.clock.queue or not fleet.exhausted:  # otherwise a request was lost, and sampling would go on for ever
            self._schedule()

    def sample(self, now_s: float) -> None:
        """Close the interval that ends now."""
        start_s, length_s = self._start_s, now_s - self._start_s
        if length_s <= 0:
            return
        rows = self._rows["replicas"]
        power_w = [0.0] * len(self._fleet.pools)
        host_w = [0.0] * len(self._fleet.pools)
        totals = [[0, 0, 0, 0] for _ in self._fleet.pools]
        for i, (replica, pool) in enumerate(zip(self._fleet.replicas, self._fleet.pool_of, strict=True)):
            before, meter = self._meters[i], replica.meter(now_s)
            self._meters[i] = meter
            busy_s = meter.busy_s - before.busy_s
            life = self._fleet.lives[i]
            on_s = life.on_s(now_s)
            idle_s = on_s - self._on_s[i] - busy_s
            self._on_s[i] = on_s
            supply = pool.supplies.get(i)
            if supply is None:
                idle = replica.model.idle_w * idle_s
                power = pool.config.power
                settings: tuple[float, float | None, float | None] = (power.clock_ratio, power.cap, None)
            else:
                self._idle_j[i], idle = supply.idle_j(now_s), supply.idle_j(now_s) - self._idle_j.get(i, 0.0)
                settings = (supply.clock_ratio, supply.cap_w, _or_none(supply.temperature_c))
            watts = (meter.energy_j - before.energy_j + idle) / length_s
            running = sum(len(batch.running) for batch in replica.batches)
            # what came during a leap is in the queue already, although the replica looks at it at the next boundary only
            waiting = sum(len(batch.waiting) for batch in replica.batches)
            waiting += sum(request.queued_s <= now_s for request in (*replica.inbox, *replica.held))
            steps, prompt = meter.steps - before.steps, meter.prompt_tokens - before.prompt_tokens
            output = meter.output_tokens - before.output_tokens
            capacity = sum(batch.cache.capacity for batch in replica.batches)
            state, held = str(life.state), pool.llm.name
            seat = pool.seats.get(i)
            if seat is not None:
                state, held = (seat.state if life.state == "ready" else state), seat.place.holds
                loading_j = seat.loading_j(now_s)
                watts += (loading_j - self._loading_j.get(i, 0.0)) / length_s
                self._loading_j[i] = loading_j
            used = replica.kv_used_blocks(now_s)
            cached = min(sum(batch.cache.cached for batch in replica.batches), capacity - used)
            rows.append((
                start_s, now_s, pool.name, i, state, running, waiting, used / capacity, cached / capacity,
                min(max(busy_s / length_s, 0.0), 1.0), steps, (prompt + output) / steps if steps else 0.0, prompt, output, watts,
                held, *settings,
            ))  # fmt: skip
            power_w[pool.index] += watts
            host_w[pool.index] += (pool.host_busy_w * busy_s + pool.host_idle_w * idle_s) / length_s
            for k, value in enumerate((prompt, output, running, waiting)):
                totals[pool.index][k] += value
        self._pool_rows(start_s, now_s, power_w, host_w, totals)
        self.power_w = power_w
        self.peak_power_w = max(self.peak_power_w, sum(power_w))
        self._start_s = now_s
        if len(rows) >= FLUSH_ROWS:
            self.flush()

    def _pool_rows(
        self, start_s: float, now_s: float, power_w: list[float], host_w: list[float], totals: list[list[int]]
    ) -> None:
        fleet = self._fleet
        for pool, watts, host, (prompt, output, running, waiting) in zip(
            fleet.pools, power_w, host_w, totals, strict=True
        ):
            site_w, carbon_g, electricity_usd = self._site(pool, start_s, now_s, watts + host)
            sent, ended = fleet.gateway.sent[pool.index], fleet.gateway.finished[pool.index]
            states = [life.state for life in pool.lives]
            paid = sum([life.share for life in pool.lives if life.on])
            wanted = fleet.wanted(pool)
            self._rows["fleet"].append((
                start_s, now_s, pool.name, sent - self._sent[pool.index], ended - self._ended[pool.index], prompt, output,
                running, waiting, wanted, states.count("starting"), states.count("ready"), self._usd_per_h(pool) * paid,
                watts, site_w, carbon_g, electricity_usd,
                _fragmented(pool, now_s), pool.config.site, self._availability(pool, now_s),
            ))  # fmt: skip
            self._sent[pool.index], self._ended[pool.index] = sent, ended

    def _availability(self, pool: Pool, now_s: float) -> float | None:
        """Of the replica time that a pool wanted since the last sample, the part in which replicas were there."""
        before, self._uptimes[pool.index] = self._uptimes[pool.index], self._fleet.uptime(pool, now_s)
        wanted_s, available_s = self._uptimes[pool.index]
        return availability(wanted_s - before[0], available_s - before[1])

    def _usd_per_h(self, pool: Pool) -> float:
        """Price of one replica now."""
        ledger = self._fleet.ledger
        return (
            pool.price_usd_per_h if ledger is None else ledger.accounts[pool.replicas[0].index].rates.usd_per_s * 3600.0
        )

    def _site(
        self, pool: Pool, start_s: float, now_s: float, power_w: float
    ) -> tuple[float, float | None, float | None]:
        """Mean power of a pool's site, and the carbon and the price of its energy in the interval."""
        ledger, energy = self._fleet.ledger, self._energy
        length_s = now_s - start_s
        if ledger is None:
            site_w = energy.pue * power_w
            rates = (energy.carbon_intensity, energy.electricity_price)
            carbon, electricity = (
                site_w * length_s / KWH_J * rate if isinstance(rate, float) else None for rate in rates
            )
            return site_w, carbon, electricity
        bills = ledger.total([replica.index for replica in pool.replicas], now_s)
        site_j, carbon_g, electricity_usd = (
            sum(
                getattr(new, name) - getattr(old, name)
                for new, old in zip(bills, self._billed[pool.index], strict=True)
            )
            for name in ("site_j", "carbon_g", "electricity_usd")
        )
        self._billed[pool.index] = bills
        tariffs = ledger.tariffs
        return (
            site_j / length_s,
            carbon_g if tariffs.reports_carbon else None,
            electricity_usd if tariffs.reports_electricity else None,
        )

    def flush(self) -> None:
        """Write what is waiting."""
        for table, rows in self._rows.items():
            if rows:
                write_rows(self._sink, table, rows)
                rows.clear()


def _fragmented(pool: Pool, now_s: float) -> float:
    """Part of a pool's KV cache that is free and would serve requests that are first in their queues, were it in one place.

    Only requests that find too little room where they are count, those that need least first.
    """
    free, lacking = 0, []
    for replica in pool.replicas:
        if not replica.present:
            continue
        for rank, (batch, room) in enumerate(zip(replica.batches, replica.free_blocks(), strict=True)):
            free += room
            first = replica.first_waiting(rank, now_s)
            needed = 0 if first is None else batch.wanted_blocks(first)
            if needed > room:
                lacking.append(needed)
    served = 0
    for needed in sorted(lacking):
        if served + needed > free:
            break
        served += needed
    return served / sum(batch.cache.capacity for replica in pool.replicas for batch in replica.batches)


def write_gaps(sink: Sink, pools: Sequence[Pool]) -> None:
    """Write the inter-token gap histograms."""
    rows = [
        (pool.name, edge_s(i) if i else 0.0, edge_s(i + 1) if i + 1 < BUCKETS else float("inf"), count)
        for pool in pools
        for i, count in enumerate(pool.gaps.counts)
        if count
    ]
    write_rows(sink, "gaps", rows)


_LOANS: dict[str, Callable[[Gateway], list[int]]] = {
    "loans": lambda gateway: gateway.lending.loans_begun,
    "loans_recalled": lambda gateway: gateway.lending.loans_recalled,
    "loans_given_up": lambda gateway: gateway.lending.loans_given_up,
}
"""Loans of memory by the replica that lends it; those that last until the end of the run are not counted here."""


def write_events(sink: Sink, fleet: Fleet, end_s: float) -> None:
    """Write what happened to replicas: when each was ready, what it evicted, how often it was stopped, who migrated there."""
    rows: list[tuple[Any, ...]] = [
        (0.0, "replica_ready", p.name, r.index, 1) for p in fleet.pools for r in p.replicas[: p.config.replicas]
    ]
    for pool in fleet.pools:
        for replica in pool.replicas:
            evicted = sum(batch.cache.evicted for batch in replica.batches)
            totals = (("kv_evictions", evicted), ("lost_tokens", replica.lost_tokens))
            rows += [(end_s, kind, pool.name, replica.index, count) for kind, count in totals if count]
            if replica.stops is not None and replica.stops.count:
                rows.append((end_s, "interruptions", pool.name, replica.index, replica.stops.count))
                waited_us = round(replica.stops.blocking_s * 1e6)
                rows.append((end_s, "interruption_wait_us", pool.name, replica.index, waited_us))
            index, gateway = replica.index, fleet.gateway
            if gateway.moves.completed_in[index]:
                rows.append((end_s, "migrations", pool.name, index, gateway.moves.completed_in[index]))
                rows.append(
                    (end_s, "migration_pause_us", pool.name, index, round(gateway.moves.paused_in_s[index] * 1e6))
                )
            if gateway.moves.given_up_in[index]:
                rows.append((end_s, "migrations_given_up", pool.name, index, gateway.moves.given_up_in[index]))
            for kind, counts in _LOANS.items():
                if counts(gateway)[index]:
                    rows.append((end_s, kind, pool.name, index, counts(gateway)[index]))
    rows += fleet.gateway.events()
    for source in (fleet.lifecycle, fleet.swapping, fleet.powering):
        if source is not None:
            rows += source.events
    rows.append((end_s, "run_end", None, None, 1))
    write_rows(sink, "events", [row if len(row) > 5 else (*row, None) for row in rows])


def write_rows(sink: Sink, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write rows given as tuples in the order of the table's columns."""
    names = arrow_schema(table).names
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    sink.write(table, as_batch(table, dict(zip(names, columns, strict=True))))


def as_batch(table: str, columns: dict[str, Any]) -> pa.RecordBatch:
    """A record batch with the table's schema."""
    schema = arrow_schema(table)
    arrays = []
    for field in schema:
        values = columns[field.name]
        if isinstance(values, pa.Array):
            arrays.append(values.cast(field.type) if values.type != field.type else values)
        elif pa.types.is_dictionary(field.type):
            arrays.append(_names(list(values)))
        else:
            arrays.append(array_of(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A small table of rows that have the same keys; a column of None alone is of floats."""
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        columns[name] = array_of(values, pa.float64() if set(values) == {None} else None)
    return pa.table(columns)


def _names(values: Sequence[str | None]) -> pa.DictionaryArray:
    if set(values) == {None}:
        return pa.DictionaryArray.from_arrays(pa.nulls(len(values), pa.int32()), array_of([], pa.string()))
    known: dict[str, int] = {}
    codes = [-1 if value is None else known.setdefault(value, len(known)) for value in values]
    indices = np.array(codes, dtype=np.int32)
    return pa.DictionaryArray.from_arrays(column(indices, indices < 0), array_of(list(known), pa.string()))


def _coded(codes: np.ndarray[Any, Any], names: Sequence[str]) -> pa.DictionaryArray:
    """Names by their number; below zero is null."""
    known = list(dict.fromkeys(names))
    place = np.array([known.index(name) for name in names], dtype=np.int32)
    return pa.DictionaryArray.from_arrays(column(place[codes], codes < 0), array_of(known, pa.string()))


def _parts(
    scheduled: np.ndarray[Any, Any],
    first: np.ndarray[Any, Any],
    end: np.ndarray[Any, Any],
    finished: np.ndarray[Any, Any],
    floats: Callable[[str], np.ndarray[Any, Any]],
) -> dict[str, Any]:
    """What finished requests did from their first step on; the four add up to the time until their last token."""
    stall, transfer, late = floats("stall_s"), floats("transfer_s"), floats("late_s")
    parts = {
        "prefill_s": first - scheduled - (stall + transfer - late),
        "transfer_s": transfer,
        "decode_s": end - first - late,
        "stall_s": stall,
    }
    return {name: _float_or_null(np.where(finished, values, np.nan)) for name, values in parts.items()}


def _known(values: np.ndarray[Any, Any] | None, rows: Sequence[Request]) -> pa.Array:
    """A column of numbers; nulls where nobody knows them."""
    return pa.nulls(len(rows), pa.float64()) if values is None else column(values)


def _float_or_null(values: np.ndarray[Any, Any]) -> pa.Array:
    return column(values, np.isnan(values))


def _or_none(value: float) -> float | None:
    return None if value != value else value


def _ints_or_null(values: np.ndarray[Any, Any]) -> pa.Array:
    return column(values, values < 0)
