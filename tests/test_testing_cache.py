"""The public checker of eviction policies: everything registered passes, each kind of mistake is named."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fleetsim.engine.evictions.leaves import Leaves
from fleetsim.engine.evictions.lru import Lru
from fleetsim.engine.evictions.random_leaf import RandomLeaf
from fleetsim.engine.prefix_cache import Node
from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig, names
from fleetsim.testing import check_cache


@pytest.mark.parametrize("name", names("evictions"))
def test_registered_policies_pass(name: str) -> None:
    report = check_cache(name)
    assert list(report.us_per_decision) == ["100 blocks", "10000 blocks"]
    assert all(0 < cost < 1000 for cost in report.us_per_decision.values())
    assert report.decisions > 1000
    assert len(report.checks) == 5


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ttl", {"keep": "2 s", "classes": {"chat": "5 s"}, "tenants": {"a": "500 ms"}}),
        ("retention", {"directives": [{"classes": ["chat"], "tokens": 32, "duration": "2 s"}], "by_request": True}),
        ("s3-fifo", {"small_ratio": 0.5, "promote_hits": 1}),
        ("slru", {"protected_hits": 1}),
    ],
)
def test_they_pass_with_other_parameters(name: str, config: dict[str, Any]) -> None:
    assert check_cache(name, config).policy.lower() == name.replace("-", "")


class Plain(PolicyConfig):
    """No parameters."""


class Longest(Leaves):
    """A policy in one method: the longest run goes first."""

    Config = Plain

    def rank(self, run: Node) -> Any:
        return -run.length, run.state.released


def test_a_policy_of_one_method_passes() -> None:
    assert check_cache(Longest).policy == "Longest"
    assert check_cache(f"{__name__}:Longest").policy == "Longest"


class NoFollowersAsked(Lru):
    """Oldest run, with followers or not."""

    def released(self, run: Node) -> None:
        self.offer(run)

    def rank(self, run: Node) -> Any:
        return run.state.created


class InUse(Lru):
    def used(self, run: Node) -> None:
        run.state.hits += 1


class NoneAtAll(Lru):
    def victim(self, blocks: int) -> Any:
        return super().victim(blocks)[0], 0


class Nobody(Lru):
    def victim(self, blocks: int) -> Any:
        return None


class Dice(RandomLeaf):
    def victim(self, blocks: int) -> Any:
        return random.choice(self.runs), 1


class Peeks(Lru):
    def rank(self, run: Node) -> Any:
        request = self.view.user._request
        return request.output_tokens if request is not None else 0


class Shared(Lru):
    seen: list[int] = []  # noqa: RUF012

    def rank(self, run: Node) -> Any:
        self.seen.append(1)
        return (len(self.seen) * 7919) % 31


class Meddles(Lru):
    def released(self, run: Node) -> None:
        super().released(run)
        run.users = 0
        run.length = max(run.length - 1, 1)


class NoExpiry(Lru):
    expires = None  # type: ignore[assignment]


class HalfRuns(Lru):
    def begin_alike(self, parent: Node, keys: Any, first: int, last: int) -> int:
        return last - first + 1


class Forgets:
    Config = Plain

    def __init__(self, config: Any, rng: Any, view: Any) -> None:
        """Knows nothing."""


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (NoFollowersAsked, "in use, gone or has cached blocks after it"),
        (InUse, "in use, gone or has cached blocks after it"),
        (NoneAtAll, "answered 0 blocks to go"),
        (Nobody, "fails at request"),
        (Dice, "draw only from the given `rng`"),
        (Peeks, "output length|hidden parts|reads `_request`"),
        (Shared, "same seed|not independent"),
        (Meddles, "changes a run"),
        (NoExpiry, "has no `expires`"),
        (HalfRuns, "begin_alike answered"),
        (Forgets, "has no method `begin_alike`; it decides: which cached keys and values go first"),
        ("nothing", "unknown policy"),
    ],
)
def test_mistakes_are_named(policy: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        check_cache(policy)
