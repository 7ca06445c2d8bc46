"""Systems compared: which runs belong together, what is told of them, and how it is printed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import fleetsim
from fleetsim.cli.main import cli
from fleetsim.errors import InputError
from fleetsim.results.changes import Change, changes
from fleetsim.results.compare import FIGURES, compare
from fleetsim.results.folder import open_results

from .conftest import RATE, ROUTER, ROUTERS, SCENARIO

LONGER = ["workload.requests=2500", "workload.arrivals.rate=6 req/s"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same requests, once to either pool in turn and once to the faster one if it has fewer."""
    folder = tmp_path_factory.mktemp("pair")
    return tuple(  # type: ignore[return-value]
        fleetsim.run(SCENARIO, out=folder / router, overrides=[*LONGER, f"gateway.router={router}"]).out
        for router in ROUTERS
    )


def test_two_runs_are_compared_request_by_request(pair: tuple[Path, Path]) -> None:
    (block,) = compare(*pair).blocks
    (against,) = block.others
    assert (block.base, against.label) == ROUTERS
    assert against.method == "one run of each, the same requests, 20 batches"
    known = {difference.figure: difference for difference in against.differences}
    assert set(known) == {figure.name for figure in FIGURES} - {"carbon_g"}  # the scenario says nothing of carbon
    one, two = (run.manifest["summary"] for run in open_results(*pair).runs)
    for name, difference in known.items():
        assert difference.base == one[name]
        assert difference.other == two[name]
        assert difference.p is not None, name
    median = known["e2el_p50_s"]
    assert median.significant
    assert median.better is (median.difference < 0)
    assert median.low < median.difference < median.high


def test_what_differs_between_the_scenarios_is_told(pair: tuple[Path, Path]) -> None:
    (against,) = compare(*pair).blocks[0].others
    assert against.changes == [Change(f"{ROUTER}.policy", *ROUTERS)]


def test_a_run_does_not_differ_from_itself(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(pair[0], tmp_path / "again")
    (block,) = compare(pair[0], tmp_path / "again").blocks
    (against,) = block.others
    assert all(d.difference == 0 and d.p == 1 and not d.significant for d in against.differences)
    assert against.verdict == "again and round-robin do not differ significantly"
    assert against.changes == []


def test_studies_are_compared_by_names_first_at_each_setting_of_the_rest(study: Path) -> None:
    found = compare(study)
    assert found.by == ROUTER
    assert [block.at for block in found.blocks] == [{"rate": 10.0}, {"rate": 20.0}]
    for block in found.blocks:
        assert block.base == "router=round-robin"
        (against,) = block.others
        assert against.label == "router=least-outstanding"
        assert against.method == "paired by 2 seeds"
        assert against.changes == [Change(f"{ROUTER}.policy", *ROUTERS)]
    runs = [run for run in open_results(study).runs if run.axes[RATE] == 20.0]
    means = [
        sum(r.manifest["summary"]["ttft_p50_s"] for r in runs if r.axes[ROUTER] == router) / 2 for router in ROUTERS
    ]
    (ttft,) = (d for d in found.blocks[1].others[0].differences if d.figure == "ttft_p50_s")
    assert (ttft.base, ttft.other) == pytest.approx(means)


def test_an_axis_can_be_chosen_by_its_last_name_or_its_path(study: Path) -> None:
    for name in ("rate", RATE):
        found = compare(study, by=name, base="20")
        assert [block.base for block in found.blocks] == ["rate=20"] * 2
        assert [block.others[0].label for block in found.blocks] == ["rate=10"] * 2
        assert found.blocks[0].at == {"router": "round-robin"}


def test_any_figure_of_the_summary_can_be_compared(study: Path) -> None:
    found = compare(study, figures=["mfu_ratio", "ttft_p50_s"])
    assert [difference.figure for difference in found.blocks[0].others[0].differences] == ["mfu_ratio", "ttft_p50_s"]
    table = found.table()
    assert table.num_rows == 4
    assert {"at", "base_label", "label", "figure", "difference", "low", "high", "p", "significant"} <= set(
        table.column_names
    )


def test_seeds_without_a_partner_are_independent(tmp_path: Path) -> None:
    for seed, router in ((1, ROUTERS[0]), (2, ROUTERS[0]), (3, ROUTERS[1]), (4, ROUTERS[1])):
        overrides = {"seed": seed, ROUTER: router, "name": router}
        fleetsim.run(SCENARIO, out=tmp_path / f"{router}-{seed}", overrides=overrides)
    (block,) = compare(*(tmp_path / f"{ROUTERS[seed > 2]}-{seed}" for seed in (1, 2, 3, 4))).blocks
    (against,) = block.others
    assert against.method == "independent: 2 and 2 seeds, none in common"


def test_rates_that_differ_send_the_same_requests_at_other_times(tmp_path: Path) -> None:
    for rate in (10, 20):
        fleetsim.run(SCENARIO, out=tmp_path / f"{rate}", overrides={RATE: f"{rate} req/s"})
    fleetsim.run(SCENARIO, out=tmp_path / "other", overrides={"seed": 9, ROUTER: "random"})
    (block,) = compare(tmp_path).blocks
    assert [against.method for against in block.others] == [
        "one run of each, the same requests, 20 batches",
        "one run of each, independent requests, 20 batches",
    ]


def test_short_runs_have_no_interval_of_p99(alone: Path, tmp_path: Path) -> None:
    fleetsim.run(SCENARIO, out=tmp_path / "b", overrides={ROUTER: "least-outstanding"})
    (against,) = compare(alone, tmp_path / "b").blocks[0].others
    known = {difference.figure: difference for difference in against.differences}
    assert known["ttft_p99_s"].p is None
    assert not known["ttft_p99_s"].significant
    assert known["ttft_p50_s"].p is not None


def test_one_system_is_not_enough(alone: Path, study: Path) -> None:
    with pytest.raises(InputError, match="compare needs two systems; there is one only: two pools"):
        compare(alone)
    with pytest.raises(InputError, match='did you mean "rate"'):
        compare(study, by="rates")
    with pytest.raises(InputError, match=r"no figure \"ttft_p98_s\".*did you mean \"ttft_p9"):
        compare(study, figures=["ttft_p98_s"])
    with pytest.raises(InputError, match="no system is called so"):
        compare(study, base="nobody")


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["compare", *map(str, args)])


def test_the_verdict_comes_first_and_doubts_are_named(pair: tuple[Path, Path]) -> None:
    result = call(*pair)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("least-outstanding against round-robin: p99 TTFT")
    assert "; not significant:" in lines[0]
    assert any("not significant" in line for line in lines[3:])
    assert f"changed: {ROUTER}.policy: round-robin -> least-outstanding" in lines
    assert call(*pair, "--quiet").stdout == lines[0] + "\n"


def test_json_flags_what_is_significant(pair: tuple[Path, Path]) -> None:
    told = json.loads(call(*pair, "--json").stdout)
    (against,) = told["blocks"][0]["others"]
    flags = {difference["figure"]: difference["significant"] for difference in against["differences"]}
    assert flags["e2el_p50_s"] is True
    assert False in flags.values()
    assert against["changes"] == [{"path": f"{ROUTER}.policy", "old": "round-robin", "new": "least-outstanding"}]


def test_in_a_terminal_doubts_are_grey(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    lines = call(*pair).stdout.splitlines()
    unsure = [line for line in lines if "not significant" in line and "against" not in line]
    sure = [line for line in lines if "better" in line or "worse" in line]
    assert unsure
    assert sure
    assert all("\x1b[90m" in line for line in unsure)
    assert not any("\x1b[90m" in line for line in sure)


def test_bad_input_ends_with_2(alone: Path) -> None:
    result = call(alone)
    assert result.exit_code == 2
    assert "compare needs two systems" in result.stderr


def test_changes_are_told_field_by_field() -> None:
    old = {"seed": 1, "pools": [{"name": "a", "replicas": 1}], "slo": {"ttft": "1 s"}, "gateway": {"router": "x"}}
    new = {"seed": 2, "pools": [{"name": "a", "replicas": 2}, {"name": "b"}], "slo": {}, "gateway": {"router": "x"}}
    assert [str(change) for change in changes(old, new)] == [
        "pools[0].replicas: 1 -> 2",
        'pools[1]: – -> {"name": "b"}',
        "slo.ttft: 1 s -> –",
    ]
