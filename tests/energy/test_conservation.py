"""Law 5 with servers, cooling and carbon: what is charged to requests and what is idle add up to the meters, to 1e-9."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fleetsim
from fleetsim.errors import LawError
from fleetsim.experiment.run import _verify_totals
from tests.engine.test_leaps import scenarios

KWH_J = 3.6e6


def close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-9 * max(abs(a), abs(b), 1e-9)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    scenario=scenarios(),
    idle=st.integers(0, 300),
    busy=st.integers(0, 500),
    pue=st.floats(1, 2),
    grid=st.sampled_from([None, 0, 37, 820]),
    horizon=st.sampled_from([None, None, "700 ms", "4 s"]),
)
def test_meters_are_requests_plus_idle(
    scenario: dict[str, Any], idle: int, busy: int, pue: float, grid: int | None, horizon: str | None, tmp_path: Path
) -> None:
    power = {"host_idle": f"{idle} W", "host_busy": f"{busy} W"}
    energy = {"pue": pue, "electricity_price": "0.15 USD/kWh"}
    if grid is not None:
        energy["carbon_intensity"] = f"{grid} g/kWh"
    scenario = {**scenario, "pools": [{**pool, "power": power} for pool in scenario["pools"]], "energy": energy}
    result = fleetsim.run(
        {**scenario, "run": {"horizon": horizon} if horizon else {}}, out=tmp_path / "out", check=True
    )
    s, requests, fleet = result.summary, result.requests(), result.table("fleet")
    charged_j = requests["energy_j"].to_numpy().sum()
    assert close(charged_j + s["energy_idle_j"], s["energy_j"])
    site_j = requests["site_energy_j"].to_numpy().sum()
    assert close(site_j + s["site_energy_idle_j"], s["site_energy_j"])
    assert close(pue * (s["energy_j"] + s["host_energy_j"]), s["site_energy_j"])
    accelerators = {p["name"]: p.get("parallelism", {}).get("dp", 1) for p in scenario["pools"]}
    replicas = sum(p["replicas"] * accelerators[p["name"]] for p in scenario["pools"])
    low, high = sorted((idle, busy))
    time_s = s["simulated_s"] * replicas
    assert low * time_s * (1 - 1e-9) <= s["host_energy_j"] <= high * time_s * (1 + 1e-9)
    assert close(s["electricity_cost_usd"], s["site_energy_j"] / KWH_J * 0.15)
    length_s = fleet["end_s"].to_numpy() - fleet["start_s"].to_numpy()
    assert (fleet["site_power_w"].to_numpy() * length_s).sum() == pytest.approx(s["site_energy_j"], rel=1e-9)
    if grid is None:
        assert s["carbon_g"] is s["carbon_requests_g"] is None
        assert requests["carbon_g"].null_count == len(requests)
    else:
        carbon_g = requests["carbon_g"].to_numpy()
        assert close(carbon_g.sum() + s["carbon_idle_g"], s["carbon_g"])
        assert close(s["carbon_g"], s["site_energy_j"] / KWH_J * grid)
        np.testing.assert_allclose(carbon_g, requests["site_energy_j"].to_numpy() / KWH_J * grid, rtol=1e-12)
        assert fleet["carbon_g"].to_numpy().sum() == pytest.approx(s["carbon_g"], rel=1e-9)


@pytest.mark.parametrize("meter", ["energy", "site_energy", "carbon"])
def test_a_meter_that_is_off_is_told(meter: str) -> None:
    unit = "g" if meter == "carbon" else "j"
    summary = dict.fromkeys(("requests", "finished", "rejected", "timed_out", "failed", "unfinished"), 0)
    for name, u in (("energy", "j"), ("site_energy", "j"), ("carbon", "g")):
        summary |= {f"{name}_{u}": 3000.0, f"{name}_requests_{u}": 1000.0, f"{name}_idle_{u}": 2000.0}
    _verify_totals(summary)
    summary[f"{meter}_requests_{unit}"] += 3000.0 * 2e-9
    with pytest.raises(LawError, match="law 5"):
        _verify_totals(summary)


def test_defaults_leave_the_site_at_the_accelerators(tmp_path: Path) -> None:
    """Without servers, cooling and a grid the site draws what the accelerators draw."""
    scenario = {
        "schema": 1,
        "name": "plain",
        "workload": {
            "kind": "synthetic",
            "requests": 20,
            "arrivals": {"process": "poisson", "rate": "5 req/s"},
            "prompt_tokens": {"distribution": "fixed", "value": 100},
            "output_tokens": {"distribution": "fixed", "value": 50},
        },
        "pools": [{"name": "p", "llm": "llama-3.1-8b", "accelerator": "h100-sxm"}],
    }
    s = fleetsim.run(scenario, out=tmp_path / "out", check=True).summary
    assert (s["site_energy_j"], s["site_energy_idle_j"]) == (s["energy_j"], s["energy_idle_j"])
    assert (s["host_energy_j"], s["carbon_g"], s["electricity_cost_usd"]) == (0, None, None)
