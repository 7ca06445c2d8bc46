"""Links that are cut or slow: transfers, requests that nobody hears of, and copies that are computed in vain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.errors import InputError
from tests.energy.test_ledger import series
from tests.fleet.test_moves import HERE, MANY, column, pool, run, same_in_single_steps, scenario

RACKS: dict[str, Any] = {"network": {"servers_per_leaf": 1}}


def apart(replicas: int = 4, **engine: Any) -> dict[str, Any]:
    """Servers of two replicas, a leaf each."""
    return pool("main", replicas, **engine) | {"server": {"accelerators": 2}}


def cut(at_s: float = 1.0, for_s: float = 2.0, **where: Any) -> dict[str, Any]:
    return {"policy": "scheduled", "incidents": [{"at_s": at_s, "for_s": for_s, "what": "cut", **where}]}


def test_what_waits_behind_a_cut_comes_out_when_it_is_mended(tmp_path: Path) -> None:
    given = scenario(
        pools=[apart()],
        faults=[cut(rack=1)],
        gateway={"on_failure": {"unreachable": "wait", "detect": "0.2 s"}},
        **RACKS,
    )
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    replica, first, end = (np.array(column(result, name), float) for name in ("replica", "first_token_s", "end_s"))
    behind = replica >= 2
    assert not ((end[behind] > 1.0) & (end[behind] < 3.0)).any()
    assert not ((first[behind] > 1.0) & (first[behind] < 3.0)).any()
    assert (end[behind] == 3.0).sum() > 3  # these were computed meanwhile
    arrival = np.array(column(result, "arrival_s"))
    assert (replica[(arrival > 1.2) & (arrival < 3.0)] < 2).all()  # it was noticed
    assert result.summary["recoveries"] == 0
    simulated_s = result.summary["simulated_s"]
    assert result.summary["availability_ratio"] == pytest.approx(1.0 - 2 * 2.0 / (4 * simulated_s))
    kinds = result.table("events")["kind"].to_pylist()
    assert (kinds.count("replica_unreachable"), kinds.count("replica_reachable")) == (2, 2)


def test_what_is_given_up_behind_a_cut_is_paid_for_all_the_same(tmp_path: Path) -> None:
    given = scenario(
        pools=[apart()], faults=[cut(rack=1, for_s=1.0)], gateway={"on_failure": {"detect": "0.2 s"}}, **RACKS
    )
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    assert result.summary["recoveries"] > 3
    assert result.summary["lost_tokens"] > 100
    calm = run(given | {"faults": []}, tmp_path / "calm")
    spent, usual = result.summary["energy_requests_j"], calm.summary["energy_requests_j"]
    assert spent > usual + 0.2 * result.summary["lost_energy_j"] > usual


def test_a_gateway_that_reaches_nobody_sends_when_it_does(tmp_path: Path) -> None:
    given = scenario(pools=[apart()], faults=[cut(link="gateway")], gateway={"on_failure": {"unreachable": "wait"}})
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    arrival, start = (np.array(column(result, name)) for name in ("arrival_s", "first_scheduled_s"))
    during = (arrival > 1.0) & (arrival < 3.0)
    assert during.sum() > 10
    assert (start[during] >= 3.0).all()


def test_a_slow_link_makes_transfers_as_much_longer(tmp_path: Path) -> None:
    pools = [pool("prefill", 1, "prefill"), pool("decode", 1, "decode")]
    lonely: dict[str, Any] = {
        "kind": "synthetic",
        "requests": 6,
        "arrivals": {"process": "deterministic", "rate": "0.1 req/s"},
        "prompt_tokens": {"distribution": "fixed", "value": 1000},
        "output_tokens": {"distribution": "fixed", "value": 2},
    }
    slow = {
        "policy": "scheduled",
        "incidents": [{"at_s": 25, "for_s": 1000, "what": "throttle", "factor": 100, "server": 0, "pool": "decode"}],
    }
    given = scenario(workload=lonely, pools=pools, network={"servers_per_leaf": 2})
    calm = run(given, tmp_path / "calm")
    result = same_in_single_steps({**given, "faults": [slow]}, tmp_path)
    arrival = np.array(column(result, "arrival_s"))
    longer = np.array(column(result, "tpot_s")) - np.array(column(calm, "tpot_s"))
    cache_bytes = 1000 * 32 * 2 * 8 * 128 * 2
    np.testing.assert_allclose(longer[arrival < 25], 0.0, atol=1e-9)
    assert longer[arrival > 25].min() > 50 * cache_bytes / 32e9


@pytest.mark.parametrize("transfers", ["recompute", "wait"])
def test_transfers_that_come_to_a_cut(transfers: str, tmp_path: Path) -> None:
    engine = {"kv": {"block_tokens": 16, "capacity_tokens": 6400}}
    pools = [pool("prefill", 2, "prefill", **engine), pool("decode", 2, "decode", **engine)]
    for each in pools:
        each["server"] = {"accelerators": 1}
    given = scenario(
        pools=pools,
        faults=[cut(1.0, 1.5, server=0, pool="decode")],
        gateway={"on_failure": {"transfers": transfers, "unreachable": "wait", "detect": "0.1 s"}},
    )
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}


@pytest.mark.parametrize(
    ("incident", "says"),
    [
        ({"at_s": 1, "what": "cut", "rack": 0}, "for_s"),
        ({"at_s": 1, "for_s": 1, "what": "cut", "rack": 0, "notice_s": 1}, "warned"),
        ({"at_s": 1, "for_s": 1, "link": "store"}, "what: cut"),
        ({"at_s": 1, "for_s": 1, "what": "cut", "link": "store"}, "network.store"),
        ({"at_s": 1, "for_s": 1, "what": "cut", "rack": 7}, "rack"),
        ({"at_s": 1, "for_s": 1, "what": "cut"}, "strikes nothing"),
    ],
)
def test_cuts_of_nothing_are_refused(incident: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        run(scenario(faults=[{"policy": "scheduled", "incidents": [incident]}]), tmp_path / "out")


@MANY
@given(
    seed=st.integers(0, 1000),
    scope=st.sampled_from([{"rack": 1}, {"server": 0}, {"replicas": [1, 2]}, {"link": "gateway"}]),
    at_s=st.sampled_from([0.3, 0.7131, 1.5]),
    for_s=st.sampled_from([0.05, 0.6, 2.5]),
    unreachable=st.sampled_from(["retry", "wait"]),
    detect_s=st.sampled_from([0.0, 0.2]),
    prefix_cache=st.booleans(),
    more=st.sampled_from(
        [
            {},
            {"rebalancer": {"policy": f"{HERE}:Restless"}},
            {"router": {"policy": f"{HERE}:Impatient", "hedge_after_s": 0.1}},
            {"router": {"policy": f"{HERE}:Impatient", "retry_after_s": 0.1}},
            {"timeout": "2 s"},
        ]
    ),
    crashes=st.booleans(),
    prices=st.booleans(),
)
def test_cuts_in_leaps_and_steps(
    seed: int,
    scope: dict[str, Any],
    at_s: float,
    for_s: float,
    unreachable: str,
    detect_s: float,
    prefix_cache: bool,
    more: dict[str, Any],
    crashes: bool,
    prices: bool,
    tmp_path: Path,
) -> None:
    one = apart(4, prefix_cache=prefix_cache) | {"startup": {"weights": "none", "init": "0.2 s"}}
    gateway = {"on_failure": {"unreachable": unreachable, "detect": f"{detect_s} s", "max_retries": 20}, **more}
    given = scenario(seed=seed, pools=[one], faults=[cut(at_s, for_s, **scope)], gateway=gateway, **RACKS)
    if crashes:
        given["faults"].append({"policy": "crashes", "scope": "replica", "mtbf_h": 0.001, "repair_h": 0.0002})
    if prices:
        given["energy"] = {"carbon_intensity": series(tmp_path, "grams", [300.0, 100.0, 0.0, 500.0])}
        one["price"] = series(tmp_path, "usd", [1.0, 3.0, 2.0], 0.4)
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) <= {"finished", "failed", "timed_out"}


@MANY
@given(
    seed=st.integers(0, 1000),
    which=st.sampled_from([{"pool": "prefill", "server": 0}, {"pool": "decode", "server": 1}, {"link": "gateway"}]),
    at_s=st.sampled_from([0.3, 0.7131, 1.5]),
    for_s=st.sampled_from([0.05, 0.6, 2.5]),
    unreachable=st.sampled_from(["retry", "wait"]),
    transfers=st.sampled_from(["recompute", "wait"]),
    router=st.sampled_from(["least-outstanding", "round-robin", "distserve", "selective"]),
    crashes=st.booleans(),
)
def test_cuts_between_pools_apart_in_leaps_and_steps(
    seed: int,
    which: dict[str, Any],
    at_s: float,
    for_s: float,
    unreachable: str,
    transfers: str,
    router: str,
    crashes: bool,
    tmp_path: Path,
) -> None:
    pools = [pool("prefill", 2, "prefill"), pool("decode", 2, "decode")]
    for each in pools:
        each |= {"startup": {"weights": "none", "init": "0.2 s"}, "server": {"accelerators": 1}}
    failure = {"unreachable": unreachable, "transfers": transfers, "detect": "0.1 s", "max_retries": 20}
    given = scenario(seed=seed, pools=pools, gateway={"router": router, "on_failure": failure})
    given["faults"] = [cut(at_s, for_s, **which)]
    if crashes:
        given["faults"].append({"policy": "crashes", "scope": "replica", "mtbf_h": 0.001, "repair_h": 0.0001})
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) <= {"finished", "failed"}


@MANY
@given(
    seed=st.integers(0, 1000),
    prefetch=st.sampled_from(["best_effort", "wait_complete", "timeout", "never"]),
    transfers=st.sampled_from(["recompute", "wait"]),
    at_s=st.sampled_from([0.3, 0.7131, 1.5]),
    for_s=st.sampled_from([0.05, 0.6, 2.5]),
    overlap=st.booleans(),
    whole=st.booleans(),
)
def test_a_store_that_is_cut_off_in_leaps_and_steps(
    seed: int, prefetch: str, transfers: str, at_s: float, for_s: float, overlap: bool, whole: bool, tmp_path: Path
) -> None:
    tiers: dict[str, Any] = {"store": {"prefetch": prefetch, "min_tokens": 16}, "overlap": overlap}
    if prefetch != "never":
        tiers["host"] = {"capacity": "0.1 GB"}
    engine = {"kv": {"block_tokens": 16, "capacity_tokens": 1600, "tiers": tiers}}
    given = scenario(
        seed=seed,
        pools=[apart(4, **engine)],
        network={"servers_per_leaf": 1, "store": {"bandwidth": "1 GB/s"}},
        gateway={"on_failure": {"transfers": transfers, "unreachable": "wait", "detect": "0.1 s"}},
        faults=[cut(at_s, for_s, link="store") if whole else cut(at_s, for_s, server=0)],
    )
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) <= {"finished", "failed"}
