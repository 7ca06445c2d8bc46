"""The checker of autoscalers: ours pass, and each rule catches who breaks it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from numpy.random import Generator

from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig, names
from fleetsim.scaling.api import PoolState
from fleetsim.testing import check_autoscaler


@pytest.mark.parametrize("name", names("autoscalers"))
def test_ours_pass(name: str) -> None:
    report = check_autoscaler(name)
    assert len(report.checks) == (6 if name == "oracle" else 7)
    assert set(report.us_per_decision) == {"up to 4 replicas", "up to 64 replicas"}


class Proportional:
    """One replica for so many requests."""

    Config: ClassVar = PolicyConfig
    period_s: float = 1.0
    asked = 0

    def __init__(self, config: PolicyConfig, rng: Generator, pool: PoolState) -> None:
        self.pool = pool

    def tick(self) -> Any:
        return -(-self.pool.concurrency // 8)

    def inside(self) -> Any:
        """The pool of the simulator, which no autoscaler has any business with."""
        return self.pool.prefill_s.__closure__[0].cell_contents  # type: ignore[index]


class NoTime(Proportional):
    period_s = 0.0


class Halves(Proportional):
    def tick(self) -> Any:
        return self.pool.concurrency / 8


class Negative(Proportional):
    def tick(self) -> Any:
        return -1


class Vandal(Proportional):
    def tick(self) -> Any:
        self.pool.window.arrivals += 1
        return super().tick()


class Moody(Proportional):
    def tick(self) -> Any:
        Moody.asked += 1
        return super().tick() + (Moody.asked % 7 == 0)


class Peeking(Proportional):
    def tick(self) -> Any:
        if not hasattr(self.inside(), "replicas"):
            return 1
        running = [r for replica in self.inside().replicas for batch in replica.batches for r in batch.running]
        return sum(request.output_tokens for request in running) // 200 + 1


class StepCounting(Proportional):
    """Looks at how the simulator gets along."""

    def tick(self) -> Any:
        inside = self.inside()
        return super().tick() + (inside.replicas[0].boundaries % 3 if hasattr(inside, "replicas") else 0)


class Lazy(Proportional):
    """Has nobody, whoever comes."""

    def tick(self) -> Any:
        return 0


class Failing(Proportional):
    def tick(self) -> Any:
        raise ZeroDivisionError("no")


def test_a_third_party_policy_passes() -> None:
    assert check_autoscaler(Proportional).policy == "Proportional"


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (NoTime, "its `period_s` is 0.0"),
        (Halves, "expected the number of replicas"),
        (Negative, "`tick` answered -1"),
        (Vandal, "an autoscaler only answers"),
        (Moody, "with the same seed"),
        (Peeking, "true output lengths"),
        (StepCounting, "in leaps than step by step"),
        (Lazy, "requests never end"),
        (Failing, "`tick` failed: ZeroDivisionError"),
        (object, "has no method `tick`"),
    ],
)
def test_each_rule_catches_who_breaks_it(policy: type, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        check_autoscaler(policy)
