"""Checker of eviction policies."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

import numpy as np

from fleetsim.engine.evictions.api import CacheView
from fleetsim.engine.prefix_cache import Node, PrefixCache
from fleetsim.errors import PolicyError
from fleetsim.testing.report import Config, Policy, Report
from fleetsim.workload.prefixes import Path
from fleetsim.workload.request import Request

_METHODS = (
    "begin_alike",
    "published",
    "used",
    "released",
    "cut",
    "alike",
    "victim",
    "evicting",
    "exposed",
    "expired",
)
_KNOWN = ("klass", "tenant", "session", "priority", "prompt_tokens")
"""What a cache knows of the request that uses it."""
_CACHES = ((12, 200), (60, 400), (2000, 400))
"""Capacities [blocks] that are tried, and with how many requests."""
_COSTS = (100, 10_000)
"""Capacities at which the cost is measured [blocks]."""
_BLOCK_TOKENS = 16

Course = list[tuple[int, ...]]
"""What went, in order: for each trimmed run its first key, the blocks that went and those that were left."""


def check_cache(policy: type | str, config: Config = None) -> Report:
    """Try an eviction policy on caches that are much too small, a little too small, and large enough.

    Checked are: only blocks without users and cached followers go, and as many as are needed; the cache's books add up and nothing
    that is cached is out of reach; the policy changes nothing but its own notes; the same seed gives the same decisions, whatever
    other instances do; they do not depend on the true output length, and the user's hidden parts are not touched.

    Parameters
    ----------
    policy : type or str
        The class, its registered name or ``module:Class``.
    config : BaseModel or mapping, optional
        Its parameters.

    Returns
    -------
    Report
        With the time per request at 100 and 10,000 blocks.

    Raises
    ------
    PolicyError
        If a check fails; the message says which and how.
    """
    checked = Policy("evictions", policy, config, _METHODS)
    for capacity, requests in _CACHES:
        where = f"in a cache of {capacity} blocks"
        expected = _Trial(checked, capacity, requests, watch=True).course()
        if _Trial(checked, capacity, requests).course() != expected:
            checked.fail(f"decides otherwise with the same seed {where}: draw only from the given `rng`")
        if _Trial(checked, capacity, requests, outputs=1).course() != expected:
            checked.fail("decisions depend on the true output length, which no cache knows")
        if _Trial(checked, capacity, requests, sealed=True).course() != expected:
            checked.fail("decides otherwise when the user's hidden parts are sealed")
        if _Trial(checked, capacity, requests, beside=True).course() != expected:
            checked.fail("instances are not independent: another one in the same process changes the decisions")
    checked.passed("only blocks without users and followers go; nothing cached is out of reach")
    checked.passed("the books add up after every request; nothing but the policy's notes is changed")
    checked.passed("the same seed gives the same decisions, with other instances beside it or without")
    checked.passed("the true output length is neither read nor used")
    return checked.report({f"{capacity} blocks": _cost(checked, capacity) for capacity in _COSTS})


class _SealedUser:
    """Passes for a `User` and gives away only what a cache knows."""

    def __init__(self) -> None:
        self._sealed: Request | None = None

    def __getattr__(self, name: str) -> Any:
        if name not in _KNOWN:
            raise PolicyError(f"reads `{name}` of the user; a cache knows {', '.join(_KNOWN)}")
        return getattr(self._sealed, name)


class _Trial:
    """One course of requests through one cache: some at a time, some alike, one after the other computed in parts."""

    def __init__(
        self,
        checked: Policy,
        capacity: int,
        requests: int,
        watch: bool = False,
        outputs: int = 0,
        sealed: bool = False,
        beside: bool = False,
    ) -> None:
        self.checked = checked
        self.now_s = 0.0
        self.requests = requests
        self.watch = watch
        self.outputs = np.random.default_rng([capacity, outputs, 3])
        self.rng = np.random.default_rng([capacity, 17])
        self.view = CacheView(capacity, _BLOCK_TOKENS, lambda: self.now_s, 1e-4, 1e-9)
        self.sealed = _SealedUser() if sealed else None
        if self.sealed is not None:
            self.view.user = self.sealed  # type: ignore[assignment]
        self.noted = _Noted(checked, self._create(self.view, 5), watch)
        self.cache = PrefixCache(capacity, True, self.noted)
        self.other = PrefixCache(capacity, True, self._create(self.view, 6)) if beside else None
        self.running: list[tuple[Node, int, Node | None]] = []

    def _create(self, view: CacheView, seed: int) -> Any:
        made = self.checked.create(np.random.default_rng(seed), view)
        if type(getattr(made, "expires", None)) is not bool:
            self.checked.fail("has no `expires`: whether `expired` is to be asked (True or False)")
        return made

    def course(self) -> Course:
        """Serve all requests; what went."""
        for number in range(self.requests):
            self.now_s += float(self.rng.exponential(0.5))
            with self.checked.complaining(f"fails at request {number} in a cache of {self.cache.capacity} blocks"):
                self._serve(number)
            if self.watch:
                self._books(number)
        while self.running:
            self._end(0)
        if self.cache.used:
            self.checked.fail(f"{self.cache.used} blocks are still in use when all requests have ended")
        return self.noted.course

    def _serve(self, number: int) -> None:
        """A request comes, is computed in two parts, and stays for a while."""
        rng, cache = self.rng, self.cache
        while self.running and (len(self.running) > 4 or rng.random() < 0.4):
            self._end(int(rng.integers(len(self.running))))
        path = self._path()
        blocks = sum(len(segment) for segment in path)
        klass, tenant = (None, "chat", "batch")[int(rng.integers(3))], (None, "a")[int(rng.integers(2))]
        request = Request(
            number,
            self.now_s,
            blocks * _BLOCK_TOKENS,
            int(self.outputs.integers(1, 2000)),
            klass=klass,
            tenant=tenant,
        )
        request.priority = int(rng.integers(3))
        if self.sealed is not None:
            self.sealed._sealed = request
        else:
            self.view.user._request = request
        while blocks > cache.capacity - cache.used and self.running:
            self._end(0)
        if blocks > cache.capacity - cache.used:
            return
        node = _enter(cache, path, blocks)
        self.running.append((node, number, None if self.other is None else _enter(self.other, path[-1:], 1)))

    def _path(self) -> Path:
        """A shared start, and a row of blocks that others may have too."""
        rng = self.rng
        group, branch = int(rng.zipf(1.5)) % 5, int(rng.integers(40))
        start, length = int(rng.integers(1, 5)), int(rng.integers(1, 7))
        first, second = (group + 1) * 1_000_000, (branch + 10) * 1_000_000 + group * 1000
        return (
            range(first, first + start * _BLOCK_TOKENS, _BLOCK_TOKENS),
            range(second, second + length * _BLOCK_TOKENS, _BLOCK_TOKENS),
        )

    def _end(self, place: int) -> None:
        node, _, other = self.running.pop(place)
        if self.cache.capacity - self.cache.used > 0 and self.rng.random() < 0.3:
            self.cache.allocate(1)
            self.cache.leave(1)  # a block that nobody can find
        self.cache.release(node)
        if other is not None and self.other is not None:
            self.other.release(other)

    def _books(self, number: int) -> None:
        cache = self.cache
        nodes = list(cache.nodes())
        idle = sum(node.length for node in cache.idle)
        found = {id(node) for node in nodes}
        if cache.cached != idle or cache.free < 0 or cache.used != sum(node.length for node in nodes if node.users):
            self.checked.fail(
                f"the books do not add up after request {number}: used {cache.used}, cached {cache.cached}, "
                f"capacity {cache.capacity}"
            )
        if any(node.parent is not None and id(node) not in found for node in cache.idle):
            self.checked.fail(f"blocks are cached that cannot be found any more after request {number}")


def _enter(cache: PrefixCache, path: Path, blocks: int) -> Node:
    """Use what is there and compute the rest in two parts."""
    hits = cache.lookup(path, blocks)
    node = cache.acquire_hit() if hits else cache.root
    if hits < blocks:
        cache.allocate(blocks - hits)
        half = (hits + blocks) // 2
        if half > hits:
            node = cache.extend(node, path, hits, half)
        node = cache.extend(node, path, max(half, hits), blocks)
    return node


class _Noted:
    """Passes calls on, notes what went, and sees that nothing but notes is changed."""

    def __init__(self, checked: Policy, inner: Any, watch: bool) -> None:
        self._checked = checked
        self._inner = inner
        self._watch = watch
        self.expires = inner.expires
        self.course: Course = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in _METHODS:
            return method

        def passed_on(*args: Any) -> Any:
            self._checked.decisions += 1
            before = [_facts(each) for each in args] if self._watch else []
            answer = method(*args)
            if self._watch and before != [_facts(each) for each in args]:
                self._checked.fail(f"`{name}` changes a run; a policy may set its `state` only")
            if name == "evicting":
                run, blocks = args
                self.course.append((run.first, blocks, run.length - blocks))
            return answer

        return passed_on


def _facts(thing: Any) -> Any:
    """All of a run that a policy must not change."""
    if not isinstance(thing, Node):
        return thing
    children = None if thing.children is None else {key: id(child) for key, child in thing.children.items()}
    return thing.keys, thing.first, thing.length, thing.users, id(thing.parent), children


def _cost(checked: Policy, capacity: int) -> float:
    """Time per request of ten new blocks in a full cache, the cache's own work included [µs]."""
    now_s = 0.0
    view = CacheView(capacity, _BLOCK_TOKENS, lambda: now_s, 1e-4, 1e-9)
    cache = PrefixCache(capacity, True, checked.create(np.random.default_rng(1), view))
    filling = 2 * capacity // 10
    start_ns = 0
    for number in range(filling + 500):
        if number == filling:
            start_ns = perf_counter_ns()
        now_s += 0.1
        path = (range(number * 1000, number * 1000 + 10 * _BLOCK_TOKENS, _BLOCK_TOKENS),)
        cache.release(_enter(cache, path, 10))
    return (perf_counter_ns() - start_ns) / 500 / 1e3
