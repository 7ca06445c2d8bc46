"""Llumnix: running requests move from where memory runs out to where it is free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Annotated, ClassVar, Literal

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.rebalancing.api import Migrate, Move, MoveQueued, Moving, ReplicaState, RequestState


class LlumnixConfig(PolicyConfig):
    """Parameters of rescheduling by freeness; defaults as in the repository where it has them."""

    period_s: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] = 0.05
    """Time between two looks at the replicas."""
    pairing: Literal["defrag", "balanced"] = "defrag"
    """``defrag``: the replica with the least freeness moves a request to the one with the most, and so on. ``balanced``: only where
    that brings their freeness nearer to each other without making the target a source."""
    out_below: Annotated[float, Field(json_schema_extra={"unit": "blocks"})] = 3.0
    """A replica with less freeness than this is a source; so is one that preempted a request since the last look."""
    in_above: Annotated[float, Field(json_schema_extra={"unit": "blocks"})] = 3.0
    """A replica with more freeness than this is a target."""
    choice: Literal["SR", "LR", "LCR", "FCW", "FCWSR"] = "SR"
    """Which request moves, of those of the lowest priority: the shortest (SR), the longest (LR) or the last admitted (LCR) that
    decodes, the first that waits (FCW), or that and if none waits the shortest (FCWSR)."""
    concurrent: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})] = 1
    """Migrations at a time from or to one replica."""
    headroom_ratio: Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.0
    """Part of the KV cache that counts as used on a replica that runs requests of a priority above 0: others move away from
    them and are not sent there."""


class Llumnix:
    """Replicas that run out of KV memory migrate running requests to those that have most.

    Rule: each period, ``freeness = (capacity - used - demand - headroom) / requests`` of every replica in blocks per request,
    where `demand` is what the first waiting request will take (others count for nothing), `requests` are the running ones and
    that one, and `headroom` is kept for requests of a priority above 0. A replica without requests is infinitely free. Sources
    are below `out_below` or have just preempted a request, targets above `in_above` and have not; the source with the least is
    paired with the target with the most, the second with the second, and so on. Each source moves one request (`choice`), of
    low priority first, if the target has room for it. Urgent ones do not move because of the room that is kept for them.

    What is charged: the keys and values travel over the network while the request goes on decoding, in up to three stages; it
    pauses for the last 16 blocks. The target keeps blocks for it from the start.

    References
    ----------
    B. Sun et al., "Llumnix: Dynamic Scheduling for Large Language Model Serving", OSDI 2024, arXiv:2406.03243; names and
    defaults as in the repository AlibabaPAI/llumnix (migration policy, ``migrate_out_threshold``, request migration policy).
    """

    Config: ClassVar = LlumnixConfig

    def __init__(self, config: LlumnixConfig, rng: Generator, replicas: Sequence[ReplicaState], moving: Moving) -> None:
        self.period_s = config.period_s
        self._config = config
        self._replicas = replicas
        self._moving = moving
        self._preemptions = [0] * len(replicas)

    def tick(self) -> list[Move]:
        """At most one move for each pair of replicas."""
        config = self._config
        sources: list[tuple[float, int]] = []
        targets: list[tuple[float, int]] = []
        for position, replica in enumerate(self._replicas):
            before, self._preemptions[position] = self._preemptions[position], replica.preemptions
            preempted = self._preemptions[position] > before
            if self._moving.migrating(position) >= config.concurrent:
                continue
            if not replica.present:  # it is to be emptied, or has nothing
                if replica.running_count or replica.waiting_count:
                    sources.append((-inf, position))
                continue
            freeness = self.freeness(replica)
            if freeness < config.out_below or preempted:
                sources.append((freeness, position))
            elif freeness > config.in_above:
                targets.append((-freeness, position))
        moves: list[Move] = []
        for (_, source), (_, target) in zip(sorted(sources), sorted(targets), strict=False):
            move = self._move(source, target)
            if move is not None:
                moves.append(move)
        return moves

    def freeness(self, replica: ReplicaState, blocks: int = 0, requests: int = 0) -> float:
        """Free blocks per request, if the replica had `blocks` and `requests` more [blocks]."""
        demand = 0
        count = replica.running_count + requests
        first = replica.first_waiting()
        if first is not None:
            demand = replica.blocks_of(first.context_tokens)
            count += 1
        if not count:
            return inf
        room = replica.capacity_blocks - replica.used_blocks - blocks - demand
        if self._config.headroom_ratio and any(request.priority > 0 for request in replica.running()):
            return (room - self._config.headroom_ratio * replica.capacity_blocks) / count
        return room / count

    def _move(self, source: int, target: int) -> Move | None:
        giver, taker = self._replicas[source], self._replicas[target]
        request = self._chosen(giver)
        if request is None:
            return None
        if request.priority > 0 and self._config.headroom_ratio and not self._is_short(giver):
            return None  # it is not to be driven away by the room that is kept for it
        blocks = giver.blocks_of(request.context_tokens)
        if blocks + 1 > taker.capacity_blocks - taker.used_blocks:
            return None
        if self._config.pairing == "balanced":
            after = self.freeness(taker, blocks, 1)
            left = self.freeness(giver, -blocks, -1)
            before = self.freeness(taker) - self.freeness(giver)
            if after < self._config.out_below or not abs(after - left) < before:
                return None
        if request.decoding:
            return Migrate(request.id, source, target)
        return MoveQueued(request.id, source, target)

    def _is_short(self, replica: ReplicaState) -> bool:
        """Whether a replica lacks memory, whatever is kept for urgent requests."""
        kept = self._config.headroom_ratio * replica.capacity_blocks
        count = replica.running_count + (replica.waiting_count > 0)
        return self.freeness(replica) + kept / count < self._config.out_below

    def _chosen(self, replica: ReplicaState) -> RequestState | None:
        choice = self._config.choice
        if choice.startswith("FCW"):
            first = replica.first_waiting()
            if first is not None or choice == "FCW":
                return first
        decoding = [request for request in replica.running() if request.decoding]
        if not decoding:
            return None
        if choice == "LCR":
            decoding.reverse()  # min finds the first of equals
        return min(decoding, key=_LENGTHS[choice])


_LENGTHS: dict[str, Callable[[RequestState], tuple[int, int]]] = {
    "SR": lambda request: (request.priority, request.context_tokens),
    "FCWSR": lambda request: (request.priority, request.context_tokens),
    "LR": lambda request: (request.priority, -request.context_tokens),
    "LCR": lambda request: (request.priority, 0),
}
