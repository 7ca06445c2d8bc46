"""Eviction policies over single blocks, as their rules say and without any cleverness: what the counted ones are held against."""

from __future__ import annotations

from math import log2
from typing import Any, Protocol

from numpy.random import Generator

from fleetsim.engine.evictions.api import CacheView
from tests.engine.test_prefix_cache import Block, BlockByBlock


class Item(Block):
    """A block with a history."""

    def __init__(self, key: int, parent: Block | None, hidden: bool = False) -> None:
        super().__init__(key, parent)
        self.hidden = hidden
        """Whether nobody can find it."""
        self.created = self.released = self.hits = 0
        self.note: Any = None

    @property
    def depth(self) -> int:
        """Blocks before it."""
        return self.parent.depth + 1 if isinstance(self.parent, Item) else 0

    @property
    def may_go(self) -> bool:
        return not self.users and not self.children


class Rule(Protocol):
    """A policy over blocks."""

    def published(self, block: Item) -> None: ...
    def used(self, block: Item) -> None: ...
    def released(self, block: Item) -> None: ...
    def victim(self, idle: list[Item]) -> Item: ...
    def evicted(self, block: Item) -> None: ...
    def expired(self, idle: list[Item]) -> Item | None: ...


class PolicyBlocks(BlockByBlock):
    """Blocks one by one; whoever may go (no users, no cached followers) goes when the rule says so."""

    def __init__(self, capacity: int, rule: Any) -> None:
        super().__init__(capacity)
        self.rule = rule
        self.events = 0

    def lookup(self, keys: tuple[int, ...]) -> list[Block]:
        self.drop_expired()
        return super().lookup(keys)

    def use(self, block: Block) -> None:
        assert isinstance(block, Item)
        super().use(block)
        block.hits += 1
        self.rule.used(block)

    def allocate(self, count: int) -> None:
        for _ in range(count):
            if self.used + len(self.queue) == self.capacity:
                self.drop_expired()
            if self.used + len(self.queue) == self.capacity:
                self.drop(self.rule.victim(self.idle))
            self.own += 1

    @property
    def idle(self) -> list[Item]:
        return [block for block in self.queue if isinstance(block, Item)]

    def drop_expired(self) -> None:
        while (block := self.rule.expired(self.idle)) is not None:
            self.drop(block)

    def drop(self, block: Item) -> None:
        assert block.may_go
        self.queue.remove(block)
        self.evicted += 1
        if block.parent is not None:
            del block.parent.children[block.key]
        self.rule.evicted(block)

    def publish(self, last: Block, keys: tuple[int, ...]) -> Block:
        for key in keys:
            self.own -= 1
            if key in last.children:
                last = last.children[key]
                self.use(last)
            else:
                last.children[key] = self.add(Item(key, last))
                last = last.children[key]
        return last

    def add(self, block: Item) -> Item:
        self.events += 1
        block.created = self.events
        block.users = 1
        self.rule.published(block)
        return block

    def leave(self, count: int) -> None:
        """One behind the other, so that one after the other may go."""
        self.own -= count
        before: Item | None = None
        chain = []
        for key in range(count):
            block = self.add(Item(key, before, hidden=True))
            if before is not None:
                before.children[key] = block
            before = block
            chain.append(block)
        for block in reversed(chain):
            self.let_go(block)

    def let_go(self, block: Item) -> None:
        block.users -= 1
        if not block.users:
            self.events += 1
            block.released = self.events
            self.queue.append(block)
            self.rule.released(block)

    def release(self, last: Block) -> None:
        while last.parent is not None:
            assert isinstance(last, Item)
            self.let_go(last)
            last = last.parent


class Ranked:
    """The lowest rank goes first."""

    def __init__(self, view: CacheView) -> None:
        self.view = view

    def published(self, block: Item) -> None:
        """Nothing to note."""

    def used(self, block: Item) -> None:
        """Nothing to note."""

    def released(self, block: Item) -> None:
        """Nothing to note."""

    def evicted(self, block: Item) -> None:
        """Nothing to note."""

    def rank(self, block: Item) -> Any:
        raise NotImplementedError

    def victim(self, idle: list[Item]) -> Item:
        return min((block for block in idle if block.may_go), key=self.rank)

    def expired(self, idle: list[Item]) -> Item | None:
        return None


class Lru(Ranked):
    def rank(self, block: Item) -> Any:
        return block.released


class Fifo(Ranked):
    def rank(self, block: Item) -> Any:
        return block.created


class Lfu(Ranked):
    def rank(self, block: Item) -> Any:
        return block.hits, block.released


class Slru(Ranked):
    def rank(self, block: Item) -> Any:
        return block.hits >= 2, block.released


class CostAware(Ranked):
    def published(self, block: Item) -> None:
        block.note = (0.2, self.view.now_s)

    def used(self, block: Item) -> None:
        uses, since_s = block.note
        if block.users == 1:
            uses *= 2.0 ** ((since_s - self.view.now_s) / 60.0)
        block.note = (uses + 0.2 * (1.0 - uses), since_s)

    def released(self, block: Item) -> None:
        block.note = (block.note[0], self.view.now_s)

    def rank(self, block: Item) -> Any:
        uses, since_s = block.note
        return log2(uses * self.view.recompute_s(block.depth)) + since_s / 60.0, block.released


class Ttl(Ranked):
    KEEP = {"a": 5.0, "b": 40.0}  # noqa: RUF012

    def published(self, block: Item) -> None:
        block.note = (self.KEEP.get(self.view.user.klass or "", 12.0), 0.0)

    def released(self, block: Item) -> None:
        block.note = (block.note[0], self.view.now_s + block.note[0])

    def rank(self, block: Item) -> Any:
        return block.note[1], block.released

    def expired(self, idle: list[Item]) -> Item | None:
        block = self.victim(idle) if idle else None
        return block if block is not None and block.note[1] <= self.view.now_s else None


class Retention(Ranked):
    """Class a: the first 64 tokens at 90 for 20 s, all else of it at 60 for 6 s; b: at 10."""

    def __init__(self, view: CacheView) -> None:
        super().__init__(view)
        self.now_s = 0.0

    def published(self, block: Item) -> None:
        self.now_s = self.view.now_s
        klass = None if block.hidden else self.view.user.klass
        priority, duration_s = 35, 1e9
        if klass == "a":
            priority, duration_s = (90, 20.0) if block.depth < 4 else (60, 6.0)
        elif klass == "b":
            priority = 10
        block.note = [priority, duration_s, 0.0]

    def used(self, block: Item) -> None:
        self.now_s = self.view.now_s

    def released(self, block: Item) -> None:
        self.now_s = self.view.now_s
        block.note[2] = self.now_s + block.note[1]

    def rank(self, block: Item) -> Any:
        priority, _, end_s = block.note
        return priority if self.now_s < end_s else 35, block.released


class RandomLeaf(Ranked):
    """Draws from the same list of leaves in the same order."""

    def __init__(self, view: CacheView, rng: Generator) -> None:
        super().__init__(view)
        self.rng = rng
        self.leaves: list[Item] = []

    def used(self, block: Item) -> None:
        if block in self.leaves:
            self._remove(block)

    def released(self, block: Item) -> None:
        if block.may_go:
            self.leaves.append(block)

    def evicted(self, block: Item) -> None:
        before = block.parent
        if isinstance(before, Item) and before.may_go:
            self.leaves[self.leaves.index(block)] = before
        else:
            self._remove(block)

    def victim(self, idle: list[Item]) -> Item:
        assert sum(block.may_go for block in idle) == len(self.leaves)
        return self.leaves[int(self.rng.integers(len(self.leaves)))]

    def _remove(self, block: Item) -> None:
        place = self.leaves.index(block)
        last = self.leaves.pop()
        if last is not block:
            self.leaves[place] = last


class S3Fifo(Ranked):
    """Two queues of blocks, oldest first, and the keys of what went from the small one."""

    def __init__(self, view: CacheView) -> None:
        super().__init__(view)
        self.main_size = view.capacity_blocks - max(view.capacity_blocks // 10, 1)
        self.ghost_size = int(0.9 * view.capacity_blocks)
        self.small: list[Item] = []
        self.main: list[Item] = []
        self.ghost: list[int] = []

    def published(self, block: Item) -> None:
        known = not block.hidden and block.key in self.ghost
        if known:
            self.ghost.remove(block.key)
        block.note = {"main": known, "hits": 0}

    def used(self, block: Item) -> None:
        block.note["hits"] += 1

    def released(self, block: Item) -> None:
        if block not in self.small and block not in self.main:
            (self.main if block.note["main"] else self.small).append(block)

    def evicted(self, block: Item) -> None:
        if block in self.main:
            self.main.remove(block)
        else:
            self.small.remove(block)
            if not block.hidden:
                if block.key not in self.ghost:
                    self.ghost.append(block.key)
                self.ghost = self.ghost[max(len(self.ghost) - self.ghost_size, 0) :]

    def victim(self, idle: list[Item]) -> Item:
        found = None
        if len(self.main) > self.main_size:
            found = self._from_main(idle)
        found = found or self._from_small(idle) or self._from_main(idle)
        assert found is not None
        return found

    def _head(self, queue: list[Item], idle: list[Item]) -> Item | None:
        return next((block for block in queue if block in idle), None)

    def _from_small(self, idle: list[Item]) -> Item | None:
        stuck = None
        while (block := self._head(self.small, idle)) is not None and block is not stuck:
            if block.may_go and block.note["hits"] < 2:
                return block
            self.small.remove(block)
            if block.note["hits"] >= 2:
                block.note["hits"] = 0
                self.main.append(block)
            else:
                stuck = stuck or block
                self.small.append(block)
        return None

    def _from_main(self, idle: list[Item]) -> Item | None:
        stuck = None
        while (block := self._head(self.main, idle)) is not None and block is not stuck:
            hits = block.note["hits"]
            if block.may_go and not hits:
                return block
            self.main.remove(block)
            self.main.append(block)
            if hits:
                block.note["hits"] = min(hits, 3) - 1
                stuck = None
            else:
                stuck = stuck or block
        return None


class Arc(Ranked):
    """Blocks seen once and more often, and the keys of what went from either."""

    def __init__(self, view: CacheView) -> None:
        super().__init__(view)
        self.size = view.capacity_blocks
        self.often: dict[Item, bool] = {}
        self.ghosts: dict[bool, list[int]] = {False: [], True: []}
        self.target = 0.0

    def count(self, often: bool) -> int:
        return sum(each is often for each in self.often.values())

    def published(self, block: Item) -> None:
        once, often = self.ghosts[False], self.ghosts[True]
        known = False
        if not block.hidden and block.key in once:
            self.target = min(self.target + max(len(often) / len(once), 1.0), float(self.size))
            once.remove(block.key)
            known = True
        elif not block.hidden and block.key in often:
            self.target = max(self.target - max(len(once) / len(often), 1.0), 0.0)
            often.remove(block.key)
            known = True
        self.often[block] = known

    def used(self, block: Item) -> None:
        self.often[block] = True

    def victim(self, idle: list[Item]) -> Item:
        leaves = sorted((block for block in idle if block.may_go), key=lambda block: block.released)
        lists = [[block for block in leaves if self.often[block] is often] for often in (False, True)]
        if lists[0] and (self.count(False) > self.target or not lists[1]):
            return lists[0][0]
        return lists[1][0]

    def evicted(self, block: Item) -> None:
        once, often = self.ghosts[False], self.ghosts[True]
        while once and self.count(False) + len(once) > self.size:
            once.pop(0)
        while often and len(self.often) + len(once) + len(often) > 2 * self.size:
            often.pop(0)
        ghost = self.ghosts[self.often.pop(block)]
        if not block.hidden and block.key not in ghost:
            ghost.append(block.key)
