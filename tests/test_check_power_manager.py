"""The checker of power managers: ours pass, and each rule catches who breaks it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from numpy.random import Generator

from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig, names
from fleetsim.power.api import Cap, Clock, Row, Seats, Sleep
from fleetsim.testing import check_power_manager

CONFIGS: dict[str, dict[str, Any]] = {
    "grid-flex": {"calls": [{"start_s": 6.0, "duration_s": 30.0, "curtail_ratio": 0.2}]},
    "schedule": {"stages": [{"at_s": 3.0, "clock_ratio": 0.6, "max_seqs": 8}, {"at_s": 20.0, "cap_w": 300.0}]},
    "sleep": {"idle_s": 1.0},
}
"""Parameters with which they do something during the trial."""


@pytest.mark.parametrize("name", names("power_managers"))
def test_ours_pass(name: str) -> None:
    report = check_power_manager(name, CONFIGS.get(name))
    assert len(report.checks) == 6
    assert set(report.us_per_decision) == {"2 replicas", "64 replicas"}


class Halved:
    """Half the clock where nobody waits."""

    Config: ClassVar = PolicyConfig
    period_s: float = 1.0

    def __init__(self, config: PolicyConfig, rng: Generator, row: Row) -> None:
        self.row = row

    def tick(self) -> Any:
        return [Clock(number, 1.0 if r.waiting else 0.5) for number, r in enumerate(self.row.replicas)]


class NoTime(Halved):
    period_s = 0.0


class Overclocked(Halved):
    def tick(self) -> Any:
        return [Clock(0, 1.2)]


class Nobody(Halved):
    def tick(self) -> Any:
        return [Clock(99, 0.5)]


class TooHigh(Halved):
    def tick(self) -> Any:
        return [Cap(0, 5000.0)]


class TooMany(Halved):
    def tick(self) -> Any:
        return [Seats(0, 1000)]


class Lullaby(Halved):
    """Puts everybody to sleep for good."""

    def tick(self) -> Any:
        return [Sleep(number) for number in range(len(self.row.replicas))]


class Vandal(Halved):
    def tick(self) -> Any:
        self.row.replicas[0].waiting += 1
        return super().tick()


class Silent(Halved):
    def tick(self) -> Any:
        return None


class Clairvoyant(Halved):
    """Draws outside its own stream."""

    count = 0

    def tick(self) -> Any:
        Clairvoyant.count += 1
        return [Clock(0, 0.5 + 0.01 * (Clairvoyant.count % 37))]


def test_a_plain_one_passes() -> None:
    assert check_power_manager(Halved).policy == "Halved"


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        (NoTime, "period_s"),
        (Overclocked, "clocks go from 0.1 to 1"),
        (Nobody, "there are 2 replicas"),
        (TooHigh, "caps go from above"),
        (TooMany, "1 to 24 may run"),
        (Lullaby, "never end"),
        (Vandal, "changes the state"),
        (Silent, "expected a sequence"),
        (Clairvoyant, "same seed"),
    ],
)
def test_rules_that_are_broken(policy: type, complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        check_power_manager(policy)
