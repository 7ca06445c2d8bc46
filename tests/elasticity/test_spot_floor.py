"""A floor of on-demand replicas and the rest on spot: rule, laws, leaps, and what it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim import run
from fleetsim.elasticity.api import Scale
from fleetsim.errors import InputError
from fleetsim.testing import check_fleet_autoscaler
from tests.elasticity.test_rules import Bench
from tests.fleet.test_moves import MANY, column, pool, same_in_single_steps, scenario

START = {"weights": "none", "init": "0.4 s"}


def fleet(folder: Path, capacity: list[int], **policy: Any) -> dict[str, Any]:
    """Two pools of three replicas at most, the second on spot capacity that is recorded every second."""
    folder.mkdir(exist_ok=True)
    file = folder / "spot.json"
    file.write_text(json.dumps({"metadata": {"gap_seconds": 1.0}, "data": capacity}), encoding="utf-8")
    spot = {"policy": "spot", "file": str(file), "pool": "spot", "notice_s": 0.3, "per_node": 1, "repeat": True}
    pools = [
        pool("on-demand", 1) | {"min_replicas": 0, "max_replicas": 3, "startup": START},
        pool("spot", 2) | {"min_replicas": 0, "startup": START},
    ]
    return {
        "pools": pools,
        "faults": [spot],
        "gateway": {"router": "least-outstanding", "on_failure": {"max_retries": 100}},
        "autoscaler": {"policy": "spot-floor", "replicas": 3, "floor": 1, "period_s": 0.1, **policy},
    }


def test_rule() -> None:
    bench = Bench("spot-floor", {"on-demand": 2, "spot": 4}, replicas=6, floor=2)
    assert bench.tick() == [Scale("spot", 4), Scale("on-demand", 2)]
    bench.state.pools["spot"].ready = 1
    assert bench.tick() == [Scale("spot", 4), Scale("on-demand", 5)]
    bench.state.pools["spot"].ready = 9
    assert bench.tick()[1] == Scale("on-demand", 2)
    bare = Bench("spot-floor", {"on-demand": 2, "spot": 4}, replicas=6, floor=2, cover=False)
    bare.state.pools["spot"].ready = 0
    assert bare.tick() == [Scale("spot", 4), Scale("on-demand", 2)]


def test_it_keeps_the_rules_of_autoscalers() -> None:
    config = {"on_demand": "main", "spot": "other", "replicas": 4, "floor": 1}
    assert check_fleet_autoscaler("spot-floor", config).checks


@MANY
@given(
    seed=st.integers(0, 1000),
    capacity=st.lists(st.integers(0, 2), min_size=3, max_size=8).filter(any),
    floor=st.integers(0, 2),
    cover=st.booleans(),
)
def test_spot_floor_in_leaps_and_steps(seed: int, capacity: list[int], floor: int, cover: bool, tmp_path: Path) -> None:
    if not floor and not cover:
        cover = True  # nobody might be there for good
    given_ = scenario(seed=seed, **fleet(tmp_path, capacity, floor=floor, cover=cover))
    result = same_in_single_steps(given_, tmp_path)
    assert set(column(result, "status")) == {"finished"}


def test_the_floor_serves_while_spot_is_gone_and_costs_less_than_on_demand_alone(tmp_path: Path) -> None:
    """Capacity that goes for seconds: with cover more first tokens are in time, and less is paid than for three on demand."""
    capacity = [2, 2, 2, 0, 0, 0, 2, 2]
    late, cost = {}, {}
    for name, policy in (("cover", {}), ("bare", {"cover": False}), ("on-demand", {"floor": 3})):
        given_ = scenario(seed=3, **fleet(tmp_path / name, capacity, **policy))
        given_["workload"]["arrivals"] = {"process": "poisson", "rate": "12 req/s"}
        given_["pools"][0]["price"] = "3 USD/h"
        given_["pools"][1]["price"] = "1 USD/h"
        result = run(given_, tmp_path / f"out-{name}")
        late[name] = sum(column(result, "ttft_s")) / len(column(result, "ttft_s"))
        cost[name] = float(result.summary["cost_usd"])
        kinds = result.table("events")["kind"].to_pylist()
        assert name == "on-demand" or "spot_interruption" in kinds
    assert late["cover"] < late["bare"]
    assert cost["bare"] < cost["cover"] < cost["on-demand"]


def test_bad_parameters_are_told() -> None:
    with pytest.raises(InputError, match="floor 4 is above replicas 3"):
        run(scenario(autoscaler={"policy": "spot-floor", "replicas": 3, "floor": 4}))


@pytest.mark.parametrize("capacity", [[2, 2, 2], [3, 4, 3]])
def test_a_repeated_trace_without_changes_ends(capacity: list[int], tmp_path: Path) -> None:
    result = run(scenario(seed=1, **fleet(tmp_path, capacity)), tmp_path / "out")
    assert set(column(result, "status")) == {"finished"}
    assert "spot_interruption" not in result.table("events")["kind"].to_pylist()
