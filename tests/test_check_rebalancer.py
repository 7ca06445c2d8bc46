"""The checker of rebalancers: ours pass, and each rule catches who breaks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from numpy.random import Generator

from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig, names
from fleetsim.rebalancing.api import Migrate, Moving, ReplicaState
from fleetsim.testing import check_rebalancer


@pytest.mark.parametrize("name", names("rebalancers"))
def test_ours_pass(name: str) -> None:
    report = check_rebalancer(name)
    assert len(report.checks) == 6
    assert set(report.us_per_decision) == {"4 replicas", "64 replicas"}


@pytest.mark.parametrize("config", [{"choice": "LR", "pairing": "balanced"}, {"choice": "FCWSR", "concurrent": 3}])
def test_llumnix_passes_with_other_rules(config: dict[str, Any]) -> None:
    assert check_rebalancer("llumnix", config).decisions > 0


class Spreading:
    """Moves the first decoding request of the fullest replica to the emptiest one."""

    Config: ClassVar = PolicyConfig
    period_s: float = 0.2
    asked = 0

    def __init__(self, config: PolicyConfig, rng: Generator, replicas: Sequence[ReplicaState], moving: Moving) -> None:
        self.replicas = replicas

    def chosen(self, source: int) -> Any:
        return next((request for request in self.replicas[source].running() if request.decoding), None)

    def tick(self) -> list[Any]:
        used = [replica.used_blocks for replica in self.replicas]
        source, target = used.index(max(used)), used.index(min(used))
        request = self.chosen(source)
        return [] if request is None or source == target else [Migrate(request.id, source, target)]


class NoTime(Spreading):
    period_s = 0.0


class OnTheSpot(Spreading):
    def tick(self) -> list[Any]:
        return [Migrate(0, 0, 0)]


class Elsewhere(Spreading):
    def tick(self) -> list[Any]:
        return [Migrate(0, 0, len(self.replicas))]


class Tuples(Spreading):
    def tick(self) -> list[Any]:
        return [(move.request, move.source, move.target) for move in super().tick()]


class Vandal(Spreading):
    def chosen(self, source: int) -> Any:
        request = super().chosen(source)
        if request is not None:
            request._request.priority += 1
        return request


class Moody(Spreading):
    def tick(self) -> list[Any]:
        Moody.asked += 1
        return super().tick() if Moody.asked % 7 else []


class Peeking(Spreading):
    def chosen(self, source: int) -> Any:
        decoding = [request for request in self.replicas[source].running() if request.decoding]
        return max(decoding, key=lambda request: request._request.output_tokens, default=None)


class StepCounting(Spreading):
    """Looks at how the simulator gets along."""

    def tick(self) -> list[Any]:
        return super().tick() if self.replicas[0]._replica.boundaries % 3 else []


class Failing(Spreading):
    def tick(self) -> list[Any]:
        raise ZeroDivisionError("no")


def test_a_third_party_policy_passes() -> None:
    assert check_rebalancer(Spreading).policy == "Spreading"


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (NoTime, "its `period_s` is 0.0"),
        (OnTheSpot, "there are replicas 0 to"),
        (Elsewhere, "there are replicas 0 to"),
        (Tuples, "expected `MoveQueued`, `Migrate`, `Borrow` or `Recall`"),
        (Vandal, "a rebalancer only answers"),
        (Moody, "with the same seed"),
        (Peeking, "true output lengths"),
        (StepCounting, "in leaps than step by step"),
        (Failing, "`tick` failed: ZeroDivisionError"),
        (object, "has no method `tick`"),
    ],
)
def test_each_rule_catches_who_breaks_it(policy: type, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        check_rebalancer(policy)
