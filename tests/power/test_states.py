"""Energy, temperature and delays of what managers set, against figures worked out by hand."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import fleetsim
from fleetsim.plugins import PolicyConfig
from fleetsim.power.api import Clock, Row
from tests.fleet.test_moves import pool, run, scenario


def alone(requests: int = 4, rate: str = "0.1 req/s", **changes: Any) -> dict[str, Any]:
    """Requests that come one at a time to one replica, all alike."""
    given = scenario(pools=[pool("main", 1)], **changes)
    given["workload"] = {
        "kind": "synthetic",
        "requests": requests,
        "arrivals": {"process": "deterministic", "rate": rate},
        "prompt_tokens": {"distribution": "fixed", "value": 200},
        "output_tokens": {"distribution": "fixed", "value": 100},
    }
    return given


def stages(*steps: dict[str, Any], **row: Any) -> list[dict[str, Any]]:
    return [{"manager": {"policy": "schedule", "period_s": 1.0, "stages": list(steps)}, **row}]


def durations(result: fleetsim.Result) -> np.ndarray:
    table = result.requests().sort_by("request_id")
    return np.array(table["e2el_s"].to_pylist())


def test_a_clock_set_later_is_the_clock_set_before(tmp_path: Path) -> None:
    """A request after the change takes what it takes where the scenario says that clock from the beginning."""
    low = alone()
    low["pools"][0]["power"] = {"clock_ratio": 0.5}
    always = run(low, tmp_path / "always")
    changed = run(alone(power=stages({"at_s": 15.0, "clock_ratio": 0.5})), tmp_path / "changed")
    usual = run(alone(), tmp_path / "usual")
    expected = np.where(np.arange(4) < 1, durations(usual), durations(always))
    np.testing.assert_allclose(durations(changed), expected, rtol=1e-12)
    joules = np.array(changed.requests().sort_by("request_id")["energy_j"].to_pylist())
    assert joules[0] == pytest.approx(usual.requests()["energy_j"].to_pylist()[0], rel=1e-12)
    assert joules[-1] == pytest.approx(always.requests()["energy_j"].to_pylist()[-1], rel=1e-12)
    # set at 15 s after 10 ms, or at the end of the step under way
    end_s = changed.summary["simulated_s"]
    assert changed.summary["power_capped_s"] == pytest.approx(end_s - 15.01, abs=0.03)


@pytest.mark.parametrize("by", ["clock_ratio", "cap_w"])
def test_what_is_set_takes_effect_after_its_delay(by: str, tmp_path: Path) -> None:
    stage = {"at_s": 9.0, by: 0.5 if by == "clock_ratio" else 200.0}
    late = run(alone(power=stages(stage, actuation="20 s")), tmp_path / "late")
    usual = run(alone(), tmp_path / "usual")
    same = np.isclose(durations(late), durations(usual), rtol=1e-12)
    assert same.tolist() == [True, True, False, False]  # they arrive at 10, 20, 30 and 40 s
    (event,) = [row for row in late.table("events").to_pylist() if row["kind"] in ("clock_set", "cap_set")]
    assert event["time_s"] == pytest.approx(29.0)
    assert event["count"] == (500 if by == "clock_ratio" else 200)


def test_a_stall_lengthens_one_step(tmp_path: Path) -> None:
    """At a clock that is set while a request decodes, its next token comes later by the stall."""
    stage = {"at_s": 10.0, "clock_ratio": 0.9}
    plain = run(alone(1, power=stages(stage, actuation="500 ms")), tmp_path / "plain")
    stalled = run(alone(1, power=stages(stage, actuation="500 ms", stall="70 ms")), tmp_path / "stalled")
    assert durations(stalled)[0] - durations(plain)[0] == pytest.approx(0.070, rel=1e-9)


def test_sleep_draws_what_it_says(tmp_path: Path) -> None:
    """Two replicas, one of which has nothing to do: it goes to sleep and takes its few watts from then on."""
    given = alone(6)
    given["pools"] = [pool("main", 2) | {"power": {"sleep": {"power": "5 W", "wake": "2 s"}}}]
    given["gateway"] = {"router": "session-affinity"}
    awake = run(given, tmp_path / "awake")
    given["power"] = [{"manager": {"policy": "sleep", "idle_s": 15.0}, "actuation": "0 s"}]
    asleep = run(given, tmp_path / "asleep")
    slept_s = asleep.summary["asleep_s"]
    events = {row["kind"]: row["time_s"] for row in asleep.table("events").to_pylist()}
    assert slept_s == pytest.approx(asleep.summary["simulated_s"] - events["replica_asleep"])
    assert slept_s > 30.0
    saved_j = awake.summary["energy_j"] - asleep.summary["energy_j"]
    idle_w = saved_j / slept_s + 5.0
    replicas = awake.table("replicas").to_pylist()
    idle = [row["power_w"] for row in replicas if row["busy_ratio"] == 0.0]
    assert idle_w == pytest.approx(idle[0], rel=1e-9)
    sleeping = [r["power_w"] for r in asleep.table("replicas").to_pylist() if r["state"] == "asleep"]
    assert sleeping[-1] == pytest.approx(5.0, rel=1e-9)
    assert asleep.summary["energy_requests_j"] == pytest.approx(awake.summary["energy_requests_j"], rel=1e-12)


def test_requests_wait_at_the_gateway_for_someone_to_wake(tmp_path: Path) -> None:
    given = alone(2)
    given["pools"] = [pool("main", 1) | {"power": {"sleep": {"power": "5 W", "wake": "2 s"}}}]
    given["power"] = [{"manager": {"policy": "sleep", "idle_s": 3.0, "awake": 0, "period_s": 1.0}, "actuation": "0 s"}]
    result = run(given, tmp_path)
    kinds = [row["kind"] for row in result.table("events").to_pylist()]
    assert kinds.count("replica_asleep") == 2
    assert kinds.count("replica_awake") == 2
    first = result.requests().sort_by("request_id").to_pylist()[0]
    assert first["arrival_s"] == 10.0
    assert first["queued_s"] - first["arrival_s"] == pytest.approx(2.0, abs=1.01)


def test_temperature_follows_the_equation(tmp_path: Path) -> None:
    """Under constant idle power it stays; under a constant load it goes to its steady value with one time constant."""
    given = alone(60, "4 req/s")
    heat = {"ambient": "20 C", "resistance": 0.1, "capacity": 40, "throttle": "99 C", "resume": "90 C",
            "throttled_clock": 0.5, "period": "500 ms"}  # fmt: skip
    given["pools"][0]["power"] = {"thermal": heat}
    given["run"] = {"interval": "500 ms"}
    rows = run(given, tmp_path).table("replicas").to_pylist()
    temperature = np.array([row["temperature_c"] for row in rows])
    power = np.array([row["power_w"] for row in rows])
    kept = exp(-0.5 / (0.1 * 40))
    steady = 20.0 + 0.1 * power[1:-1]
    np.testing.assert_allclose(temperature[1:-1], steady + (temperature[:-2] - steady) * kept, rtol=1e-9)
    assert temperature.max() > temperature[0] + 5


def test_heat_throttles_and_lets_go(tmp_path: Path) -> None:
    given = scenario(pools=[pool("main", 1)])
    given["workload"] |= {"requests": 150, "arrivals": {"process": "piecewise", "steps": [
        {"duration": "4 s", "rate": "25 req/s"}, {"duration": "40 s", "rate": "1 req/s"}]}}  # fmt: skip
    heat = {"ambient": "30 C", "resistance": 0.15, "capacity": 12, "throttle": "75 C", "resume": "65 C",
            "throttled_clock": 0.4, "period": "200 ms"}  # fmt: skip
    cool = run(given, tmp_path / "cool")
    given["pools"][0]["power"] = {"thermal": heat}
    hot = run(given, tmp_path / "hot")
    kinds = [row["kind"] for row in hot.table("events").to_pylist()]
    assert kinds.count("throttled") >= 1
    assert 0 <= kinds.count("throttled") - kinds.count("throttle_over") <= 1
    assert 0.0 < hot.summary["throttled_s"] <= hot.summary["power_capped_s"] < hot.summary["simulated_s"]
    assert 75.0 <= hot.summary["temperature_max_c"] < 78.0
    assert hot.summary["e2el_mean_s"] > cool.summary["e2el_mean_s"]
    assert cool.summary["temperature_max_c"] is None


def test_a_jetson_in_a_warm_box_throttles(tmp_path: Path) -> None:
    """The catalogue's constants: at 25 C a Jetson holds its clock under full load, in a box at 55 C it does not."""
    given = alone(4000, "7 req/s")
    given["pools"] = [pool("edge", 1) | {"accelerator": "jetson-agx-orin-64", "llm": "llama-3.2-3b"}]
    given["run"] = {"horizon": "600 s"}
    given["workload"]["output_tokens"] = {"distribution": "fixed", "value": 30}
    found = {}
    for ambient in (25, 55):
        given["pools"][0]["power"] = {"thermal": {"ambient": f"{ambient} C"}}
        found[ambient] = run(given, tmp_path / str(ambient)).summary
    assert found[25]["throttled_s"] == 0.0
    assert found[55]["throttled_s"] > 0.0
    assert found[55]["temperature_max_c"] == pytest.approx(99.0, abs=0.5)


def test_a_budget_is_measured(tmp_path: Path) -> None:
    """The largest mean power between two looks, servers included, over the budget."""
    given = scenario()
    given["pools"][0]["power"] = {"host_busy": "100 W", "host_idle": "40 W"}
    given["run"] = {"interval": "1 s"}
    given["power"] = stages({"at_s": 0.0}, budget="2 kW")
    result = run(given, tmp_path)
    site_w = max(row["site_power_w"] for row in result.table("fleet").to_pylist()[:-1])
    assert result.summary["power_budget_peak_ratio"] == pytest.approx(site_w / 2000.0, rel=1e-9)


@pytest.mark.parametrize("by", ["cap", "clock", "seats"])
def test_the_grid_gets_what_it_asked_for(by: str, tmp_path: Path) -> None:
    """During a call the mean power is near the target, from a few looks after its beginning to its end; then it is as before."""
    given = alone(100000, "20 req/s")
    given["pools"] = [
        pool("main", 2) | {"accelerator": "h100-sxm", "power": {"host_busy": "80 W", "host_idle": "40 W"}}
    ]
    given["pools"][0]["engine"]["kv"] = {"block_tokens": 16}
    given["workload"] |= {
        "duration": "100 s",
        "requests": 2000,
        "prompt_tokens": {"distribution": "fixed", "value": 1500},
    }
    curtail = {"cap": 0.15, "clock": 0.15, "seats": 0.03}[
        by
    ]  # fewer at a time save little: most of it is drawn by one alone
    call = {"start_s": 40.0, "duration_s": 40.0, "curtail_ratio": curtail}
    manager = {"policy": "grid-flex", "by": by, "calls": [call], "baseline_s": 20.0}
    given |= {"power": [{"manager": manager}], "run": {"interval": "2 s"}}
    rows = run(given, tmp_path).table("fleet").to_pylist()
    watts = {row["start_s"]: row["site_power_w"] for row in rows}
    before = np.mean([watts[t] for t in range(20, 40, 2)])
    during = np.mean([watts[t] for t in range(50, 80, 2)])
    after = np.mean([watts[t] for t in range(86, 98, 2)])
    assert during == pytest.approx(before * (1 - curtail), rel=0.025)
    assert after > during


class Halved:
    """Half the clock from the first look on."""

    Config: ClassVar = PolicyConfig
    period_s = 0.5

    def __init__(self, config: PolicyConfig, rng: np.random.Generator, row: Row) -> None:
        self._row = row

    def tick(self) -> list[Clock]:
        return [Clock(number, 0.5) for number in range(len(self._row.replicas))]


def test_a_manager_of_ones_own_is_handed_over_as_a_class(tmp_path: Path) -> None:
    result = fleetsim.run(alone(), out=tmp_path / "out", overrides={"power": [{"manager": Halved}]})
    assert result.summary["power_capped_s"] == pytest.approx(result.summary["simulated_s"] - 0.51, abs=0.03)
