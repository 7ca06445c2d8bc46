"""What stands on a page, without looking at it."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

import fleetsim
from fleetsim.cli.main import cli
from fleetsim.errors import InputError
from fleetsim.plots.style import COLOURS
from fleetsim.plugins import PolicyConfig
from fleetsim.reporting.build import MOST_BYTES
from fleetsim.reporting.content import MOST_LINES, _best_lines, _beyond, page
from fleetsim.results.folder import open_results
from fleetsim.routing.api import Reject
from tests.report.conftest import HOSTILE


def test_the_answer_of_one_run(hostile: Path) -> None:
    content = page(open_results(hostile))
    summary = open_results(hostile).runs[0].manifest["summary"]
    assert content.word == summary["verdict"]
    assert content.slo.startswith("SLO missed: 50% of requests within all limits (TTFT ≤ 500 ms, TPOT ≤ 60 ms)")
    assert summary["slo_attainment_ratio"] == 0.5
    assert [section.id for section in content.sections] == [
        "latencies", "time", "heat", "scaling", "meters", "groups", "gantt",
    ]  # fmt: skip
    assert {table.title for section in content.sections for table in section.tables} >= {"Pools", "Tenants", "Classes"}
    assert content.assumptions == open_results(hostile).runs[0].manifest["assumptions"]


def test_the_answer_of_a_study(study: Path) -> None:
    content = page(open_results(study))
    assert [section.id for section in content.sections][:2] == ["rates", "pareto"]
    assert content.word.endswith("req/s")
    colours = set()
    for section in content.sections[:1]:
        for figure in section.figures:
            lines = [trace for trace in json.loads(figure.json)["data"] if trace.get("mode") == "lines+markers"]
            colours.add(tuple((line["name"], line["line"]["color"]) for line in lines))
    assert len(colours) == 1, "a policy changes its colour"


def test_what_model_routers_come_to(routed: Path) -> None:
    results = open_results(routed)
    kept: dict[str, go.Figure] = {}
    sections = {section.id: section for section in page(results, figures=kept).sections}
    drawn = {fig.layout.meta["title"]: fig for fig in kept.values()}
    titles = [figure.title for figure in sections["quality"].figures]
    assert titles == [
        "Quality against cost", "Quality, latency and cost", "Quality, latency and cost: model_router × rate",
        "Regret to the per-query oracle", "Expected and real quality",
    ]  # fmt: skip
    assert list(sections["models"].choices) == [figure.run for figure in sections["models"].figures]
    assert set(sections["models"].choices) == {"random", "linucb", "oracle"}
    plane = {trace.name: trace for trace in drawn[titles[0]].data}
    assert list(plane["one model"].text) == ["llama-3.2-3b", "qwen2.5-7b", "qwen2.5-14b"]
    runs = [run for run in results.runs if run.axes["gateway.model_router"] == "oracle"]
    best = [run.figures["quality_best_mean"] for run in runs]
    assert plane["best answers"].y == pytest.approx([np.mean(best)])
    assert max(plane["mix of two"].y) < min(best), "nobody can choose as the oracle does"
    regret = drawn[titles[3]].data
    lines = {trace.name: trace for trace in regret if trace.fill is None}
    assert max(lines["oracle"].y) == pytest.approx(0.0)
    assert min(lines["random"].y[-1], lines["linucb"].y[-1]) > 10.0
    assert sum(trace.fill == "toself" for trace in regret) == 3, "a band for each line over its replications"
    assert "2 replications" in drawn[titles[3]].layout.meta["note"]
    for name in ("random", "linucb", "oracle"):
        looks = [
            colour_of(trace) for title in titles for trace in drawn[title].data if trace.name == name and not trace.fill
        ]
        assert len(looks) == 4
        assert len(set(looks)) == 1, "a policy changes its colour"


def test_a_single_run_of_a_model_router_has_one_colour(routed: Path) -> None:
    results = open_results(sorted(routed.glob("run=*"))[0])
    kept: dict[str, go.Figure] = {}
    (quality,) = (section for section in page(results, figures=kept).sections if section.id == "quality")
    titles = ["Quality against cost", "Regret to the per-query oracle", "Expected and real quality"]
    assert [figure.title for figure in quality.figures] == titles
    traces = [trace for fig in kept.values() if fig.layout.meta["title"] in titles for trace in fig.data]
    looks = [colour_of(trace) for trace in traces if trace.name == results.runs[0].label]
    assert looks == [COLOURS[0]] * 3


def test_a_model_router_that_answers_nobody_has_a_page(tmp_path: Path) -> None:
    overrides = {"workload.requests": 30, "gateway.model_router": Refuses}
    scenario = Path(__file__).parents[2] / "scenarios/models/three-models.yaml"
    result = fleetsim.run(scenario, out=tmp_path / "run", overrides=overrides)
    assert result.summary["rejected"] == 30
    sections = {section.id: section for section in page(open_results(result.out)).sections}
    assert [figure.title for figure in sections["quality"].figures] == ["Quality against cost"]


class Refuses:
    """A model router that turns everybody away."""

    Config = PolicyConfig

    def __init__(self, config: PolicyConfig, *_: object) -> None:
        pass

    def route(self, query: object) -> Reject:
        return Reject("not today")


def colour_of(trace: Any) -> str:
    return str(trace.line.color or trace.marker.color)


def test_shares_within_limits_are_exact(hostile: Path) -> None:
    results = open_results(hostile)
    table = results.table("requests", results.runs[0])
    ttft = np.array(table["ttft_s"].to_pylist(), dtype=float)
    finished = np.array(table["status"].to_pylist()) == "finished"
    row = next(row for row in page(results).tables[0].rows if row[0].text == "TTFT")
    assert row[2].value == pytest.approx((finished & (ttft <= 0.5)).mean(), abs=0)


def test_the_scenario_on_the_page_is_the_one_that_ran(hostile: Path, tmp_path: Path) -> None:
    results = open_results(hostile)
    scenario = YAML(typ="safe").load(StringIO(page(results).scenario))
    again = fleetsim.run(scenario, out=tmp_path / "again")
    manifest = json.loads((again.out / "manifest.json").read_text())
    assert manifest["scenario_digest"] == results.runs[0].manifest["scenario_digest"]


def test_the_command_writes_the_page(hostile: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = CliRunner().invoke(cli, ["report", str(hostile), "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told == {"report": str(out), "bytes": out.stat().st_size}
    assert told["bytes"] < MOST_BYTES
    html = out.read_text(encoding="utf-8")
    assert HOSTILE not in html
    assert re.search(r"<h1>&lt;script&gt;document", html)
    assert "49</script>" not in html, "a name is a template"


def test_several_folders_stand_side_by_side(hostile: Path, study: Path, tmp_path: Path) -> None:
    run = sorted(study.glob("run=*"))[0]
    content = page(open_results(hostile, run))
    assert content.word == "2 runs"
    assert next(section.id for section in content.sections) == "rates"
    assert len(content.tables[0].rows) == 2


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    done = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert "holds no results" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(InputError, match="there is nothing"):
        fleetsim.report(tmp_path / "missing")


def test_a_folder_that_cannot_be_written_is_told(hostile: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(cli, ["report", str(hostile), "-o", str(tmp_path / "file" / "page.html")])
    assert done.exit_code == 2
    assert "cannot write there" in done.stderr
    done = CliRunner().invoke(cli, ["report", str(hostile), "-o", str(tmp_path)])
    assert done.exit_code == 2
    assert "is a folder" in done.stderr


def test_figures_as_images(hostile: Path, tmp_path: Path, chromium: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", chromium)
    told = CliRunner().invoke(
        cli,
        [
            "report",
            str(hostile),
            "-o",
            str(tmp_path / "page.html"),
            "--figures",
            str(tmp_path / "images"),
            "--format",
            "png",
        ],
    )
    assert told.exit_code == 0, told.output
    images = sorted((tmp_path / "images").iterdir())
    count = (tmp_path / "page.html").read_text(encoding="utf-8").count('class="plot"')
    assert len(images) == count >= 8
    for image in images:
        head = image.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(head[16:20], "big") == 1800
    with pytest.raises(InputError, match="no image format"):
        fleetsim.report(hostile, out=tmp_path / "page.html", figures=tmp_path / "images", figure_format="bmp")


def test_measured_runs_stand_beside_simulated_ones(hostile: Path, tmp_path: Path) -> None:
    """Of a measured run only what was measured is shown."""
    run = CliRunner().invoke
    measured = tmp_path / "measured"
    assert (
        run(cli, ["export", str(hostile), "--format", "vllm-bench", "-o", str(tmp_path / "bench.json")]).exit_code == 0
    )
    assert run(cli, ["import", str(tmp_path / "bench.json"), "-o", str(measured)]).exit_code == 0
    alone = page(open_results(measured))
    assert alone.word == "MEASURED"
    assert {section.id for section in alone.sections} <= {"latencies", "gantt", "groups"}
    both = page(open_results(hostile, measured))
    cdf = json.loads(both.sections[[s.id for s in both.sections].index("latencies")].figures[0].json)
    assert len([trace for trace in cdf["data"] if trace["mode"] == "lines"]) == 2
    assert "1 MEASURED" in both.sentence


def test_a_run_can_write_its_page(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli, ["run", "-o", str(tmp_path / "out"), "--report", "--live", "--json", "--set", "workload.requests=200"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["report"] == str(tmp_path / "out" / "report.html")
    assert (tmp_path / "out" / "report.html").stat().st_size < MOST_BYTES


def test_lines_that_are_equal_so_far_are_told_apart_by_the_next_rate() -> None:
    rows = [("a", 10.0, 1.0), ("b", 10.0, 1.0), ("a", 20.0, 0.6), ("b", 20.0, 0.8)]
    names = ("series", "rate_per_s", "slo_attainment_ratio")
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})
    assert _beyond(table, ["a", "b"], 10.0) == "; at 20 b keeps most, 80%"
    assert _beyond(table, ["a", "b"], 20.0) == ""


def test_runs_that_failed_are_told(half_failed: Path) -> None:
    content = page(open_results(half_failed))
    assert any("failed" in warning for warning in content.warnings), content.warnings
    assert next(section.id for section in content.sections) == "latencies"


def test_of_many_lines_the_best_are_drawn() -> None:
    rows = [(f"line {i}", rate, 1.0 if rate <= i else 0.5, rate) for i in range(20) for rate in (5.0, 10.0, 15.0)]
    names = ("series", "rate_per_s", "slo_attainment_ratio", "goodput_requests_per_s")
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})
    kept = set(_best_lines(table, 0.9)["series"].to_pylist())
    assert len(kept) == MOST_LINES
    assert {f"line {i}" for i in range(10, 20)} <= kept
    few = table.slice(0, 9)
    assert _best_lines(few, 0.9).equals(few)


def test_a_page_that_would_be_too_large_is_refused(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetsim.reporting.build.MOST_BYTES", 1_000_000)
    with pytest.raises(InputError, match="would have"):
        fleetsim.report(hostile, out=tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
