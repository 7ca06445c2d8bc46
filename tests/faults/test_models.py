"""Fault models that draw what breaks: counted failures, links, slow accelerators."""

from __future__ import annotations

import json
import os
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fleetsim.catalog.failures import load_failures
from fleetsim.errors import InputError
from fleetsim.faults.api import Fault, Site
from fleetsim.faults.empirical import Empirical, EmpiricalConfig
from fleetsim.faults.links import Links, LinksConfig
from fleetsim.faults.stragglers import Stragglers, StragglersConfig
from tests.fleet.test_moves import column, pool, same_in_single_steps, scenario


def edges(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, "leaf") for name in names)


SITE = Site(
    {"a": (0, 1, 2, 3), "b": (4, 5)},
    ((0, 1), (2, 3), (4, 5)),
    ((0, 1, 2, 3), (4, 5)),
    tuple(edges(f"gpu{i}") for i in range(6)),
    tuple(edges(f"nic{i}") for i in range(3)),
    (edges("leaf0"), edges("leaf1")),
    accelerators=(4, 4, 4, 4, 8, 8),
)


def taken(model: Any, count: int) -> list[Fault]:
    faults = list(islice(model.faults(), count))
    assert all(a.time_s <= b.time_s for a, b in pairwise(faults))
    return faults


def test_failures_come_as_often_as_they_were_counted() -> None:
    faults = taken(Empirical(EmpiricalConfig(repair_h=(0.0, 1e-6)), np.random.default_rng(1), SITE), 20_000)
    hours = faults[-1].time_s / 3600
    counts = load_failures("llama3-herd")
    gpu_hours = hours * 32
    assert counts.accelerator_hours == pytest.approx(16384 * 54 * 24)
    for chosen, expected in (
        ([f for f in faults if f.kind == "fail" and len(f.replicas) == 1], 256),
        ([f for f in faults if f.kind == "fail" and len(f.replicas) == 2], 128),
        ([f for f in faults if f.kind == "link"], 35),
    ):
        rate = len(chosen) / gpu_hours * counts.accelerator_hours
        assert rate == pytest.approx(expected, rel=4 / np.sqrt(len(chosen)))
    # twice the accelerators fail twice as often
    alone = [f.replicas[0] for f in faults if f.kind == "fail" and len(f.replicas) == 1]
    assert alone.count(4) / alone.count(0) == pytest.approx(2.0, rel=0.15)


def test_recorded_times_are_drawn_from() -> None:
    config = EmpiricalConfig(between=(0.0, 1.0, 4.0, 20.0), repair_h=(1.0, 2.0, 10.0), pool="b", rate_factor=100.0)
    faults = taken(Empirical(config, np.random.default_rng(2), SITE), 30_000)
    link = [f for f in faults if f.links]
    assert {f.links for f in link} == {edges("nic2")}
    down = [b.time_s - a.time_s for a, b in pairwise(link) if a.kind == "link"]
    quantiles = np.array([1.0, 2.0, 10.0]) * 3600
    expected = lambda x: np.interp(x, quantiles, [0.0, 0.5, 1.0])  # noqa: E731
    assert stats.kstest(down, expected).pvalue > 1e-3
    up = np.array([b.time_s - a.time_s for a, b in pairwise(link) if a.kind == "link_back"])
    shape = np.array([0.0, 1.0, 4.0, 20.0]) / 5.0 * up.mean()
    assert stats.kstest(up, lambda x: np.interp(x, shape, [0, 1 / 3, 2 / 3, 1])).pvalue > 1e-3


def test_who_is_down_for_two_reasons_is_repaired_once() -> None:
    config = EmpiricalConfig(rate_factor=20_000.0, repair_h=(0.1, 2.0))
    state = dict.fromkeys(range(6), True)
    for fault in taken(Empirical(config, np.random.default_rng(3), SITE), 5000):
        for replica in fault.replicas:
            assert state[replica] == (fault.kind == "fail")
            state[replica] = fault.kind == "repair"


def test_links_fail_alone_or_with_their_rack() -> None:
    config = LinksConfig(mtbf_h=10.0, repair_h=0.5, rack_share=0.25, slow_share=0.4)
    faults = taken(Links(config, np.random.default_rng(4), SITE), 6000)
    begun = [f for f in faults if f.kind == "link"]
    assert {f.links for f in begun} == {edges("nic0"), edges("nic1"), edges("nic2"), edges("nic0", "nic1")}
    first = [f for f in begun if f.links != edges("nic2")]
    assert np.mean([len(f.links) == 2 for f in first]) == pytest.approx(0.25, abs=0.04)
    assert np.mean([f.factor == 0.1 for f in begun]) == pytest.approx(0.4, abs=0.04)
    only = [f for f in faults if f.links == edges("nic2")]
    up = [b.time_s - a.time_s for a, b in pairwise(only) if a.kind == "link_back"]
    assert stats.kstest(up, stats.expon(scale=36000).cdf).pvalue > 1e-3
    alone = taken(Links(LinksConfig(pool="b"), np.random.default_rng(4), SITE), 50)
    assert {f.links for f in alone} == {edges("nic2")}


def test_a_replica_is_as_slow_as_its_slowest_accelerator() -> None:
    found: dict[int, list[float]] = {0: [], 4: []}
    config = StragglersConfig(share=0.05, min_factor=1.5, max_factor=3.0, at_s=7.0)
    for seed in range(2000):
        faults = {f.replicas[0]: f for f in Stragglers(config, np.random.default_rng(seed), SITE).faults()}
        for replica in found:
            if replica in faults:
                assert faults[replica].time_s == 7.0
                found[replica].append(faults[replica].factor)
    for replica, accelerators in ((0, 4), (4, 8)):
        assert len(found[replica]) / 2000 == pytest.approx(1 - 0.95**accelerators, abs=0.04)
        assert 1.5 <= min(found[replica]) < max(found[replica]) <= 3.0
    assert np.mean(found[4]) > np.mean(found[0])


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"policy": "empirical", "counts": "nobody"}, "nobody"),
        ({"policy": "empirical", "between": [1.0]}, "two quantiles"),
        ({"policy": "empirical", "repair_h": [2.0, 1.0]}, "fall"),
        ({"policy": "empirical", "pool": "nope"}, "nope"),
        ({"policy": "links", "pool": "nope"}, "nope"),
        ({"policy": "stragglers", "min_factor": 3.0}, "above"),
        ({"policy": "stragglers", "pool": "nope"}, "nope"),
        ({"policy": "crashes", "pool": "nope"}, "nope"),
    ],
)
def test_models_that_cannot_be_are_refused(fault: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        same_in_single_steps(scenario(faults=[fault]), tmp_path)


def test_all_models_at_once_in_leaps_and_steps(tmp_path: Path) -> None:
    one = pool("main", 4) | {"server": {"accelerators": 2}, "startup": {"weights": "none", "init": "0.2 s"}}
    given = scenario(
        pools=[one],
        network={"servers_per_leaf": 1},
        gateway={"on_failure": {"max_retries": 50, "detect": "0.05 s"}},
        faults=[
            {"policy": "empirical", "rate_factor": 2e7, "repair_h": [0.00005, 0.0002]},
            {"policy": "links", "mtbf_h": 0.001, "repair_h": 0.0002, "slow_share": 0.5},
            {"policy": "stragglers", "share": 0.5},
        ],
    )
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    kinds = set(result.table("events")["kind"].to_pylist())
    assert kinds >= {"replica_failed", "replica_unreachable", "replica_slow", "replica_repaired"}


DATA = Path(os.environ.get("FLEETSIM_DATA", "../shared/data"))
COUNTS = DATA / "traces/open/cluster/gpu_failures_llama3_405b_summary.json"


@pytest.mark.skipif(not COUNTS.exists(), reason="FLEETSIM_DATA has no counts of failures")
def test_counts_are_those_that_were_published() -> None:
    told, counts = json.loads(COUNTS.read_text()), load_failures("llama3-herd")
    assert (counts.accelerators, counts.days) == (told["gpus"], told["days"])
    assert sum(count for count, _ in counts.causes.values()) == told["unexpected"]
    published = sorted([*told["by_cause_unexpected"].values(), told["unlisted_causes_remainder"]])
    assert sorted(count for count, _ in counts.causes.values()) == published
