"""Eviction policies that count in runs against the same rules block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test
from numpy.random import default_rng

from fleetsim.engine.evictions.api import CacheView
from fleetsim.engine.prefix_cache import PrefixCache
from fleetsim.plugins import load, names
from fleetsim.workload.request import Request
from tests.engine import block_evictions as blocks
from tests.engine.block_evictions import Item, PolicyBlocks
from tests.engine.test_prefix_cache import Caches

CAPACITY = 24
RULES: dict[str, tuple[dict[str, Any], Callable[[CacheView], Any]]] = {
    "lru": ({}, blocks.Lru),
    "fifo": ({}, blocks.Fifo),
    "lfu": ({}, blocks.Lfu),
    "slru": ({}, blocks.Slru),
    "cost-aware": ({}, blocks.CostAware),
    "ttl": ({"keep": "12 s", "classes": {"a": "5 s"}, "tenants": {"b": "40 s"}}, blocks.Ttl),
    "retention": (
        {
            "directives": [
                {"classes": ["a"], "tokens": 64, "priority": 90, "duration": "20 s"},
                {"classes": ["a"], "priority": 60, "duration": "6 s"},
                {"tenants": ["b"], "priority": 10},
            ]
        },
        blocks.Retention,
    ),
    "random-leaf": ({}, lambda view: blocks.RandomLeaf(view, default_rng(7))),
    "s3-fifo": ({}, blocks.S3Fifo),
    "arc": ({}, blocks.Arc),
}


def test_every_registered_policy_is_held_against_a_plain_one() -> None:
    assert sorted(RULES) == names("evictions")


class Chosen(Caches):
    """Both caches with the same policy, and a clock and classes for it to look at."""

    policy = "lru"
    plain_rule: Callable[[CacheView], Any] | None = None

    def __init__(self) -> None:
        super().__init__()
        config, plain_rule = RULES[self.policy]
        self.now_s = 0.0
        views = [CacheView(CAPACITY, 16, lambda: self.now_s, 1.0, 0.01) for _ in range(2)]
        self.users = [view.user for view in views]
        policy = load("evictions", self.policy)
        chosen = policy(policy.Config.model_validate(config), default_rng(7), views[0])
        self.fast = PrefixCache(CAPACITY, True, chosen)
        self.blocks = PolicyBlocks(CAPACITY, (type(self).plain_rule or plain_rule)(views[1]))
        self.plain = self.blocks

    @rule(seconds=st.sampled_from([1.0, 3.0, 11.0]), klass=st.sampled_from([None, "a", "b"]))
    def wait(self, seconds: float, klass: str | None) -> None:
        """Time passes, and who comes or goes next is somebody else."""
        self.now_s += seconds
        for user in self.users:
            user._request = Request(0, 0.0, 1, 1, klass=klass, tenant=klass)

    @invariant()
    def same_order_of_eviction(self) -> None:
        """Idle blocks are the same; which goes next shows when one does."""
        assert sum(node.length for node in self.fast.idle) == len(self.plain.queue)

    @invariant()
    def no_orphans(self) -> None:
        """What is cached can be found from the start on, except what nobody could ever find."""
        findable = {id(node) for node in self.fast.nodes()}
        assert all(id(node) in findable or node.parent is None for node in self.fast.idle)
        reached = {id(block) for block in self.blocks.blocks()}
        assert all(id(block) in reached or block.hidden for block in self.blocks.queue if isinstance(block, Item))


def check(
    policy: str, examples: int, steps: int, plain: Callable[[CacheView], Any] | None = None, **options: Any
) -> None:
    machine = type("Chosen", (Chosen,), {"policy": policy, "plain_rule": staticmethod(plain) if plain else None})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks, **options
        ),
    )


@pytest.mark.parametrize("policy", sorted(RULES))
def test_runs_go_like_single_blocks(policy: str) -> None:
    """Hits, counts, reference counts and what is left after every operation agree."""
    check(policy, 60, 40)


def test_a_run_whose_last_follower_goes_expires_at_once() -> None:
    """An expired run that one with a longer lease kept goes as a whole, needed or not, when that one makes room."""
    now_s = 1.0
    view = CacheView(12, 16, lambda: now_s, 1.0, 0.01)
    ttl = load("evictions", "ttl")
    config = ttl.Config.model_validate({"keep": "12 s", "classes": {"b": "40 s"}})
    cache = PrefixCache(12, True, ttl(config, default_rng(0), view))
    path = (range(0, 128, 16),)
    cache.allocate(7)
    cache.release(cache.extend(cache.root, path, 0, 7))
    now_s, view.user._request = 2.0, Request(0, 0.0, 1, 1, klass="b")
    assert cache.lookup(path, 7) == 7
    node = cache.acquire_hit()
    cache.allocate(1)
    cache.release(cache.extend(node, path, 7, 8))
    now_s = 14.0  # the first seven ended at 14, the last one ends at 42
    cache.allocate(6)
    assert (cache.used, cache.cached, cache.evicted) == (6, 0, 8)


@pytest.mark.slow
@pytest.mark.parametrize("policy", sorted(RULES))
def test_runs_go_like_single_blocks_at_length(policy: str) -> None:
    """The same over many more sequences."""
    check(policy, 1500, 80)


@pytest.mark.parametrize("policy", sorted(set(RULES) - {"lru"}))
def test_the_comparison_tells_policies_apart(policy: str) -> None:
    """Anti-vacuity: each policy differs from plain least recently used somewhere."""
    with pytest.raises(AssertionError):
        check(policy, 300, 50, blocks.Lru, phases=[Phase.generate], derandomize=True, database=None)
