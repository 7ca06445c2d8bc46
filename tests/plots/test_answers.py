"""Figures of runs in which somebody chooses among models: their numbers are those of the tables that they are drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import fleetsim
from fleetsim.plots import answers, grid, pareto
from fleetsim.plots.answers import NOBODY, AnswerDigest
from fleetsim.plots.style import COLOURS, GREY, Mark, marks_of
from fleetsim.results.folder import Results, open_results
from tests.plots.test_figures import assert_told, trace

ROOT = Path(__file__).parents[2]
COUNT = 500


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Models at random, one with a reasoning budget; some requests are turned away."""
    overrides = {
        "workload.requests": COUNT,
        "quality.models": {
            "llama-3.2-3b": {"price": {"input": 0.06, "output": 0.06}},
            "qwen2.5-7b": {"price": {"input": 0.07, "output": 0.07}, "budgets": [0, 512]},
            "qwen2.5-14b": {"price": {"input": 0.15, "output": 0.15}},
        },
        "gateway.admission": {"policy": "queue-cap", "per_replica": 12},
        "gateway.model_router": "random",
        "workload.arrivals.rate": "60 req/s",
    }
    out = tmp_path_factory.mktemp("answers") / "run"
    fleetsim.run(ROOT / "scenarios/models/three-models.yaml", out=out, overrides=overrides)
    return open_results(out)


@pytest.fixture(scope="module")
def digest(run: Results) -> AnswerDigest:
    return digest_of(run, 64)


def digest_of(results: Results, rows: int) -> AnswerDigest:
    """Read in batches of a few rows."""
    found = AnswerDigest(results.runs[0].figures["simulated_s"])
    for batch in results.scan("requests", answers.COLUMNS):
        for start in range(0, len(batch), rows):
            found.add(batch.slice(start, rows))
    return found


@pytest.fixture(scope="module")
def rows(run: Results) -> list[dict[str, Any]]:
    """Requests in order of arrival."""
    table = run.table("requests", run.runs[0]).sort_by("arrival_s")
    return list(table.select([*answers.COLUMNS, "status"]).to_pylist())


def test_shares_add_up_to_all_requests(digest: AnswerDigest, rows: list[dict[str, Any]]) -> None:
    table = digest.share_table("run")
    models = answers.in_order({name for name in table["model"].to_pylist() if name != NOBODY})
    assert models == ["llama-3.2-3b", "qwen2.5-7b", "qwen2.5-7b@512", "qwen2.5-14b"]
    told = {name: 0 for name in [*models, NOBODY]}
    for row in table.to_pylist():
        told[row["model"]] += row["answers"]
    counted = {name: 0 for name in told}
    for row in rows:
        budget = f"@{row['budget_tokens']}" if row["budget_tokens"] else ""
        counted[NOBODY if row["quality"] is None else f"{row['model']}{budget}"] += 1
    assert told == counted
    assert counted[NOBODY] > 20, "the test needs requests without an answer"
    fig = answers.shares_over_time(table)
    assert_told(fig)
    stacked = np.sum([line.y for line in fig.data], axis=0)
    np.testing.assert_allclose(stacked, 1.0)
    assert [line.name for line in fig.data] == [*models, NOBODY]
    assert fig.data[-1].line.color == GREY
    assert {line.line.color for line in fig.data}.isdisjoint(COLOURS)
    first = [row for row in rows if row["arrival_s"] < table["end_s"][0].as_py()]
    share = np.mean([row["model"] == models[0] and row["quality"] is not None for row in first])
    assert fig.data[0].y[0] == pytest.approx(share)


def test_regret_is_that_of_the_summary(run: Results, digest: AnswerDigest, rows: list[dict[str, Any]]) -> None:
    table = digest.regret_table("random")
    assert table["requests"][-1].as_py() == COUNT
    last = table["regret"][-1].as_py()
    assert last / COUNT == pytest.approx(run.runs[0].figures["quality_regret_mean"])
    so_far = np.cumsum([row["best_quality"] - (row["quality"] or 0.0) for row in rows])
    for requests, regret in zip(table["requests"].to_pylist(), table["regret"].to_pylist(), strict=True):
        assert regret == pytest.approx(so_far[int(requests) - 1] if requests else 0.0)
    fig = answers.regret(table)
    assert_told(fig)
    assert fig.data[0].y[-1] == pytest.approx(last)
    assert len(fig.data) == 1
    assert "replications" not in fig.layout.meta["note"]


def test_of_replications_the_mean_regret_is_drawn_with_its_band() -> None:
    slopes = (0.1, 0.2, 0.3)
    tables = [
        pa.table({"series": ["a"] * 3, "requests": [0.0, 50.0, 100.0 + n], "regret": [0.0, 50 * s, (100 + n) * s]})
        for n, s in enumerate(slopes)
    ]
    one = pa.table({"series": ["b"] * 2, "requests": [0.0, 100.0], "regret": [0.0, 40.0]})
    marks = marks_of(["b", "a"])
    fig = answers.regret(pa.concat_tables([*tables, one]), marks)
    line = trace(fig, "a", "lines")
    lines = {t.name: t for t in fig.data if t.fill is None}
    assert line.fill == "toself"
    assert lines["a"].x[-1] == 100.0, "as far as all runs go"
    np.testing.assert_allclose(lines["a"].y, 0.2 * lines["a"].x)
    half = 4.302652729911275 * 0.1 * 100.0 / 3**0.5  # Student's t, 2 degrees of freedom
    assert line.y[199] == pytest.approx(20.0 + half)
    assert lines["b"].y[-1] == 40.0
    assert {t.name for t in fig.data if t.fill} == {"a"}
    assert {name: t.line.color for name, t in lines.items()} == {name: marks[name].colour for name in ("a", "b")}
    assert "3 replications" in fig.layout.meta["note"]


def test_calibration_is_that_of_the_answers(run: Results, digest: AnswerDigest, rows: list[dict[str, Any]]) -> None:
    table = digest.calibration_table("random")
    told = [row for row in rows if row["quality"] is not None]
    shown = table.to_pylist()
    assert len(shown) >= 5
    for bar in shown:
        tenth = int(bar["expected"] * 10)
        members = [row for row in told if int(row["expected_quality"] * 10) == tenth]
        qualities = np.array([row["quality"] for row in members])
        assert bar["answers"] == len(members) >= 10
        assert bar["quality"] == pytest.approx(qualities.mean())
        assert bar["half_width"] == pytest.approx(1.96 * qualities.std(ddof=1) / len(members) ** 0.5)
    binned = digest._binned
    error = np.abs(binned[1] - binned[2]).sum() / binned[0].sum()
    assert error == pytest.approx(run.runs[0].figures["predictor_calibration_error"])
    fig = answers.calibration(table)
    assert_told(fig)
    assert list(trace(fig, "random").y) == [bar["quality"] for bar in shown]


def test_batches_of_any_length_tell_the_same(run: Results, digest: AnswerDigest) -> None:
    whole = digest_of(run, 1 << 16)
    assert whole.share_table("a").equals(digest.share_table("a"))
    assert whole.regret_table("a").equals(digest.regret_table("a"))
    pairs = zip(whole.calibration_table("a").to_pylist(), digest.calibration_table("a").to_pylist(), strict=True)
    for one, other in pairs:
        assert one == pytest.approx(other)


def test_requests_of_whom_nobody_knows_the_quality_are_left_out() -> None:
    empty = AnswerDigest(10.0)
    columns: dict[str, Any] = {name: pa.array([None] * 3, pa.float64()) for name in answers.COLUMNS}
    columns |= {"arrival_s": pa.array([0.0, 1.0, 2.0]), "model": pa.array(["m"] * 3)}
    empty.add(pa.RecordBatch.from_pydict(columns))
    assert not empty.arrived.any()
    assert len(empty.share_table("a")) == 0
    assert len(empty.calibration_table("a")) == 0


def test_a_run_in_which_nobody_gets_an_answer_is_drawn() -> None:
    digest = AnswerDigest(10.0)
    columns: dict[str, Any] = {name: pa.array([None] * 3, pa.float64()) for name in answers.COLUMNS}
    columns |= {
        "arrival_s": pa.array([0.0, 1.0, 2.0]), "best_quality": pa.array([0.5] * 3), "model": pa.array([None] * 3, pa.string()),
    }  # fmt: skip
    digest.add(pa.RecordBatch.from_pydict(columns))
    shares = answers.shares_over_time(digest.share_table("a"))
    assert [(line.name, set(line.y)) for line in shares.data] == [(NOBODY, {1.0})]
    assert answers.regret(digest.regret_table("a")).data[0].y[-1] == 1.5
    assert len(answers.calibration(digest.calibration_table("a")).data) == 1, "the diagonal alone"


def rated() -> pa.Table:
    """Two routers at two rates with two replications each, one of them without an answer."""
    rows = [
        {
            "series": series, "rate_per_s": rate, "axis.router": series, "axis.rate": rate, "cost_usd": usd,
            "quality": quality + 0.02 * replication, "latency_s": rate / 10.0,
            "e2el_p99_s": rate / 10.0 if (series, rate, replication) != ("dear", 10.0, 1) else None,
        }
        for series, quality, usd in (("cheap", 0.5, 0.1), ("dear", 0.8, 0.4))
        for rate in (5.0, 10.0)
        for replication in (0, 1)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def test_the_area_of_a_point_is_its_cost() -> None:
    fig = pareto.quality_latency(rated())
    assert_told(fig)
    cheap, dear = (trace(fig, name) for name in ("cheap", "dear"))
    assert [side**2 for side in dear.marker.size] == pytest.approx([4 * side**2 for side in cheap.marker.size])
    assert max(dear.marker.size) == pareto.LARGEST
    np.testing.assert_allclose(cheap.x, [500.0, 1000.0])
    np.testing.assert_allclose(cheap.y, 0.51)
    np.testing.assert_allclose(dear.y, [0.81, 0.8])  # of the last, the run that has a latency
    assert fig.layout.xaxis.title.text == "E2E latency, p99 [ms]"
    assert "0.1 to 0.4 USD per 1,000 requests" in fig.layout.meta["note"]


def test_the_three_maps_have_the_same_places() -> None:
    fig = grid.quality_maps(rated(), "axis.rate", "axis.router")
    assert_told(fig)
    titles = [note.text for note in fig.layout.annotations]
    assert titles == [
        "quality, mean over requests [%] ↑", "E2E latency p99 [ms] ↓", "cost [USD per 1,000 requests] ↓",
    ]  # fmt: skip
    quality, latency, cost = fig.data
    assert {tuple(panel.x) for panel in fig.data} == {("5", "10")}
    assert {tuple(panel.y) for panel in fig.data} == {("cheap", "dear")}
    assert np.array(quality.text).tolist() == [["51%", "51%"], ["81%", "81%"]]
    assert np.array(latency.text).tolist() == [["500", "1,000"]] * 2
    assert np.array(cost.text).tolist() == [["0.1", "0.1"], ["0.4", "0.4"]]


def test_colours_of_maps_go_by_the_logarithm_where_values_range_far() -> None:
    table = rated()
    far = table.set_column(table.schema.get_field_index("cost_usd"), "cost_usd", pa.array([1.0] * 4 + [100.0] * 4))
    fig = grid.quality_maps(far, "axis.rate", "axis.router")
    np.testing.assert_allclose(np.array(fig.data[2].z, dtype=float), [[0.0, 0.0], [2.0, 2.0]])


def test_single_models_are_named_and_can_be_mixed_and_oracles_cannot() -> None:
    table = pa.table({
        "series": ["small", "large", "router", "oracle"], "cost_usd": [1.0, 4.0, 2.0, 1.5],
        "quality": [0.5, 0.8, 0.7, 0.95],
    })  # fmt: skip
    star = Mark(GREY, "dot", "star-open")
    fig = pareto.cost_quality(table, marks={"oracle": star}, unreachable=("oracle",), singles=("small", "large"))
    assert_told(fig)
    single = next(t for t in fig.data if t.name == "one model")
    assert list(single.text) == ["small", "large"]
    hull = next(t for t in fig.data if t.name == "mix of two")
    assert list(zip(hull.x, hull.y, strict=True)) == [(1.0, 0.5), (2.0, 0.7), (4.0, 0.8)]
    assert next(t for t in fig.data if t.name == "oracle").marker.color == GREY
