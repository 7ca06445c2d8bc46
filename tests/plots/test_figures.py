"""Figures say what they show: the numbers of their tables, with units and where they come from."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pytest

from fleetsim.plots import gantt, grid, latencies, over_time, pareto, rates
from fleetsim.plots.digest import RequestDigest, around, quantile
from fleetsim.plots.style import MOST_POINTS, marks_of


def summary() -> pa.Table:
    """Two lines, three rates, three replications."""
    rows = []
    for series, at_most in (("good", 40.0), ("poor", 20.0)):
        for rate in (10.0, 20.0, 40.0):
            for replication in range(3):
                met = 1.0 if rate <= at_most else 0.5
                rows.append({
                    "series": series, "rate_per_s": rate, "label": f"{series} {rate} {replication}",
                    "slo_attainment_ratio": met - 0.001 * replication, "goodput_requests_per_s": rate * met,
                    "ttft_p99_s": rate / 100 + 0.01 * replication, "tpot_p50_s": 0.01 + rate / 10_000,
                    "output_tokens_per_s_per_accelerator": 50 * rate, "axis.router": series, "axis.rate": rate,
                    "cost_per_million_output_tokens_usd": 1.0,
                })  # fmt: skip
    return pa.Table.from_pylist(rows)


def trace(fig: go.Figure, name: str, mode: str = "lines+markers") -> Any:
    return next(t for t in fig.data if t.name == name and t.mode == mode)


def assert_told(fig: go.Figure) -> None:
    """Title, note and table stand in the figure; each drawn axis has a title or the panel above it has one."""
    assert set(fig.layout.meta) == {"title", "note", "table"}
    assert fig.layout.meta["table"] in fig.layout.title.subtitle.text
    for drawn in fig.data:
        for values in (drawn.x, getattr(drawn, "y", None)):
            assert values is None or len(values) <= MOST_POINTS
    assert fig.layout.xaxis.title.text or any(a.text for a in fig.layout.annotations)


def test_means_and_intervals_over_replications() -> None:
    fig = rates.latency(summary(), "ttft", "p99", 0.3)
    assert_told(fig)
    line = trace(fig, "good")
    assert list(line.x) == [10.0, 20.0, 40.0]
    np.testing.assert_allclose(line.y, [110.0, 210.0, 410.0])
    band = next(t for t in fig.data if t.fill == "toself" and t.name == "good")
    half = 4.302652729911275 * 10.0 / 3**0.5  # Student's t, 2 degrees of freedom, standard deviation of 10 ms
    np.testing.assert_allclose(band.y[:3], np.array([110.0, 210.0, 410.0]) + half)
    assert fig.layout.yaxis.title.text == "TTFT p99 [ms]"
    assert "95 %" in fig.layout.meta["note"]


def test_the_highest_rate_that_keeps_the_objective() -> None:
    table = summary()
    assert rates.max_rates(table, 0.99) == {"good": 40.0, "poor": 20.0}
    assert rates.max_rates(table, 1.0) == {"good": None, "poor": None}
    fig = rates.attainment(table, 0.99)
    stars = {t.name: t.x[0] for t in fig.data if t.mode == "markers"}
    assert stars == {"good": 40.0, "poor": 20.0}
    assert_told(fig)
    assert_told(rates.goodput(table))


def test_one_colour_per_line_in_all_figures() -> None:
    table, marks = summary(), marks_of(["poor", "good"])
    figures = [
        rates.goodput(table, marks),
        rates.latency(table, marks=marks),
        pareto.throughput_interactivity(table, marks),
    ]
    for name in ("good", "poor"):
        assert {trace(fig, name).line.color for fig in figures} == {marks[name].colour}


def test_the_frontier_is_what_nothing_beats() -> None:
    x, y = [1, 2, 3, 2, 1.5], [3, 2, 1, 1, 2.9]
    assert pareto.frontier(x, y) == [0, 4, 1, 2]
    rng = np.random.default_rng(1)
    x, y = rng.random(200).tolist(), rng.random(200).tolist()
    best = pareto.frontier(x, y)
    for i in range(200):
        beaten = any(x[j] > x[i] and y[j] > y[i] for j in range(200))
        assert (i in best) == (not beaten)


def test_quality_against_cost_draws_the_upper_hull() -> None:
    table = pa.table({
        "series": ["cheap", "mix", "poor", "dear"], "cost_usd": [1.0, 2.0, 2.5, 4.0], "quality": [0.5, 0.8, 0.6, 0.9],
    })  # fmt: skip
    fig = pareto.cost_quality(table)
    hull = next(t for t in fig.data if t.name == "mix of two")
    assert list(zip(hull.x, hull.y, strict=True)) == [(1.0, 0.5), (2.0, 0.8), (4.0, 0.9)]
    without = pareto.cost_quality(table, unreachable=("mix",))
    hull = next(t for t in without.data if t.name == "mix of two")
    assert list(zip(hull.x, hull.y, strict=True)) == [(1.0, 0.5), (4.0, 0.9)]
    assert "mix" in [t.name for t in without.data]
    assert_told(fig)


def batches(count: int = 10_000) -> tuple[np.ndarray[Any, Any], list[pa.RecordBatch]]:
    rng = np.random.default_rng(5)
    ttft = rng.lognormal(-2, 1, count)
    arrival = np.sort(rng.uniform(0, 50, count))
    zero = np.zeros(count)
    whole = pa.RecordBatch.from_pydict({
        "request_id": np.arange(count), "arrival_s": arrival, "encode_s": zero, "queued_s": arrival,
        "first_scheduled_s": arrival, "first_token_s": arrival + ttft, "end_s": arrival + ttft + 1.0, "load_s": zero,
        "return_s": zero, "output_tokens": zero + 11, "slo_met": ttft < 0.2, "ttft_s": ttft, "tpot_s": zero + 0.1,
        "e2el_s": ttft + 1.0, "class": ["a" if i % 3 else "b" for i in range(count)], "status": ["finished"] * count,
        "pool": ["main"] * count, "replica": zero.astype(int), "prompt_tokens": zero + 100,
    })  # fmt: skip
    return ttft, [whole.slice(i, 1000) for i in range(0, count, 1000)]


def test_a_distribution_is_within_a_bucket_of_the_exact_one() -> None:
    ttft, parts = batches()
    digest = RequestDigest(60.0, {None: {"ttft": 0.2}, "b": {"ttft": 0.1}})
    for part in parts:
        digest.add(part)
    table = digest.latency_table("all")
    rows = [row for row in table.to_pylist() if row["metric"] == "ttft_s"]
    low, high, counts = (np.array([row[name] for row in rows]) for name in ("low_s", "high_s", "count"))
    for share in (0.01, 0.5, 0.9, 0.99, 0.999):
        exact = np.quantile(ttft, share)
        assert quantile(low, high, counts, share) == pytest.approx(exact, rel=0.01)
    assert digest.share_within("ttft") == (ttft <= 0.2).mean()
    assert digest.share_within("ttft", "b") == (ttft[::3] <= 0.1).mean()
    assert digest.share_within("e2el") is None
    fig = latencies.cdf(table, "ttft_s", {"SLO": 0.2})
    assert_told(fig)
    line = fig.data[0]
    assert fig.layout.xaxis.type == "log"
    assert max(line.y) == 1.0
    assert np.interp(0.2, np.array(line.x), np.array(line.y)) == pytest.approx((ttft <= 0.2).mean(), abs=0.01)


def test_the_requests_around_an_instant_are_the_nearest() -> None:
    _, parts = batches()
    arrival = np.concatenate([part.column("arrival_s").to_numpy() for part in parts])
    found = around(iter(parts), 20.0, 200)["arrival_s"].to_numpy()
    exact = np.sort(arrival[np.argsort(np.abs(arrival - 20.0))[:200]])
    assert found.tolist() == exact.tolist()


def test_bars_of_requests_span_their_phases() -> None:
    _, parts = batches()
    table = around(iter(parts), 20.0, 500)
    fig = gantt.gantt(table)
    assert_told(fig)
    bars = {bar.name: bar for bar in fig.data}
    assert len(bars["decode"].x) == gantt.MOST
    assert np.allclose(bars["decode"].x, 1.0)
    assert "queue" not in bars, "nobody waited"


def fleet(intervals: int = 1000) -> pa.Table:
    end = np.arange(1, intervals + 1) * 10.0
    one = {
        "start_s": end - 10, "end_s": end, "arrivals": np.full(intervals, 50), "waiting": np.arange(intervals) % 7,
        "replicas_wanted": np.full(intervals, 3), "replicas_ready": np.full(intervals, 2),
        "replicas_starting": np.arange(intervals) % 2, "cost_usd_per_h": np.linspace(1, 2, intervals),
        "site_power_w": np.full(intervals, 1500.0), "carbon_g": np.full(intervals, 5.0),
        "electricity_usd": [None] * intervals,
    }  # fmt: skip
    tables = [pa.table({"pool": [name] * intervals, **one}) for name in ("a", "b")]
    table = pa.concat_tables(tables)
    return table.set_column(
        table.schema.get_field_index("electricity_usd"), "electricity_usd", pa.nulls(len(table), pa.float64())
    )


def test_rates_over_time_keep_their_integral_when_thinned() -> None:
    fig = over_time.scaling(fleet(), None, None)
    assert_told(fig)
    arrivals = next(t for t in fig.data if t.name == "a")
    assert len(arrivals.x) <= over_time.MOST_COLUMNS + 1  # both ends
    assert np.allclose(arrivals.y, 5.0)
    strips = over_time.meters(fleet())
    assert_told(strips)
    titles = [a.text for a in strips.layout.annotations]
    assert titles == ["power of the site [kW]", "price of replicas paid for [USD/h]", "greenhouse gases [kg CO2e/h]"]
    carbon = [t for t in strips.data if t.name == "a"][2]
    assert np.allclose(carbon.y, 5.0 / 10 * 3.6)


def test_heat_maps_hold_means_of_intervals_and_leave_out_who_is_off() -> None:
    rows = [
        {"start_s": 10.0 * i, "end_s": 10.0 * (i + 1), "pool": "main", "replica": r, "steps": 10, "prompt_tokens": 50,
         "output_tokens": 10 * (r + 1), "kv_used_ratio": 0.1 * (r + 1), "waiting": i, "power_w": 300.0 if r < 2 else 0.0,
         "state": "ready" if r < 2 else "off"}
        for i in range(6) for r in range(3)
    ]  # fmt: skip
    batch = pa.RecordBatch.from_pylist(rows)
    bins = over_time.ReplicaBins(60.0, 10.0, True)
    bins.add(batch)
    table = bins.table()
    assert table["row"].to_pylist()[:1] == ["main 0"]
    assert set(table["row"].to_pylist()) == {"main 0", "main 1"}
    fig = over_time.heat_maps(table, "replica")
    assert_told(fig)
    batch_map, kv, queue, power = fig.data
    assert np.allclose(batch_map.z, [[6.0] * 6, [7.0] * 6])
    assert np.allclose(kv.z, [[0.1] * 6, [0.2] * 6])
    assert np.allclose(queue.z, [list(range(6))] * 2)
    assert np.allclose(power.z, 300.0)
    assert len(power.x) == 7


def test_the_grid_of_two_axes_marks_what_is_below_the_target() -> None:
    fig = grid.attainment_grid(summary(), "axis.rate", "axis.router", 0.99)
    assert_told(fig)
    cells = fig.data[0]
    assert list(cells.x) == ["10", "20", "40"]
    assert list(cells.y) == ["good", "poor"]
    assert [text.endswith("✗") for text in cells.text[1]] == [False, False, True]


def test_runs_side_by_side_show_what_is_known() -> None:
    fig = grid.compared(summary())
    titles = [a.text for a in fig.layout.annotations]
    assert titles[0] == "goodput [requests/s] ↑"
    assert "energy [J/output token] ↓" not in titles
    assert len(fig.data) == 2 * len(titles)


def test_where_the_time_goes_adds_up_for_each_percentile() -> None:
    ttft, parts = batches()
    digest = RequestDigest(60.0)
    for part in parts:
        digest.add(part)
    fig = latencies.where_time_goes(digest.parts_table("all"), "ttft")
    assert_told(fig)
    prefill = next(bar for bar in fig.data if bar.name == "prefill")
    told = dict(zip(prefill.y, prefill.x, strict=True))
    assert told["mean"] == pytest.approx(1e3 * ttft.mean(), rel=1e-9)
    assert told["p99"] == pytest.approx(1e3 * np.quantile(ttft, 0.99), rel=0.05)
