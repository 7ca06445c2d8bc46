"""Model routers in front of fleets of every kind: the laws hold, nothing is lost, and leaps give what single steps give."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fleet.test_moves import HERE as POLICIES
from tests.fleet.test_moves import MANY, column, pool, same_in_single_steps
from tests.fleet.test_sites import sites
from tests.model_routing.test_answering import HERE, SMALL, scenario


def small(replicas: int = 1, **changes: Any) -> dict[str, Any]:
    return {**pool("small", replicas), "llm": SMALL, **changes}


def apart() -> dict[str, Any]:
    """Prompts of the big model are computed apart from its answers."""
    return {"pools": [pool("prompts", 1, "prefill"), pool("answers", 2, "decode"), small()]}


def swapping() -> dict[str, Any]:
    """Two replicas hold either model."""
    shared = {**pool("shared", 2), "accelerator": "h100-sxm", "models": [SMALL], "swap": {"setup": "300 ms"}}
    return {"pools": [shared]}


def elastic() -> dict[str, Any]:
    """The big model's pool grows and shrinks."""
    grows = {"min_replicas": 1, "max_replicas": 3, "autoscaler": "kpa", "startup": {"weights": "none", "init": "1 s"}}
    return {"pools": [pool("big", 1) | grows, small()]}


def failing() -> dict[str, Any]:
    """Replicas fail and are repaired."""
    incidents = [
        {"at_s": 0.5, "for_s": 2.0, "pool": "big", "replicas": [0]},
        {"at_s": 1.0, "for_s": 3.0, "pool": "small", "replicas": [0]},
        {"at_s": 1.2, "for_s": 2.0, "pool": "big", "replicas": [1]},
    ]
    return {"faults": [{"policy": "scheduled", "incidents": incidents}]}


def gateway_loss() -> dict[str, Any]:
    """Half of the gateways are lost for a while."""
    incident = {"at_s": 0.5, "for_s": 1.5, "what": "lose-gateway", "share": 0.5}
    return {"faults": [{"policy": "scheduled", "incidents": [incident]}]}


def placed() -> dict[str, Any]:
    """One model at each of two sites with energy and prices of their own."""
    here = {"eu": sites()["eu"], "us": sites()["us"]}
    here["eu"]["rtt"] = {"us": "80 ms"}
    here["us"]["rtt"] = {}
    pools = [pool("big", 2) | {"site": "eu"}, small(1, site="us")]
    return {"pools": pools, "sites": here, "run": {"interval": "1 s"}}


def hedged() -> dict[str, Any]:
    """A second copy is sent where the first token takes long."""
    router = {"policy": f"{POLICIES}:Impatient", "hedge_after_s": 0.1}
    return {"gateway": {"router": router}}


def turned_away() -> dict[str, Any]:
    """Full queues turn requests away."""
    return {"gateway": {"admission": {"policy": "queue-cap", "per_replica": 4}}}


def stale() -> dict[str, Any]:
    """What policies see is half a second old."""
    return {"gateway": {"view": {"freshness": "delayed", "delay": "0.5 s", "own_counts": False}}}


FLEETS = (apart, swapping, elastic, failing, gateway_loss, placed, hedged, turned_away, stale)
ROUTERS = ("route-balance", "frugal-gpt", "auto-mix", "linucb", "symphony-coord", f"{HERE}:Samples", f"{HERE}:Thorough")


@pytest.mark.parametrize("fleet", FLEETS, ids=lambda fleet: fleet.__name__)
@MANY
@given(router=st.sampled_from(ROUTERS), seed=st.integers(0, 1000), rate=st.sampled_from([20.0, 80.0]))
def test_leaps_and_single_steps_give_the_same(
    fleet: Any, router: str, seed: int, rate: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = scenario(router, 60, rate, **fleet())
    config["seed"] = seed
    result = same_in_single_steps(config, tmp_path_factory.mktemp("fleets"))
    summary = result.summary
    assert summary["requests"] == 60
    assert summary["finished"] + summary["rejected"] + summary["failed"] + summary["timed_out"] == 60
    if fleet not in (turned_away, gateway_loss):
        assert summary["finished"] == 60
    calls = [
        n for n, status in zip(column(result, "calls"), column(result, "status"), strict=True) if status == "finished"
    ]
    assert all(n >= 1 for n in calls if n is not None)
