"""What breaks when, and what a fleet makes of it."""

from __future__ import annotations

import json
import os
import tarfile
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fleetsim.errors import InputError
from fleetsim.faults.api import Fault, Site
from fleetsim.faults.crashes import Crashes, CrashesConfig
from fleetsim.faults.scheduled import Scheduled, ScheduledConfig
from fleetsim.faults.spot import Spot, SpotConfig, read_availability
from tests.fleet.test_moves import column, pool, run, same_in_single_steps, scenario

SITE = Site({"a": (0, 1, 2, 3), "b": (4, 5)}, ((0, 1), (2, 3), (4, 5)), ((0, 1, 2, 3), (4, 5)))


def of(faults: list[Fault], kind: str) -> list[Fault]:
    return [fault for fault in faults if fault.kind == kind]


# --- failures at random ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "scope", "things"), [(1.0, "replica", 6), (0.7, "server", 3), (2.0, "rack", 2)])
def test_times_between_failures_follow_the_distribution(shape: float, scope: Any, things: int) -> None:
    config = CrashesConfig(scope=scope, mtbf_h=10.0, shape=shape, repair_h=1.0)
    faults = list(islice(Crashes(config, np.random.default_rng(3), SITE).faults(), 6000))
    assert all(a.time_s <= b.time_s for a, b in pairwise(faults))
    first = [fault for fault in faults if fault.replicas == faults[0].replicas]
    assert {fault.replicas for fault in faults} == {fault.replicas for fault in faults[: 20 * things]}
    assert len({fault.replicas for fault in faults}) == things
    up = [b.time_s - a.time_s for a, b in pairwise(first) if a.kind == "repair"]
    scale = 36000.0 / stats.weibull_min.mean(shape)
    assert stats.kstest(up, stats.weibull_min(shape, scale=scale).cdf).pvalue > 1e-3
    assert stats.kstest(up, stats.weibull_min(shape, scale=1.3 * scale).cdf).pvalue < 1e-3


def test_failures_of_one_pool_do_not_depend_on_another() -> None:
    config = CrashesConfig(pool="a", scope="replica", mtbf_h=10.0)
    alone = Site({"a": (0, 1, 2, 3)}, ((0, 1), (2, 3)), ((0, 1, 2, 3),))
    one, two = (list(islice(Crashes(config, np.random.default_rng(3), site).faults(), 50)) for site in (SITE, alone))
    assert one == two


def test_a_rack_falls_as_one(tmp_path: Path) -> None:
    given = scenario(
        pools=[pool("main", 4) | {"server": {"accelerators": 2}}],
        network={"servers_per_leaf": 1},
        faults=[{"policy": "scheduled", "incidents": [{"at_s": 1.0, "for_s": 1.0, "rack": 1}]}],
    )
    events = same_in_single_steps(given, tmp_path).table("events").to_pylist()
    assert sorted(e["replica"] for e in events if e["kind"] == "replica_failed") == [2, 3]
    assert sorted(e["replica"] for e in events if e["kind"] == "replica_repaired") == [2, 3]


# --- drills ---------------------------------------------------------------------------------------------------------------


def test_incidents_strike_what_they_name() -> None:
    incidents: Any = [
        {"at_s": 50.0, "for_s": 10.0, "server": 1, "notice_s": 20.0},
        {"at_s": 5.0, "what": "slow", "factor": 3.0, "replicas": [0], "pool": "b", "for_s": 2.0},
    ]
    found = list(Scheduled(ScheduledConfig(incidents=incidents), np.random.default_rng(0), SITE).faults())
    assert [(f.time_s, f.kind, f.replicas, f.factor) for f in found] == [
        (5.0, "slow", (4,), 3.0),
        (7.0, "slow", (4,), 1.0),
        (30.0, "warn", (2, 3), 1.0),
        (50.0, "fail", (2, 3), 1.0),
        (60.0, "repair", (2, 3), 1.0),
    ]


@pytest.mark.parametrize(
    ("incident", "says"),
    [
        ({"at_s": 1.0, "replicas": [9]}, "replica"),
        ({"at_s": 1.0, "server": 7}, "server"),
        ({"at_s": 1.0, "pool": "nope", "replicas": [0]}, "nope"),
        ({"at_s": 1.0}, "strikes nothing"),
    ],
)
def test_incidents_that_strike_nothing_are_refused(incident: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Scheduled(ScheduledConfig(incidents=[incident]), np.random.default_rng(0), SITE)


def test_a_straggler_takes_as_much_longer(tmp_path: Path) -> None:
    lonely: dict[str, Any] = {
        "kind": "synthetic",
        "requests": 6,
        "arrivals": {"process": "deterministic", "rate": "0.1 req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": 500},
        "output_tokens": {"distribution": "fixed", "value": 200},
    }
    slow = {"policy": "scheduled", "incidents": [{"at_s": 25.0, "what": "slow", "factor": 2.5, "replicas": [0]}]}
    result = same_in_single_steps(scenario(workload=lonely, pools=[pool("main", 1)], faults=[slow]), tmp_path)
    tpot, arrival = np.array(column(result, "tpot_s")), np.array(column(result, "arrival_s"))
    np.testing.assert_allclose(tpot[arrival > 25] / tpot[arrival < 15][0], 2.5, rtol=1e-9)


# --- spot -----------------------------------------------------------------------------------------------------------------


def trace(folder: Path, data: list[float], gap_s: float = 10.0) -> str:
    file = folder / "spot.json"
    file.write_text(json.dumps({"metadata": {"gap_seconds": gap_s}, "data": data}))
    return str(file)


def test_spot_capacity_goes_with_notice_and_comes_back(tmp_path: Path) -> None:
    config = SpotConfig(file=trace(tmp_path, [2, 2, 1, 1, 2, 0, 0]), pool="a", notice_s=4.0)
    found = list(Spot(config, np.random.default_rng(0), SITE).faults())
    assert [(f.time_s, f.kind, f.replicas) for f in found] == [
        (16.0, "warn", (2, 3)),
        (20.0, "fail", (2, 3)),
        (40.0, "repair", (2, 3)),
        (46.0, "warn", (0, 1, 2, 3)),
        (50.0, "fail", (0, 1, 2, 3)),
        (60.0, "end", ()),
    ]


def test_a_spot_trace_can_begin_later_and_again(tmp_path: Path) -> None:
    config = SpotConfig(file=trace(tmp_path, [1, 0, 1, 1]), pool="b", notice_s=0.0, begin_s=15.0, repeat=True)
    found = list(islice(Spot(config, np.random.default_rng(0), SITE).faults(), 5))
    assert [(f.time_s, f.kind) for f in found] == [
        (0.0, "fail"),
        (5.0, "repair"),
        (35.0, "fail"),
        (45.0, "repair"),
        (75.0, "fail"),
    ]


def test_a_fleet_on_spot_capacity_loses_nothing(tmp_path: Path) -> None:
    spot = {"policy": "spot", "file": trace(tmp_path, [4, 2, 3, 0, 4, 4, 4, 4], 1.0), "notice_s": 0.3, "repeat": True}
    given = scenario(faults=[spot], gateway={"on_failure": {"max_retries": 100}})
    given["pools"][0] |= {"startup": {"weights": "none", "init": "0.1 s"}}
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    kinds = result.table("events")["kind"].to_pylist()
    assert kinds.count("spot_interruption") > 6
    assert kinds.count("interruption_notice") > 3
    assert result.summary["accelerator_hours"] < 4 * result.summary["simulated_s"] / 3600


def test_a_trace_that_ends_before_the_run_is_refused(tmp_path: Path) -> None:
    spot = {"policy": "spot", "file": trace(tmp_path, [4, 4, 4], 0.5)}
    with pytest.raises(InputError, match="repeat: true"):
        run(scenario(faults=[spot]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["", "{}", '{"metadata": {"gap_seconds": 1}, "data": [1]}', '{"metadata": 3, "data": []}']
)
def test_what_is_no_trace_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "spot.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"spot\.json"):
        read_availability(file)


def test_a_csv_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "spot.csv"
    file.write_text("time_s,available\n0,3\n60,1\n")
    assert read_availability(file) == [(0.0, 3.0), (60.0, 1.0)]


DATA = Path(os.environ.get("FLEETSIM_DATA", "../shared/data"))
ARCHIVE = DATA / "traces/open/cluster/spot_traces_skypilot.tar.xz"


@pytest.mark.skipif(not ARCHIVE.exists(), reason="FLEETSIM_DATA has no spot traces")
def test_a_recorded_trace_is_replayed(tmp_path: Path) -> None:
    """Share of time with capacity and number of losses of a zone, as the collection's summary says."""
    name = "availability/1-node/aws-02-15-2023/us-east-1f_v100_1.json"
    with tarfile.open(ARCHIVE) as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith(name))
        content = archive.extractfile(member)
        assert content is not None
        (tmp_path / "zone.json").write_bytes(content.read())
    one = Site({"a": (0,)}, ((0,),), ((0,),))
    found = list(
        Spot(SpotConfig(file=str(tmp_path / "zone.json"), notice_s=0.0), np.random.default_rng(0), one).faults()
    )
    lost, back = of(found, "fail"), of(found, "repair")
    end_s = found[-1].time_s
    down_s = sum(min((r.time_s for r in back if r.time_s > f.time_s), default=end_s) - f.time_s for f in lost)
    assert 1 - down_s / end_s == pytest.approx(0.5912, abs=0.002)
    assert len([fault for fault in lost if fault.time_s > 0]) == 285
