"""Sites: the way there and back, transfers between them, what each costs, and what becomes of requests when one is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleetsim
from fleetsim.kernel.clock import Clock
from fleetsim.network.flows import Network
from fleetsim.network.topology import build_graph
from fleetsim.scenario.load import load_mapping
from tests.energy.test_ledger import series
from tests.fleet.test_moves import MANY, column, pool, run, same_in_single_steps, scenario

RTT = {"eu": {"us": "80 ms", "asia": "240 ms"}, "us": {"asia": "160 ms"}, "asia": {}}
WAN = 1.25e9


def sites(**more: dict[str, Any]) -> dict[str, Any]:
    """Three sites, with energy of their own."""
    own = {
        "eu": {"pue": 1.2, "carbon_intensity": "300 g/kWh", "electricity_price": "0.2 USD/kWh"},
        "us": {"pue": 1.4, "carbon_intensity": "500 g/kWh", "electricity_price": "0.1 USD/kWh"},
        "asia": {"carbon_intensity": "50 g/kWh", "electricity_price": "0.15 USD/kWh"},
    }
    return {name: {"rtt": RTT[name], **own[name], **more.get(name, {})} for name in own}


def spread(replicas: int = 1, **changes: Any) -> dict[str, Any]:
    """A pool at each site."""
    pools = [pool(name, replicas) | {"site": name} for name in ("eu", "us", "asia")]
    return scenario(**{"pools": pools, "sites": sites(), "energy": {"pue": 1.3}, "run": {"interval": "1 s"}, **changes})


def lonely(origin: str | None, output: int = 2) -> dict[str, Any]:
    """Requests that never meet."""
    found = {
        "kind": "synthetic",
        "requests": 6,
        "arrivals": {"process": "deterministic", "rate": "0.2 req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": 800},
        "output_tokens": {"distribution": "fixed", "value": output},
    }
    return found if origin is None else {**found, "origin": origin}


# --- ways --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [None, "us"])
def test_requests_and_answers_take_their_time(entry: str | None, tmp_path: Path) -> None:
    """Round-robin over all sites: the same work each time, and half of each round trip before and after it."""
    gateway = {"router": "round-robin"} | ({"site": entry} if entry else {})
    given = spread(workload=lonely("eu"), gateway=gateway)
    near = same_in_single_steps(scenario(workload=lonely(None), pools=[pool("main", 1)]), tmp_path / "near")
    far = same_in_single_steps(given, tmp_path / "far")
    if entry is None:  # a front end at hand
        ways = {"eu": 0.0005, "us": 0.04, "asia": 0.12}
    else:
        ways = {"eu": 0.04 + 0.04, "us": 0.04 + 0.0005, "asia": 0.04 + 0.08}
    table = far.requests().sort_by("request_id").to_pylist()
    assert [row["site"] for row in table] == ["eu", "us", "asia"] * 2
    for row, plain in zip(table, near.requests().sort_by("request_id").to_pylist(), strict=True):
        way_s = ways[row["site"]]
        assert row["return_s"] == pytest.approx(way_s, rel=1e-12)
        assert row["queued_s"] - plain["queued_s"] == pytest.approx(way_s, rel=1e-9)
        assert row["ttft_s"] == pytest.approx(plain["ttft_s"] + 2 * way_s, rel=1e-9)
        assert row["e2el_s"] == pytest.approx(plain["e2el_s"] + 2 * way_s, rel=1e-9)
        assert row["tpot_s"] == pytest.approx(plain["tpot_s"], rel=1e-6)
        assert row["energy_j"] == pytest.approx(plain["energy_j"], rel=1e-9)


def test_the_objective_counts_the_way(tmp_path: Path) -> None:
    """An objective between what the nearest and what the farthest site needs is met by the one alone."""
    given = spread(workload=lonely("eu"), gateway={"router": "round-robin"}, slo={"ttft": "250 ms", "attainment": 0.3})
    rows = run(given, tmp_path / "out").requests().to_pylist()
    for row in rows:
        assert row["slo_met"] == (row["ttft_s"] <= 0.25)
    assert {row["site"] for row in rows if row["slo_met"]} == {"eu", "us"}


def test_origins_are_the_workloads_the_tenants_or_the_classes(tmp_path: Path) -> None:
    part = lonely(None) | {"requests": 2}
    parts = {
        "own": part | {"origin": "asia", "tenant": "ann", "class": "chat"},
        "tenant": part | {"tenant": "ann", "class": "chat"},
        "class": part | {"class": "chat"},
        "none": part,
    }
    given = spread(
        workload={"kind": "mix", "parts": parts},
        tenants={"ann": {"origin": "us"}},
        classes={"chat": {"origin": "eu"}},
    )
    assert column(run(given, tmp_path / "out"), "origin") == ["asia", "us", "eu", None] * 2


def test_the_next_turn_waits_for_the_answer_to_arrive(tmp_path: Path) -> None:
    sessions = {"turns": {"distribution": "fixed", "value": 3}, "think_time": "0 s"}
    given = spread(workload=lonely("eu") | {"sessions": sessions, "requests": 9}, gateway={"router": "round-robin"})
    rows = same_in_single_steps(given, tmp_path).requests().to_pylist()
    by_turn = {(row["session_id"], row["turn"]): row for row in rows}
    later = [key for key in by_turn if key[1]]
    assert len(later) > 3
    for session, turn in later:
        before = by_turn[session, turn - 1]
        assert by_turn[session, turn]["arrival_s"] == pytest.approx(before["end_s"] + before["return_s"], rel=1e-12)


# --- the network ----------------------------------------------------------------------------------------------------------


def test_sites_are_joined_by_wide_links() -> None:
    loaded = load_mapping(spread(2, sites=sites(eu={"wan": "4 Gb/s"}), network={"servers_per_leaf": 1}))
    graph = build_graph(loaded.scenario)
    network = Network(Clock(), graph)
    inside, outside = network.path("gpu:0", "gpu:1"), network.path("gpu:0", "gpu:4")
    assert not any(link.source.startswith("wan") for link in inside)
    wide = [link for link in outside if link.source.startswith("wan") and link.target.startswith("wan")]
    assert [(link.source, link.target, link.latency_s) for link in wide] == [("wan:eu", "wan:asia", 0.12)]
    assert min(link.capacity for link in outside) == 0.5e9
    size_bytes = 1e9
    assert network.idle_s("gpu:0", "gpu:4", size_bytes) == pytest.approx(size_bytes / 0.5e9 + 0.12, rel=0.01)
    assert network.idle_s("gpu:2", "gpu:4", size_bytes) == pytest.approx(size_bytes / WAN + 0.08, rel=0.01)


def test_a_fleet_without_sites_has_the_network_that_it_had() -> None:
    graph = build_graph(load_mapping(scenario()).scenario)
    assert {"leaf:0", "gateway", "gpu:3", "host:0"} <= set(graph.nodes)
    assert not any(node.startswith(("wan", "spine")) for node in graph.nodes)


def test_keys_and_values_cross_the_wide_link(tmp_path: Path) -> None:
    """Prompts in Europe, answers in America: the second token comes after half a round trip and the bytes over the link."""
    pools = [pool("prefill", 1, "prefill") | {"site": "eu"}, pool("decode", 1, "decode") | {"site": "us"}]
    near = [pool("prefill", 1, "prefill"), pool("decode", 1, "decode")]
    apart, together = spread(pools=pools, workload=lonely("eu")), scenario(pools=near, workload=lonely(None))
    far = same_in_single_steps(apart, tmp_path / "far")
    flat = same_in_single_steps(together, tmp_path / "near")
    size_bytes = 800 * 131072
    slow_s, fast_s = (
        Network(Clock(), build_graph(load_mapping(one).scenario)).idle_s("gpu:0", "gpu:1", size_bytes)
        for one in (apart, together)
    )
    assert slow_s == pytest.approx(size_bytes / WAN + 0.04, rel=0.01)
    a, b = (np.array(column(r, "itl_max_s")) for r in (far, flat))
    np.testing.assert_allclose(a - b, slow_s - fast_s, rtol=1e-6)
    rows = far.requests().to_pylist()
    for row in rows:  # the first token comes from Europe, the last from America
        assert row["ttft_s"] == pytest.approx(row["first_token_s"] + 0.0005 - row["arrival_s"], rel=1e-9)
        assert row["return_s"] == pytest.approx(0.04)


# --- leaps, laws and outages ------------------------------------------------------------------------------------------------


@MANY
@given(
    drawn=st.integers(0, 1000),
    router=st.sampled_from(
        ["nearest-site", "cheapest-site", {"policy": "greenest-site", "spill_per_replica": 3}, "round-robin"]
    ),
    gateway=st.sampled_from([{}, {"site": "us"}, {"timeout": "1 s"}, {"rebalancer": {"policy": "work-stealing"}}]),
    outage=st.sampled_from([None, {"at_s": 0.7, "for_s": 0.9, "site": "eu"}]),
    shape=st.sampled_from(["plain", "closed", "sessions"]),
)
def test_sites_are_the_same_in_single_steps(
    drawn: int, router: Any, gateway: dict[str, Any], outage: Any, shape: str, tmp_path: Path
) -> None:
    values = [100.0 + 37 * (drawn % 7), 250.0, 900.0]
    given = spread(2, seed=drawn, gateway={"router": router, **gateway})
    given["sites"] = sites(
        eu={"carbon_intensity": series(tmp_path, "eu", values, 0.6)},
        us={"electricity_price": series(tmp_path, "us", [v / 1000 for v in values], 0.9)},
    )
    given["workload"] = given["workload"] | {"origin": ("eu", "us", "asia")[drawn % 3], "requests": 80}
    if shape == "closed":
        given["workload"]["arrivals"] = {"process": "closed-loop", "concurrency": 12, "think_time": "50 ms"}
    if shape == "sessions":
        given["workload"] |= {"sessions": {"turns": {"distribution": "fixed", "value": 3}, "think_time": "100 ms"}}
        del given["workload"]["prefixes"]
    if outage:
        given["faults"] = [{"policy": "scheduled", "incidents": [outage]}]
        given["gateway"]["on_failure"] = {"detect": "0.2 s"}
    result = same_in_single_steps(given, tmp_path)
    rows = result.table("groups").to_pylist()
    placed = [row for row in rows if row["by"] == "site"]
    assert len(placed) == 3
    for key in ("cost_usd", "carbon_g", "electricity_cost_usd"):
        assert sum(row[key] for row in placed) == pytest.approx(result.summary[key], rel=1e-9)


def test_each_site_has_its_own_energy(tmp_path: Path) -> None:
    result = run(spread(gateway={"router": "round-robin"}), tmp_path / "out")
    rows = {row["value"]: row for row in result.table("groups").to_pylist() if row["by"] == "site"}
    grids = {"eu": (1.2, 300, 0.2), "us": (1.4, 500, 0.1), "asia": (1.3, 50, 0.15)}
    energy_j = result.table("fleet")
    for name, (pue, grams, usd) in grids.items():
        here = [r for r in energy_j.to_pylist() if r["site"] == name]
        own_j = sum(r["power_w"] * (r["end_s"] - r["start_s"]) for r in here)
        assert rows[name]["site_energy_j"] == pytest.approx(pue * own_j, rel=1e-9)
        assert rows[name]["carbon_g"] == pytest.approx(pue * own_j / 3.6e6 * grams, rel=1e-9)
        assert rows[name]["electricity_cost_usd"] == pytest.approx(pue * own_j / 3.6e6 * usd, rel=1e-9)
        assert rows[name]["requests"] == 40


def test_requests_fail_over_when_a_site_is_gone(tmp_path: Path) -> None:
    faults = [{"policy": "scheduled", "incidents": [{"at_s": 1.0, "for_s": 60.0, "site": "eu"}]}]
    given = spread(2, gateway={"router": "nearest-site", "on_failure": {"detect": "0.3 s"}}, faults=faults)
    given["workload"]["origin"] = "eu"
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    rows = result.requests().to_pylist()
    before = [row for row in rows if row["end_s"] < 1.0]
    after = [row for row in rows if row["arrival_s"] > 1.3]
    assert {row["site"] for row in before} == {"eu"}
    assert {row["site"] for row in after} <= {"us", "asia"}
    assert {row["site"] for row in after} >= {"us"}
    assert result.summary["recoveries"] > 0


def test_a_site_that_is_cut_off_goes_on_unseen(tmp_path: Path) -> None:
    incident = {"at_s": 1.0, "for_s": 1.5, "what": "cut", "site": "us"}
    given = spread(2, gateway={"router": "round-robin", "site": "eu"})
    given["faults"] = [{"policy": "scheduled", "incidents": [incident]}]
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    for row in result.requests().to_pylist():  # nobody in Europe heard of America meanwhile
        if row["site"] == "us":
            assert not 1.0 < row["first_token_s"] < 2.5
            assert not 1.0 < row["end_s"] < 2.5
    elsewhere = [row for row in result.requests().to_pylist() if row["site"] != "us"]
    assert any(1.0 < row["end_s"] < 2.5 for row in elsewhere)


def test_sites_fail_at_random_as_a_whole(tmp_path: Path) -> None:
    faults = [{"policy": "crashes", "scope": "site", "mtbf_h": 0.0005, "repair_h": 0.0002}]
    given = spread(2, gateway={"router": "nearest-site"}, faults=faults)
    for one in given["pools"]:
        one["startup"] = {"weights": "none", "init": "0.1 s"}
    given["run"]["horizon"] = "4 s"
    events = run(given, tmp_path / "out").table("events").to_pylist()
    times: dict[float, set[str]] = {}
    for row in events:
        if row["kind"] == "replica_failed":
            times.setdefault(row["time_s"], set()).add(row["pool"])
    assert times
    assert all(len(pools) == 1 for pools in times.values())  # one site at a time


def test_faults_of_sites_that_there_are_not(tmp_path: Path) -> None:
    incident = {"policy": "scheduled", "incidents": [{"at_s": 1.0, "site": "mars"}]}
    with pytest.raises(fleetsim.InputError, match='faults name the site "mars"\n    sites: eu, us, asia'):
        run(spread(faults=[incident]), tmp_path / "out")
    with pytest.raises(fleetsim.InputError, match="the scenario has none"):
        run(scenario(faults=[{"policy": "crashes", "scope": "site"}]), tmp_path / "out")
