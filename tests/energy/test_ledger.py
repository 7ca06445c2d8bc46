"""Prices and intensities that change: meters are requests plus idle, and leaps give what single steps give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleetsim
from fleetsim.errors import InputError
from tests.fleet import test_images as images
from tests.fleet.test_life import elastic
from tests.fleet.test_moves import MANY, pool, run, same_in_single_steps, scenario
from tests.placement import test_swapping as swapping

BILLS = ("site_energy_j", "carbon_g", "electricity_usd", "embodied_g", "cost_usd")
METERS = ("cost_usd", "site_energy_j", "carbon_g", "electricity_cost_usd", "embodied_g")


def series(folder: Path, name: str, values: list[float], step_s: float = 0.7) -> dict[str, Any]:
    """A series in a file, which changes every `step_s` and begins again."""
    rows = "".join(f"{i * step_s},{value}\n" for i, value in enumerate(values))
    (folder / f"{name}.csv").write_text(f"time,value\n{rows}")
    return {"file": str(folder / f"{name}.csv"), "repeat": True}


def changing(folder: Path, values: list[float], **changes: Any) -> dict[str, Any]:
    """Three replicas with servers whose price, intensity and tariff change together and apart."""
    own = pool("main", 3) | {
        "power": {"host_busy": "300 W", "host_idle": "90 W"},
        "price": series(folder, "usd", values, 1.1),
    }
    energy = {
        "pue": 1.25,
        "carbon_intensity": series(folder, "grams", [100 * v for v in values]),
        "electricity_price": series(folder, "tariff", [v - 1.0 for v in values], 1.7),
        "embodied": {"per_accelerator": "150 kg"},
    }
    return {**scenario(pools=[own], energy=energy, run={"interval": "0.3 s"}), **changes}


def same_bills(given: dict[str, Any], out: Path) -> fleetsim.Result:
    """Leaps and single steps charge alike, request by request."""
    result = same_in_single_steps(given, out)
    a, b = (fleetsim_table(out / name) for name in ("leaps", "steps"))
    for column in BILLS:
        x, y = (np.array(t[column].to_pylist(), dtype=float) for t in (a, b))
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-15, err_msg=column)
    return result


def fleetsim_table(folder: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(folder / "requests.parquet").sort_by("request_id")


gateways = st.sampled_from(
    [
        {},
        {"router": "round-robin", "decision": {"time": "5 ms", "energy": "3 J"}},
        {"router": {"policy": "hedge", "after_s": 0.2}},
        {"timeout": "2 s"},
        {"router": {"policy": "power-of-two-choices"}, "rebalancer": {"policy": "work-stealing"}},
    ]
)


@MANY
@given(
    values=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=6),
    gateway=gateways,
    horizon=st.sampled_from([None, "2.3 s"]),
    drawn=st.integers(0, 50),
)
def test_charges_are_the_same_in_single_steps(
    values: list[float], gateway: dict[str, Any], horizon: str | None, drawn: int, tmp_path: Path
) -> None:
    given = changing(tmp_path, values, gateway=gateway, seed=drawn)
    if horizon:
        given["run"]["horizon"] = horizon
    result = same_bills(given, tmp_path)
    summary, fleet = result.summary, result.table("fleet")
    for meter, column in (("carbon_g", "carbon_g"), ("electricity_cost_usd", "electricity_usd")):
        decisions = summary["gateway_energy_j"]
        if not decisions:  # the table has no row of the gateway's own
            assert fleet[column].to_numpy().sum() == pytest.approx(summary[meter], rel=1e-9, abs=1e-12)
    lowest, highest = (f(values) * 100 * summary["site_energy_j"] / 3.6e6 for f in (min, max))
    assert lowest * (1 - 1e-9) <= summary["carbon_g"] <= highest * (1 + 1e-9)
    lowest, highest = (f(values) * 3 * summary["simulated_s"] / 3600 for f in (min, max))
    assert lowest * (1 - 1e-9) <= summary["cost_usd"] <= highest * (1 + 1e-9)


@pytest.mark.parametrize("drain", ["wait", "migrate", "kill"])
def test_replicas_that_come_and_go_are_charged(drain: str, tmp_path: Path) -> None:
    given = changing(tmp_path, [1.0, 3.0, 2.0])
    own = elastic(drain=drain)["pools"][0]
    given["pools"] = [own | {k: given["pools"][0][k] for k in ("price", "power")}]
    result = same_bills(given, tmp_path)
    assert result.summary["cost_idle_usd"] > 0


def test_replicas_that_fail_unnoticed_are_charged(tmp_path: Path) -> None:
    faults = [{"policy": "scheduled", "incidents": [{"at_s": 0.95, "for_s": 1.0, "replicas": [1]}]}]
    gateway = {"router": "round-robin", "on_failure": {"detect": "0.6 s"}}
    result = same_bills(changing(tmp_path, [1.0, 5.0], faults=faults, gateway=gateway), tmp_path)
    assert result.summary["recoveries"] > 0


def test_prompts_and_answers_apart_and_replicas_that_swap_are_charged(tmp_path: Path) -> None:
    given = changing(tmp_path, [1.0, 5.0, 2.0])
    own = {k: given["pools"][0][k] for k in ("price", "power")}
    given["pools"] = [pool("prefill", 2, "prefill") | own, pool("decode", 2, "decode")]
    same_bills(given, tmp_path)


@pytest.mark.parametrize("value", [0.0, 3.7])
def test_a_series_that_never_changes_is_a_number(value: float, tmp_path: Path) -> None:
    """The two ways to the same figures: products of totals, and sums over replicas, requests and prices."""
    given = changing(tmp_path, [1.0, 1.0])
    del given["energy"]["embodied"]
    plain = {
        **given,
        "pools": [given["pools"][0] | {"price": f"{value} USD/h"}],
        "energy": {
            "pue": 1.25,
            "carbon_intensity": f"{value * 100} g/kWh",
            "electricity_price": f"{value / 10} USD/kWh",
        },
    }
    hours = {"hourly": [value, value, value + 1.0], "repeat": True}
    timed = {
        **given,
        "pools": [given["pools"][0] | {"price": hours}],
        "energy": {
            "pue": 1.25,
            "carbon_intensity": hours | {"scale": 100.0},
            "electricity_price": hours | {"scale": 0.1},
        },
    }
    a, b = run(plain, tmp_path / "a"), run(timed, tmp_path / "b")
    for name in a.summary:
        if name.startswith("embodied"):
            continue
        x, y = a.summary[name], b.summary[name]
        assert (x is None and y is None) or y == pytest.approx(x, rel=1e-9, abs=1e-15), name
    x, y = fleetsim_table(tmp_path / "a"), fleetsim_table(tmp_path / "b")
    for column in BILLS[:3]:
        np.testing.assert_allclose(y[column].to_numpy(), x[column].to_numpy(), rtol=1e-9)


def test_embodied_carbon_is_the_accelerators_time_over_their_lives(tmp_path: Path) -> None:
    given = scenario(energy={"embodied": {"per_accelerator": "200 kg", "lifetime": "1000 d"}})
    summary = same_bills(given, tmp_path).summary
    assert summary["embodied_g"] == pytest.approx(4 * 200e3 * summary["simulated_s"] / 86.4e6, rel=1e-12)
    assert 0 < summary["embodied_requests_g"] < summary["embodied_g"]
    assert summary["carbon_g"] is None


def test_a_run_that_outlasts_its_series_is_refused(tmp_path: Path) -> None:
    given = scenario(energy={"carbon_intensity": series(tmp_path, "short", [300.0, 200.0]) | {"repeat": False}})
    with pytest.raises(InputError, match=r"energy\.carbon_intensity ends at 1\.4 s, before the run does\s+repeat it"):
        run(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    given["run"] = {"horizon": "1.2 s"}
    assert run(given, tmp_path / "out").summary["carbon_g"] > 0


def test_groups_add_up(tmp_path: Path) -> None:
    """What tenants are charged for is what all requests are charged for; what pools cost is what the fleet costs."""
    given = changing(tmp_path, [1.0, 2.0, 4.0])
    part = given["workload"] | {"requests": 50}
    given["workload"] = {"kind": "mix", "parts": {"a": part | {"tenant": "ann"}, "b": part | {"tenant": "bob"}}}
    given["slo"] = {"ttft": "300 ms", "attainment": 0.5}
    result = run(given, tmp_path / "out")
    groups = result.table("groups").to_pylist()
    for key in ("cost_requests_usd", "carbon_requests_g", "electricity_requests_usd", "embodied_requests_g"):
        tenants = [row[key] for row in groups if row["by"] == "tenant"]
        assert len(tenants) == 2
        assert sum(tenants) == pytest.approx(result.summary[key], rel=1e-9)
    (whole,) = [row for row in groups if row["by"] == "pool"]
    for key in ("cost_usd", "site_energy_j", "carbon_g", "electricity_cost_usd"):
        assert whole[key] == pytest.approx(result.summary[key], rel=1e-9)
    summary = result.summary
    good = sum(row["slo_output_tokens"] for row in groups if row["by"] == "tenant")
    assert 0 < good == summary["slo_output_tokens"] < summary["output_tokens"]
    assert summary["cost_per_million_slo_tokens_usd"] == pytest.approx(summary["cost_usd"] / good * 1e6)
    assert summary["carbon_per_million_slo_tokens_g"] == pytest.approx(summary["carbon_g"] / good * 1e6)


@pytest.mark.parametrize("split", ["all", "E-P-D"])
def test_encoders_are_charged(split: str, tmp_path: Path) -> None:
    given = changing(tmp_path, [1.0, 4.0, 2.0])
    own = {k: given["pools"][0][k] for k in ("price", "power")}
    pools = [one | own for one in images.SPLITS[split]]
    given = images.scenario(pools, energy=given["energy"])
    for name, steps in (("leaps", False), ("steps", True)):
        stepped = [one | {"engine": one["engine"] | {"step_by_step": steps}} for one in pools]
        images.run(given | {"pools": stepped}, tmp_path / name)
    a, b = (fleetsim_table(tmp_path / name) for name in ("leaps", "steps"))
    for column in BILLS:
        np.testing.assert_allclose(a[column].to_numpy(), b[column].to_numpy(), rtol=1e-9, err_msg=column)


def test_replicas_that_change_their_llm_are_charged(tmp_path: Path) -> None:
    given = changing(tmp_path, [1.0, 4.0, 2.0])
    own = {k: given["pools"][0][k] for k in ("price", "power")}
    swaps = swapping.scenario(energy=given["energy"])
    swaps["pools"] = [swaps["pools"][0] | own]
    result = same_bills(swaps, tmp_path)
    assert result.summary["model_swaps"] > 0
