"""The checker of search policies: ours pass, and each rule catches who breaks it."""

from typing import Any, ClassVar

import pytest

from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig, names
from fleetsim.testing import check_search
from fleetsim.workload.searches.api import Leaves


@pytest.mark.parametrize("name", names("searches"))
def test_ours_pass(name: str) -> None:
    report = check_search(name)
    assert len(report.checks) == 4
    assert set(report.us_per_decision) == {"width 16", "width 64", "width 256"}


class Searching:
    """The first leaf takes everything."""

    Config: ClassVar = PolicyConfig
    decision_s = 0.0
    asked = 0

    def __init__(self, config: PolicyConfig) -> None:
        pass

    def continuations(self, leaves: Leaves) -> list[Any]:
        return [leaves.width] + [0] * (len(leaves.rewards) - 1)


class TooMany(Searching):
    def continuations(self, leaves: Leaves) -> list[Any]:
        return [leaves.width] * len(leaves.rewards)


class TooFew(Searching):
    def continuations(self, leaves: Leaves) -> list[Any]:
        return [1]


class Half(Searching):
    def continuations(self, leaves: Leaves) -> list[Any]:
        return [0.5] * len(leaves.rewards)


class Quitter(Searching):
    def continuations(self, leaves: Leaves) -> list[Any]:
        return [0] * len(leaves.rewards)


class Moody(Searching):
    def continuations(self, leaves: Leaves) -> list[Any]:
        Moody.asked += 1
        return [1 + Moody.asked % 2 if leaves.width > 1 else 1] + [0] * (len(leaves.rewards) - 1)


class Vandal(Searching):
    def continuations(self, leaves: Leaves) -> list[Any]:
        leaves.rewards[0] = 1.0
        return super().continuations(leaves)


class Timeless(Searching):
    decision_s = -1.0


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (TooMany, "hands out 2 continuations of 2 leaves with 1"),
        (TooFew, "answers 1 numbers of 2 leaves"),
        (Half, "whole numbers"),
        (Quitter, "gives up all 1 leaves"),
        (Moody, "decides otherwise about the same tree"),
        (Vandal, "read-only"),
        (Timeless, "`decision_s` is -1.0"),
    ],
)
def test_who_breaks_a_rule_is_caught(policy: type, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        check_search(policy)


def test_the_simplest_passes() -> None:
    assert check_search(Searching).policy == "Searching"
