"""The checker of autoscalers of fleets: ours pass, and each rule catches who breaks it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from numpy.random import Generator

from fleetsim.elasticity.api import Convert, FleetState, Scale, Seat
from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig, names
from fleetsim.testing import check_fleet_autoscaler

OURS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "chiron": ({"period_s": 1.0, "start_seqs": 8}, ("interactive", "mixed", "batch")),
    "dynamo-sla": ({"interval_s": 5.0, "max_accelerators": 6}, ("prefill", "decode")),
    "role-flips": ({"period_s": 1.0, "dwell_s": 2.0, "least_decode": 1}, ("prefill", "decode")),
    "shape-ladder": ({"period_s": 1.0, "lasting_s": 3.0}, ("small", "large")),
    "spot-floor": ({"replicas": 3, "floor": 1, "period_s": 1.0}, ("on-demand", "spot")),
    "timetable": (
        {
            "changes": [
                {"at_s": 3.0, "pool": "main", "replicas": 3},
                {"at_s": 9.0, "source": "main", "target": "other", "replicas": 2},
                {"at_s": 20.0, "source": "other", "target": "main", "replicas": 1},
            ]
        },
        ("main", "other"),
    ),
}
"""Parameters and pools with which each decides often."""


@pytest.mark.parametrize("name", names("fleet_autoscalers"))
def test_ours_pass(name: str) -> None:
    config, pools = OURS[name]
    report = check_fleet_autoscaler(name, config, pools)
    assert len(report.checks) == 7


class Busy:
    """As many replicas of each pool as keep a few requests each."""

    Config: ClassVar = PolicyConfig
    period_s: float = 1.0
    asked = 0

    def __init__(self, config: PolicyConfig, rng: Generator, fleet: FleetState) -> None:
        self.fleet = fleet

    def tick(self) -> Any:
        return [Scale(name, pool.concurrency // 8 + 1) for name, pool in self.fleet.pools.items()]


class NoTime(Busy):
    period_s = -1.0


class Number(Busy):
    def tick(self) -> Any:
        return 3


class Elsewhere(Busy):
    def tick(self) -> Any:
        return [Scale("nowhere", 1)]


class NoWay(Busy):
    def tick(self) -> Any:
        return [Convert("main", "main")]


class Crowded(Busy):
    def tick(self) -> Any:
        return [*super().tick(), Seat(0, 1000)]


class Vandal(Busy):
    def tick(self) -> Any:
        self.fleet.pools["main"].window.arrivals += 1
        return super().tick()


class Moody(Busy):
    def tick(self) -> Any:
        Moody.asked += 1
        return [] if Moody.asked % 7 == 0 else super().tick()


class Lazy(Busy):
    def tick(self) -> Any:
        return [Scale("main", 0), Scale("other", 0)]


def test_a_third_party_policy_passes() -> None:
    assert check_fleet_autoscaler(Busy).policy == "Busy"


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (NoTime, "its `period_s` is -1.0"),
        (Number, "expected a list of actions"),
        (Elsewhere, "expected Scale, Convert or Seat of what there is"),
        (NoWay, "expected Scale, Convert or Seat of what there is"),
        (Crowded, "lets 1000 of 1 to 24 run"),
        (Vandal, "an autoscaler only answers"),
        (Moody, "with the same seed"),
        (Lazy, "requests never end"),
        (object, "has no method `tick`"),
    ],
)
def test_each_rule_catches_who_breaks_it(policy: type, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        check_fleet_autoscaler(policy)
