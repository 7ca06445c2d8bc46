"""DualMap: two candidates per prefix, found by two hashes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from math import sqrt
from typing import Annotated, ClassVar

from mypy_extensions import mypyc_attr
from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.routing.api import FleetView, MoveQueued, RequestView, Route
from fleetsim.routing.hash_ring import HashRing
from fleetsim.routing.hot_prefixes import HotPrefixes

_LOOK_S = 0.0022
"""What looking through a queue takes [s]."""
_REMEMBERED = 1 << 16
"""Requests whose candidates are remembered for a rebalancer, latest ones."""


class DualmapConfig(PolicyConfig):
    """Parameters of DualMap; the published ones where they are published."""

    slo_s: "Annotated[float, Field(gt=0, json_schema_extra={'unit': 's'})]" = 5.0
    """Time to the first token within which a replica must clear its pending prompts, or it counts as overloaded."""
    block_tokens: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'tokens'})]" = 512
    """Tokens per block of keys."""
    extend_over: "Annotated[float, Field(gt=0, json_schema_extra={'unit': 'ratio'})]" = 2.0
    """A key gets one block longer where its share of the window's requests exceeds this divided by the number of replicas, …"""
    shrink_under: "Annotated[float, Field(ge=0, json_schema_extra={'unit': 'ratio'})]" = 1.0
    """… and shorter again where the share falls below this divided by that number."""
    window_requests: "Annotated[int, Field(ge=0, strict=True, json_schema_extra={'unit': 'requests'})]" = 0
    """Requests of the window (not published). 0: ten per replica, at least 300."""
    max_key_blocks: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'blocks'})]" = 64
    """Longest key."""
    virtual_nodes: "Annotated[int, Field(ge=1, strict=True, json_schema_extra={'unit': 'count'})]" = 64
    """Places of each replica on each ring. 1: one, as the paper draws it, with arcs of very different lengths."""
    stall_s: "Annotated[float, Field(gt=0, json_schema_extra={'unit': 's'})]" = 3.0
    """A replica with pending prompts that has not finished one for longer than this counts as overloaded."""
    rebalance: bool = True
    """Move waiting requests to their other candidate where both candidates of a new one are overloaded."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Dualmap:
    """Two replicas for each prefix by two hashes; the one that has the prefix, unless its queue breaks the objective.

    Rule: the key of a request is a prefix of its prompt whose length adapts: one block more where more than ``extend_over / n``
    of the last requests share it, one less where fewer than ``shrink_under / n`` do. Two hash rings map it to two candidates. If
    both have cached equally much of the prompt, the one with less pending prompt work gets it; else the one with more cached,
    unless that is overloaded: then the other one, or if that is overloaded too the one with the least predicted time to the first
    token. A replica is overloaded that has more pending prompt tokens than it clears within `slo_s`, or has not finished a prompt
    for `stall_s`; the time since then is added to its prediction. On chips of different speed pending work is compared in parts
    of what each clears within `slo_s`.

    Where both candidates are overloaded, the queue of the one chosen is looked through: of the requests there that would have their
    first token earlier at their own other candidate, and within `slo_s`, those that gain most move, until the rest keeps `slo_s`.
    Nothing is copied; they pay for their cache misses there. Replicas that come and go are told by `insert` and `remove`.

    What is charged: 0.6 ms per decision and 2.2 ms per look through a queue, as measured by the authors. Only the two candidates'
    telemetry is read.

    References
    ----------
    "DualMap: Enabling Both Cache Affinity and Load Balancing for Distributed LLM Serving", ICLR 2026, arXiv:2602.06502.
    """

    Config: ClassVar = DualmapConfig
    decision_s: ClassVar[float] = 0.0006

    def __init__(self, config: DualmapConfig, rng: Generator, fleet: FleetView) -> None:
        self._config = config
        self._fleet = fleet
        self.moves = config.rebalance
        """Whether its answers may hold moves."""
        self._board = fleet.watch_load(scan=False)
        fleet.watch_caches(holders=False)
        self._first = HashRing("first", config.virtual_nodes)
        self._second = HashRing("second", config.virtual_nodes)
        self._members: set[int] = set()
        count = fleet.count
        window = config.window_requests or max(300, 10 * count)
        self._hot = HotPrefixes(1.0, 1.0, window, min(4 * count, window), config.max_key_blocks)
        self._clears = [0.0] * count
        """Prompt tokens that each replica clears within the objective; 0: not computed yet."""
        self._idle_s = [fleet.now_s] * count
        """When each replica was last seen without pending prompts."""
        self._candidates: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._begun = fleet.watch_begun() if config.rebalance else []
        self._waiting: list[dict[int, RequestView]] = [{} for _ in range(count)]
        """Requests sent to each replica that have no first token yet, in order, by id."""
        self._sent_to: dict[int, int] = {}
        self._members.update(range(count))
        self._known: list[int] = []
        """Replicas that were there when that was last looked at."""
        self._first.fill(range(count))
        self._second.fill(range(count))
        self._set_shares()

    def route(self, request: RequestView) -> int | Route:
        """Choose a replica, and move others where both candidates are overloaded."""
        if self._fleet.members is not self._known:
            self._follow()
        first, second = self._pair(request)
        candidates = self._candidates
        candidates[request.id] = (first, second)
        if len(candidates) > _REMEMBERED:
            candidates.popitem(last=False)
        chosen = first if first == second else self._better(request, first, second)
        self._board.look(chosen)
        if not self._board.pending_tokens[chosen]:
            self._idle_s[chosen] = self._fleet.now_s
        if not self._config.rebalance:
            return chosen
        self._forget_begun()
        moves: tuple[MoveQueued, ...] | None = None
        if first != second and self.overloaded(first) and self.overloaded(second):
            moves = self._relieve(chosen)
        self._waiting[chosen][request.id] = request.kept()
        self._sent_to[request.id] = chosen
        return chosen if moves is None else Route(chosen, prepare_s=_LOOK_S, moves=moves)

    # --- for rebalancers ----------------------------------------------------------------------------------------------

    def candidates(self, request: RequestView) -> tuple[int, int]:
        """The two replicas of a request (equal if there is only one): those of its routing, or those it would have now."""
        known = self._candidates.get(request.id)
        if known is not None:
            return known
        node = self._hot.key(request.prefix(self._config.block_tokens))
        return self._replicas_of(f"request/{request.id}" if node is None else str(node.keys))

    def benefit_s(self, request: RequestView, source: int, target: int) -> float:
        """How much earlier the first token of a request is to be expected at `target` than at `source` [s]."""
        return self.ttft_s(request, source) - self.ttft_s(request, target)

    def ttft_s(self, request: RequestView, position: int) -> float:
        """Predicted time to the first token, a stall that lasts added [s]."""
        fleet = self._fleet
        hit = fleet.hit_tokens(position, request)
        return fleet.ttft_s(position, request.prompt_tokens, hit) + self._stall_s(position)

    def overloaded(self, position: int) -> bool:
        """Whether a replica has more pending prompt tokens than it clears within the objective, or has stalled."""
        self._board.look(position)
        pending: float = self._board.pending_tokens[position]
        return pending > self.clears_tokens(position) or self._stall_s(position) > 0.0

    def clears_tokens(self, position: int) -> float:
        """Prompt tokens that a replica clears within the objective, computed in one go [tokens]."""
        tokens = self._clears[position]
        if not tokens:
            base_s, token_s, pair_s = self._fleet.prefill_terms_of(position)
            left_s = max(self._config.slo_s - base_s, 0.0)
            linear = token_s + 0.5 * pair_s
            # the root of pair_s / 2 n^2 + linear n = left_s in a form that also holds for pair_s = 0
            tokens = 2.0 * left_s / (linear + sqrt(linear * linear + 2.0 * pair_s * left_s))
            tokens = self._clears[position] = max(tokens, 1.0)
        return tokens

    def insert(self, position: int) -> None:
        """Let a replica take part from now on; keys of adjacent arcs move to it, with no eager copy of anything."""
        if position not in self._members:
            self._members.add(position)
            self._first.insert(position)
            self._second.insert(position)
            self._set_shares()

    def remove(self, position: int) -> None:
        """Give a replica no further requests.

        Raises
        ------
        ValueError
            If it is the only one.
        """
        if self._members == {position}:
            raise ValueError("the last replica cannot leave the rings")
        if position in self._members:
            self._members.discard(position)
            self._first.remove(position)
            self._second.remove(position)
            self._candidates.clear()
            self._set_shares()

    def _follow(self) -> None:
        """Let those that are there take part, and nobody else."""
        self._known = self._fleet.members
        for position in self._known:
            self.insert(position)
        for position in sorted(self._members.difference(self._known)) if self._known else ():
            self.remove(position)

    def explain(self, request: RequestView) -> Mapping[int, Mapping[str, float]]:
        """What is known of the two candidates."""
        fleet = self._fleet
        return {
            i: {
                "hit_tokens": float(fleet.hit_tokens(i, request)),
                "pending_tokens": self._board.pending_tokens[i],
                "clears_tokens": self.clears_tokens(i),
                "ttft_s": self.ttft_s(request, i),
                "overloaded": float(self.overloaded(i)),
            }
            for i in sorted(set(self.candidates(request)))
        }

    # --- inside -------------------------------------------------------------------------------------------------------

    def _pair(self, request: RequestView) -> tuple[int, int]:
        node = self._hot.count(request.prefix(self._config.block_tokens))
        if node is None:  # what others have too is all there is: nothing to be near to
            return self._replicas_of(f"request/{request.id}")
        if node.home < 0:
            node.home, node.second = self._replicas_of(str(node.keys))
        return node.home, node.second

    def _replicas_of(self, key: str) -> tuple[int, int]:
        first = self._first.owner(key)
        second = self._second.owner(key)
        return first, second if second != first else self._second.owner(key, first)

    def _better(self, request: RequestView, first: int, second: int) -> int:
        fleet, board = self._fleet, self._board
        hit_first, hit_second = fleet.hit_tokens(first, request), fleet.hit_tokens(second, request)
        if hit_first == hit_second:
            board.look(first)
            board.look(second)
            share_first: float = board.pending_tokens[first] / self.clears_tokens(first)
            share_second: float = board.pending_tokens[second] / self.clears_tokens(second)
            return second if share_second < share_first else first
        near, far = (first, second) if hit_first > hit_second else (second, first)
        if not self.overloaded(near):
            return near
        if not self.overloaded(far):
            return far
        return near if self.ttft_s(request, near) <= self.ttft_s(request, far) else far

    def _forget_begun(self) -> None:
        """Drop those that wait no more."""
        for request_id in self._begun:
            position = self._sent_to.pop(request_id, -1)
            if position >= 0:
                self._waiting[position].pop(request_id, None)
        self._begun.clear()

    def _relieve(self, source: int) -> tuple[MoveQueued, ...]:
        """Which of the requests that wait at an overloaded replica move to their other candidate."""
        fleet, queue = self._fleet, self._waiting[source]
        gains: list[tuple[float, int, int, int]] = []
        ahead = 0
        for request_id, request in queue.items():
            tokens = request.prompt_tokens - fleet.hit_tokens(source, request)
            here_s = fleet.prefill_s(source, ahead + tokens, 0)
            ahead += tokens
            first, second = self.candidates(request)
            target = second if first == source else first
            if target == source:
                continue
            there_s = self.ttft_s(request, target)
            waited_s = fleet.now_s - request.arrival_s
            if there_s < here_s and waited_s + there_s < self._config.slo_s:
                gains.append((there_s - here_s, request_id, target, tokens))
        moves = []
        limit = self.clears_tokens(source)
        for _, request_id, target, tokens in sorted(gains):
            if ahead <= limit:
                break
            ahead -= tokens
            moves.append(MoveQueued(request_id, source, target))
            self._waiting[target][request_id] = queue.pop(request_id)
            self._sent_to[request_id] = target
        return tuple(moves)

    def _stall_s(self, position: int) -> float:
        """How long a replica with pending prompts has not finished one, if that is too long [s]."""
        now_s = self._fleet.now_s
        self._board.look(position)
        if not self._board.pending_tokens[position]:
            self._idle_s[position] = now_s
            return 0.0
        since_s: float = max(self._board.last_prefill_s[position], self._idle_s[position])
        return now_s - since_s if now_s - since_s > self._config.stall_s else 0.0

    def _set_shares(self) -> None:
        self._hot.extend_share = self._config.extend_over / len(self._members)
        self._hot.shrink_share = self._config.shrink_under / len(self._members)
        self._hot.forget_homes()
