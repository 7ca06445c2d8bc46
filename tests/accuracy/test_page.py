"""The accuracy page: its parts, its command, and the tables of predictions that are kept with the project."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from fleetsim.accuracy import calibrated, runs, served
from fleetsim.accuracy.report import Mark, below_saturation, markdown, percent
from fleetsim.accuracy.scatter import scatter
from fleetsim.calibration import tables
from fleetsim.cli.main import cli

BLIND = Path(__file__).parents[2] / "docs" / "blind"
needs_data = pytest.mark.skipif(not tables.OPEN.is_dir(), reason=tables.MISSING)


def test_a_plot_is_svg_with_every_point_and_name() -> None:
    svg = scatter("Times <all>", "ms", [("A & B", [(1.0, 1.1), (10.0, 9.0)]), ("C", [(100.0, 120.0), (0.0, 5.0)])])
    root = ElementTree.fromstring(svg)
    names = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "Times <all>" in names
    assert "A & B" in names
    # three points above zero, and a dot in the legend for each of the two series
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 3 + 2


def test_points_on_the_diagonal_lie_on_the_drawn_diagonal() -> None:
    root = ElementTree.fromstring(scatter("t", "s", [("x", [(1.0, 1.0), (30.0, 30.0), (1000.0, 1000.0)])]))
    ns = "{http://www.w3.org/2000/svg}"
    line = next(node for node in root.iter(f"{ns}line") if node.get("stroke") == "#666666")
    x1, y1, x2, y2 = (float(line.get(key, "nan")) for key in ("x1", "y1", "x2", "y2"))
    for dot in [node for node in root.iter(f"{ns}circle") if node.get("r") == "2.2"]:
        x, y = float(dot.get("cx", "nan")), float(dot.get("cy", "nan"))
        assert y == pytest.approx(y1 + (y2 - y1) * (x - x1) / (x2 - x1), abs=0.2)


def test_tables_and_percent() -> None:
    assert percent(0.0456) == "4.6 %"
    assert percent(float("nan")) == ""
    assert markdown(("a", "b"), [("x", 1)]).splitlines() == ["| a | b |", "|---|--:|", "| x | 1 |"]


def test_a_mark_is_met_as_it_is_shown() -> None:
    assert Mark("t", 0.05, 0.0504).met
    assert not Mark("t", 0.05, 0.0506).met


def test_without_the_data_the_command_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "OPEN", tmp_path / "nowhere")
    found = CliRunner().invoke(cli, ["accuracy", "--out", str(tmp_path / "docs")])
    assert found.exit_code == 2
    assert "FLEETSIM_DATA" in found.output
    assert not (tmp_path / "docs").exists()


@needs_data
def test_every_open_point_has_a_scenario_that_loads_and_is_served() -> None:
    rows = served.open_rows()
    for row in rows.sample(25, random_state=1).to_dict("records"):
        found = served.serve(row)
        assert found.tpot_ms > 0
        assert found.ttft_ms > 0


@needs_data
def test_parallelism_uses_the_accelerators_that_the_table_counts() -> None:
    rows = served.open_rows()
    rows = rows[rows.parallel_consistent.astype(bool) & (rows.attn_dp.fillna(1) <= 1) & rows.concurrency.notna()]
    rows = rows[rows.concurrency == rows.batch_size]
    for row in rows.to_dict("records"):
        tp, dp, ep = served.parallelism(row)
        assert tp * dp == row["num_gpus_inferred"]
        assert ep <= tp * dp


@needs_data
def test_more_users_never_answer_faster() -> None:
    rows = served.open_rows()
    row = rows[(rows.model.str.contains("Llama")) & (rows.system == "h100_sxm")].iloc[0].to_dict()
    times = [served.serve({**row, "concurrency": users}).tpot_ms for users in (4, 16, 64)]
    assert times == sorted(times)


@needs_data
def test_fitting_a_group_recovers_what_its_times_were_made_with() -> None:
    rows = served.open_rows()
    rows = rows[(rows.model.str.contains("Llama")) & (rows.system == "h100_sxm")].head(16)
    made = [served.serve(row, {"host": "2 ms", "scale": 1.1}).tpot_ms for row in rows.to_dict("records")]
    again = calibrated.calibrated(rows.assign(tpot_ms=made))
    assert np.isnan(again[::2]).all()
    assert again[1::2] == pytest.approx(made[1::2], rel=0.01)


@needs_data
def test_whole_runs_are_replayed_request_by_request(tmp_path: Path) -> None:
    name = "RTXPRO6000__Llama-3.1-8B"
    ours, real = runs.replayed(name, tmp_path), runs.measured(name)
    assert list(ours.index) == list(real.index)
    assert np.corrcoef(ours.e2e_ms, real.e2e_ms)[0, 1] > 0.95


@needs_data
def test_saturated_points_are_those_that_wait() -> None:
    points = pd.DataFrame(
        {"measured_ttft_ms": [100.0, 5000.0], "measured_tpot_ms": [10.0, 10.0], "osl_tokens": [1000, 1000]}
    )
    assert list(below_saturation(points).index) == [0]


@needs_data
def test_blind_predictions_are_kept_for_every_row() -> None:
    inputs = tables.table("e2e_silicon_heldout_inputs_only")
    points = pd.read_parquet(BLIND / "e2e_silicon.parquet")
    assert list(points.columns) == [*inputs.columns, "ttft_ms", "tpot_ms"]
    pd.testing.assert_frame_equal(points[inputs.columns], inputs)
    assert (points[["ttft_ms", "tpot_ms"]] > 0).all().all()
    requests = pd.read_parquet(BLIND / "vllm_requests.parquet")
    wanted = tables.table("vllm_heldout_workloads_inputs_only")
    assert set(map(tuple, requests[["run", "request"]].to_numpy())) == set(
        map(tuple, wanted[["run", "request"]].to_numpy())
    )
    assert (requests[["ttft_ms", "e2e_ms"]] > 0).all().all()
    energy = pd.read_parquet(BLIND / "energy.parquet")
    assert len(energy.model_id.unique()) == 6
    assert set(energy.gpu) == {"H100", "B200"}
    assert {8, 1024} <= set(energy.max_num_seqs)
    assert (energy[["power_per_gpu_w", "energy_per_token_j"]] > 0).all().all()
