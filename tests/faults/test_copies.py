"""Requests that go on from copies of their keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetsim.errors import InputError
from tests.fleet.test_moves import HERE, MANY, column, pool, run, same_in_single_steps, scenario


def copied(to: str = "other-host", servers: int = 1, seed: int = 5, **copies: Any) -> dict[str, Any]:
    """Four replicas with long prompts, whose copies are made often."""
    one = pool("main", 4) | {
        "server": {"accelerators": servers},
        "startup": {"weights": "none", "init": "0.2 s"},
    }
    failure = {"copies": {"to": to, "every": "0.05 s", "min_tokens": 16, **copies}, "max_retries": 20}
    network = {"store": {"bandwidth": "20 GB/s"}} if to == "store" else {}
    given = scenario(seed=seed, pools=[one], gateway={"on_failure": failure}, network=network)
    given["workload"] |= {"prefixes": None}
    return given


def falls(at_s: float = 2.0, **where: Any) -> dict[str, Any]:
    where = where or {"replicas": [0]}
    return {"policy": "scheduled", "incidents": [{"at_s": at_s, "for_s": 1.0, **where}]}


@pytest.mark.parametrize("to", ["host", "other-host", "store"])
def test_requests_go_on_from_copies(to: str, tmp_path: Path) -> None:
    servers = 2 if to == "host" else 1
    given = copied(to, servers, use="always") | {"faults": [falls()]}
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    assert result.summary["copied_bytes"] > 1e8
    assert result.summary["restored_tokens"] > 500
    given["gateway"]["on_failure"].pop("copies")
    plain = run(given, tmp_path / "plain")
    computed = [sum(r.table("fleet")["prompt_tokens"].to_pylist()) for r in (result, plain)]
    assert computed[1] > computed[0] + 500
    assert result.summary["network_bytes"] > plain.summary["network_bytes"]


def test_copies_fall_with_their_server(tmp_path: Path) -> None:
    result = same_in_single_steps(copied("host", use="always") | {"faults": [falls()]}, tmp_path)
    assert set(column(result, "status")) == {"finished"}
    assert result.summary["copied_bytes"] > 0
    assert result.summary["restored_tokens"] == 0


def test_a_slow_way_is_not_taken_where_computing_is_faster(tmp_path: Path) -> None:
    given = copied("store") | {"network": {"store": {"bandwidth": "0.8 GB/s"}}, "faults": [falls()]}
    assert run(given, tmp_path / "cheaper").summary["restored_tokens"] == 0
    given["gateway"]["on_failure"]["copies"]["use"] = "always"
    slow = run(given, tmp_path / "always")
    assert slow.summary["restored_tokens"] > 0


def test_copies_find_no_more_room_than_there_is(tmp_path: Path) -> None:
    free = run(copied(), tmp_path / "free")
    tight = run(copied(capacity="1 MB"), tmp_path / "tight")
    assert tight.summary["copied_bytes"] < free.summary["copied_bytes"] / 10


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (copied("store") | {"network": {}}, "no store"),
        (copied("other-host", 8), "one server"),
    ],
)
def test_copies_without_a_place_are_refused(given: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        run(given, tmp_path / "out")


@MANY
@given(
    seed=st.integers(0, 1000),
    to=st.sampled_from(["host", "other-host", "store"]),
    use=st.sampled_from(["cheaper", "always"]),
    every_s=st.sampled_from([0.03, 0.2]),
    swap=st.booleans(),
    prefix_cache=st.booleans(),
    apart=st.booleans(),
    cut=st.booleans(),
    more=st.sampled_from(
        [{}, {"rebalancer": {"policy": f"{HERE}:Restless"}}, {"router": {"policy": f"{HERE}:Impatient"}}]
    ),
)
def test_copies_in_leaps_and_steps(
    seed: int,
    to: str,
    use: str,
    every_s: float,
    swap: bool,
    prefix_cache: bool,
    apart: bool,
    cut: bool,
    more: dict[str, Any],
    tmp_path: Path,
) -> None:
    given = copied(to, 1 if apart else 2, seed, use=use, every=f"{every_s} s")
    kv = {"capacity_tokens": 1600, "block_tokens": 16, "preemption": {"mode": "swap" if swap else "recompute"}}
    engine = {"prefix_cache": prefix_cache, "kv": kv}
    if apart:
        pools = [pool("prefill", 2, "prefill", **engine), pool("decode", 2, "decode", **engine)]
        given["pools"] = [
            one | {"server": {"accelerators": 1}, "startup": {"weights": "none", "init": "0.2 s"}} for one in pools
        ]
    else:
        given["pools"][0]["engine"] |= engine
        given["gateway"] |= more
    given["faults"] = [{"policy": "crashes", "scope": "replica", "mtbf_h": 0.001, "repair_h": 0.0001}]
    if cut:
        incident = {"at_s": 0.7131, "for_s": 0.6, "what": "cut", "server": 0}
        given["faults"].append({"policy": "scheduled", "incidents": [incident]})
    result = same_in_single_steps(given, tmp_path)
    assert set(column(result, "status")) <= {"finished", "failed"}
