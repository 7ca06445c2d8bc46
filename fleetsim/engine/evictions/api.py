"""What an eviction policy answers, and what it sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fleetsim.engine.api import StepTimeModel
from fleetsim.engine.prefix_cache import Node
from fleetsim.workload.prefixes import Segment
from fleetsim.workload.request import Request


class User:
    """What an engine knows of the request that publishes or uses blocks."""

    __slots__ = ("_request",)

    def __init__(self) -> None:
        self._request: Request | None = None

    @property
    def klass(self) -> str | None:
        """Service class, if the workload says."""
        return None if self._request is None else self._request.klass

    @property
    def tenant(self) -> str | None:
        """Who pays, if the workload says."""
        return None if self._request is None else self._request.tenant

    @property
    def session(self) -> int:
        """Conversation; -1 if none."""
        return -1 if self._request is None else self._request.session

    @property
    def priority(self) -> int:
        """Higher is more urgent."""
        return 0 if self._request is None else self._request.priority

    @property
    def prompt_tokens(self) -> int:
        """Prompt length; 0 where there is no request."""
        return 0 if self._request is None else self._request.prompt_tokens


class CacheView:
    """What a policy may know of the cache that it serves, beside the runs that it is told of.

    Parameters
    ----------
    capacity_blocks : int
        Blocks of the cache.
    block_tokens : int
        Tokens per block.
    now : callable
        The time [s].
    token_s : float
        Time to compute a prompt token again, its attention left out [s].
    pair_s : float
        Time to score one (query, key) pair again [s].
    """

    __slots__ = ("_now", "block_tokens", "capacity_blocks", "pair_s", "token_s", "user")

    def __init__(
        self,
        capacity_blocks: int,
        block_tokens: int,
        now: Callable[[], float],
        token_s: float = 1.0,
        pair_s: float = 0.0,
    ) -> None:
        self.capacity_blocks = capacity_blocks
        self.block_tokens = block_tokens
        self.token_s = token_s
        self.pair_s = pair_s
        self.user = User()
        """Who publishes or uses at this moment."""
        self._now = now

    @property
    def now_s(self) -> float:
        """The time [s]."""
        return self._now()

    def recompute_s(self, before_blocks: int) -> float:
        """Time to compute one block again that stands behind `before_blocks` others [s]."""
        tokens = self.block_tokens
        return tokens * (self.token_s + self.pair_s * (before_blocks * tokens + (tokens + 1) / 2))


_CHUNK = 2048
"""Tokens of the prompt chunks from which the cost of computing again is taken."""
_DEPTH = 32_768
"""Tokens before one of them."""


def prefill_cost(model: StepTimeModel) -> tuple[float, float]:
    """Time that a prompt token costs, its attention left out [s], and that a (query, key) pair costs [s].

    From two steps with one prompt chunk each, at the start of a prompt and deep in it.
    """
    pairs = _CHUNK * (_CHUNK + 1) // 2
    near_s, _ = model.mixed(_CHUNK, 1, pairs, _CHUNK, 1, 0, 0, _CHUNK)
    far_s, _ = model.mixed(_CHUNK, 1, pairs + _CHUNK * _DEPTH, _CHUNK + _DEPTH, 1, 0, 0, _CHUNK)
    pair_s = max(far_s - near_s, 0.0) / (_CHUNK * _DEPTH)
    return max(near_s - pairs * pair_s, 0.0) / _CHUNK, pair_s


class Eviction(Protocol):
    """Chooses the run of cached blocks whose tail goes when room is needed.

    Built as ``Policy(config, rng, view)``, one for each rank's cache. A run (`fleetsim.engine.prefix_cache.Node`) is a row of
    blocks with one history; it has `length`, `users`, `children`, `parent`, `keys`, and `state` for the policy's own notes, which
    is all that a policy may change. It may go where it has neither users nor children; its last block goes first.

    Most policies need no more than the order in which such runs go: see `leaves.Leaves`, which asks for a `rank`.
    """

    expires: bool
    """Whether `expired` is to be asked."""

    def begin_alike(self, parent: Node, keys: Segment, first: int, last: int) -> int:
        """How many of the new blocks ``keys[first:last]`` behind `parent`, from the first on, begin with the same notes; ≥ 1."""
        ...

    def published(self, run: Node) -> None:
        """A request has computed these blocks and uses them (or leaves them: then nobody can find them, and `keys` is empty)."""
        ...

    def used(self, run: Node) -> None:
        """One more request found these blocks and uses them."""
        ...

    def released(self, run: Node) -> None:
        """Nobody uses these blocks any more. Of a request's runs, the last one comes first."""
        ...

    def cut(self, upper: Node, lower: Node) -> None:
        """`lower` has given its first blocks to `upper`, which needs the same notes."""
        ...

    def alike(self, upper: Node, lower: Node) -> bool:
        """Whether two runs in a row, both in use, may become one (with the notes of `lower`)."""
        ...

    def victim(self, blocks: int) -> tuple[Node, int]:
        """The run to trim, without users and children, and how many of its last blocks may go before the next question.

        `blocks` are needed; a cached block that may go exists.
        """
        ...

    def evicting(self, run: Node, blocks: int) -> None:
        """The last `blocks` blocks of a run are about to go."""
        ...

    def exposed(self, run: Node) -> None:
        """The last run behind this one, which nobody uses, has gone."""
        ...

    def expired(self) -> Node | None:
        """A run without users and children that must not be found any more, if there is one."""
        ...
