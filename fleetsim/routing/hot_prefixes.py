"""How long a prefix must be to tell requests apart: short where prompts differ early, long where many begin alike."""

from __future__ import annotations

from collections import deque

from fleetsim.workload.prefixes import Path


class HotPrefix:
    """A prefix that requests of the window have."""

    __slots__ = ("children", "count", "home", "keys", "second", "split")

    def __init__(self, keys: tuple[int, ...]) -> None:
        self.keys = keys
        self.count = 0
        """Requests of the window that begin so."""
        self.split = False
        """Whether it is so frequent that the next block is looked at too."""
        self.children: dict[int, HotPrefix] = {}
        self.home = -1
        """What a router notes about it: two replicas."""
        self.second = -1


class HotPrefixes:
    """Counts of prefixes over the last requests; the key of a request is its shortest prefix that is not too frequent.

    A prefix that more than `extend_share` of the window's requests have is followed by one more block, until fewer than
    `shrink_share` have it. A window that is not full counts as `least_requests` at least.

    Parameters
    ----------
    extend_share, shrink_share : float
        Shares of the window's requests.
    window_requests : int
        Length of the window. ≥ 1.
    least_requests : int
        Fewer requests say nothing about shares.
    max_blocks : int
        Longest key.
    """

    __slots__ = ("_least", "_max_blocks", "_root", "_window", "_window_requests", "extend_share", "shrink_share")

    def __init__(
        self, extend_share: float, shrink_share: float, window_requests: int, least_requests: int, max_blocks: int
    ) -> None:
        self.extend_share = extend_share
        self.shrink_share = shrink_share
        self._least = least_requests
        self._max_blocks = max_blocks
        self._window_requests = window_requests
        self._window: deque[list[HotPrefix]] = deque()
        self._root = HotPrefix(())
        self._root.split = True

    def key(self, path: Path) -> HotPrefix | None:
        """The key of a request now, None where all its blocks are too frequent; counts nothing."""
        node = self._root
        for block in self._blocks(path):
            if not node.split:
                break
            child = node.children.get(block)
            if child is None:
                return HotPrefix((*node.keys, block))
            node = child
        return None if node.split else node

    def count(self, path: Path) -> HotPrefix | None:
        """Count a request and return its key, None where all its blocks are too frequent."""
        node = self._root
        passed: list[HotPrefix] = []
        for block in self._blocks(path):
            child = node.children.get(block)
            if child is None:
                child = node.children[block] = HotPrefix((*node.keys, block))
            child.count += 1
            passed.append(child)
            node = child
        self._window.append(passed)
        if len(self._window) > self._window_requests:
            self._forget(self._window.popleft())
        total = min(max(len(self._window), self._least), self._window_requests)
        extend, shrink = self.extend_share * total, self.shrink_share * total
        for node in passed:
            if node.split:
                node.split = node.count >= shrink
            elif node.count > extend:
                node.split = True
            if not node.split:
                return node
        return None

    def forget_homes(self) -> None:
        """Drop what a router noted, because its replicas changed."""
        stack = [self._root]
        while stack:
            node = stack.pop()
            node.home = node.second = -1
            stack.extend(node.children.values())

    def _blocks(self, path: Path) -> list[int]:
        left = self._max_blocks
        blocks: list[int] = []
        for segment in path:
            blocks.extend(segment[:left])
            left = self._max_blocks - len(blocks)
            if not left:
                break
        return blocks

    def _forget(self, passed: list[HotPrefix]) -> None:
        parent = self._root
        for node in passed:
            node.count -= 1
            if not node.count:
                del parent.children[node.keys[-1]]
                return  # all below it had no other request either
            parent = node
