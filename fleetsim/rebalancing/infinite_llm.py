"""Infinite-LLM: replicas that run out of KV memory borrow some from others, for their longest requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.rebalancing.api import Borrow, Move, Moving, Recall, ReplicaState, RequestState


class InfiniteLlmConfig(PolicyConfig):
    """Parameters of borrowing. The paper publishes no values; all defaults are assumed."""

    period_s: Annotated[float, Field(gt=0, json_schema_extra={"unit": "s"})] = 0.5
    """Time between two heartbeats: replicas report, and loans are planned."""
    grid: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})] = 8
    """Sizes of a loan that are tried: so many equal parts of what could be lent."""
    max_lent_ratio: Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})] = 0.8
    """Part of its KV cache that a replica lends at most."""
    keep_free_ratio: Annotated[float, Field(ge=0, lt=1, json_schema_extra={"unit": "ratio"})] = 0.05
    """Part of its KV cache that a replica keeps free when it lends, for its own requests to grow into."""
    recall: bool = True
    """Whether a replica that runs out of memory itself gets back what it lent, where the debtor has room for it."""
    across_pools: bool = False
    """Whether replicas of other pools lend too; they serve the same LLM, and may be slower or compute prompts only."""
    concurrent: Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})] = 4
    """Loans that are planned for one replica per heartbeat at most."""


@dataclass(slots=True)
class _Ledger:
    """What the manager thinks a replica has, its own plans counted."""

    free_blocks: int
    lent_blocks: int
    batch: int
    read_tokens: int
    waiting: int
    wanted_blocks: float
    """Of the mean request that waits."""
    hosting_s: float = 0.0


class InfiniteLlm:
    """The longest requests of replicas that lack memory lie partly on replicas that have some, so that more requests run.

    Rule: at each heartbeat replicas report. A debtor is one where requests wait and the first of them finds no room; a creditor
    one where none wait, that borrows nothing itself (a loan is never lent on) and that has blocks free beyond `keep_free_ratio`.
    Debtors in order of their batch, smallest first; creditors in order of their free blocks, most first. For a debtor's longest
    decoding request and every size of a grid, the gain is the change of both replicas' predicted tokens per second, ``batch /
    step time``: the debtor's batch grows by the waiting requests that fit into the freed blocks, and its steps wait for attention
    elsewhere if that takes longer than its own; the creditor's steps grow by that attention. The loan with the largest gain is
    asked for, first come, first served at the creditor; then the debtor's next request, until no gain is left. A creditor that
    lacks memory for its own requests recalls its smallest loan.

    What is charged: the oldest blocks travel over the network while the request decodes on; each step sends queries and partial
    results of every layer to and fro, and waits for them and for the creditor's attention where its own attention is over sooner;
    the creditor's steps last longer by that attention; its energy is charged to the request.

    References
    ----------
    B. Lin et al., "Infinite-LLM: Efficient LLM Service for Long Context with DistAttention and Distributed KVCache",
    arXiv:2401.02669. The greedy plan follows the structure that its second version describes; how it predicts is unpublished.
    """

    Config: ClassVar = InfiniteLlmConfig

    def __init__(
        self, config: InfiniteLlmConfig, rng: Generator, replicas: Sequence[ReplicaState], moving: Moving
    ) -> None:
        self.period_s = config.period_s
        self._config = config
        self._replicas = replicas
        self._moving = moving

    def tick(self) -> list[Move]:
        """Recalls, then loans."""
        ledgers = [self._report(replica) for replica in self._replicas]
        moves: list[Move] = []
        short = [self._is_short(replica, ledger) for replica, ledger in zip(self._replicas, ledgers, strict=True)]
        if self._config.recall:
            moves += self._recalls(short, ledgers)
        busy = {loan.request for loan in self._moving.loans() if not loan.began}
        debtors = [i for i, lacks in enumerate(short) if lacks and not self._replicas[i].hosted_blocks]
        for debtor in sorted(debtors, key=lambda i: (ledgers[i].batch, i)):
            moves += self._loans_for(debtor, short, ledgers, busy)
        return moves

    def _report(self, replica: ReplicaState) -> _Ledger:
        waiting = [request.context_tokens for request in replica.waiting()]
        mean_blocks = sum(replica.blocks_of(tokens) for tokens in waiting) / len(waiting) if waiting else 0.0
        return _Ledger(
            replica.free_blocks,
            replica.hosted_blocks,
            replica.decoding_count,
            replica.read_tokens,
            len(waiting),
            mean_blocks,
        )

    def _is_short(self, replica: ReplicaState, ledger: _Ledger) -> bool:
        """Whether the next request finds no room."""
        first = replica.first_waiting()
        return first is not None and replica.blocks_of(first.context_tokens) > ledger.free_blocks

    def _recalls(self, short: Sequence[bool], ledgers: Sequence[_Ledger]) -> list[Move]:
        """The smallest loan of each creditor that is short, where its debtor is not and has room."""
        moves: list[Move] = []
        smallest: dict[int, tuple[int, int, int]] = {}
        for request, source, target, blocks, began in self._moving.loans():
            if began and short[target] and not short[source] and ledgers[source].free_blocks >= blocks:
                smallest[target] = min(smallest.get(target, (blocks, request, source)), (blocks, request, source))
        for target, (blocks, request, source) in smallest.items():
            ledgers[source].free_blocks -= blocks
            moves.append(Recall(request, source, target))
        return moves

    def _loans_for(self, debtor: int, short: Sequence[bool], ledgers: Sequence[_Ledger], busy: set[int]) -> list[Move]:
        """Loans for the requests of a replica, the longest first, until none is worth its cost."""
        requests = [r for r in self._replicas[debtor].running() if r.lendable_blocks > 1 and r.id not in busy]
        requests.sort(key=lambda request: (-request.context_tokens, request.id))
        moves: list[Move] = []
        for request in requests:
            if len(moves) == self._config.concurrent or ledgers[debtor].waiting < 1:
                break
            move = self._best(debtor, request, short, ledgers)
            if move is None:
                break
            moves.append(move)
        return moves

    def _best(
        self, debtor: int, request: RequestState, short: Sequence[bool], ledgers: Sequence[_Ledger]
    ) -> Borrow | None:
        """The loan that gains most for a request; its plan is entered into the ledgers."""
        owed = {loan.target for loan in self._moving.loans() if loan.request == request.id}
        creditors = [i for i in range(len(ledgers)) if self._lends(i, debtor, short) and i not in owed]
        creditors.sort(key=lambda i: (-ledgers[i].free_blocks, i))
        best, gain = None, 0.0
        lendable = request.lendable_blocks - 1
        for creditor in creditors:
            room = min(self._room(creditor, ledgers[creditor]), lendable)
            for part in range(1, self._config.grid + 1):
                blocks = room * part // self._config.grid
                if blocks < 1:
                    continue
                found = self._gain(debtor, creditor, blocks, ledgers)
                if found > gain:
                    best, gain = Borrow(request.id, debtor, creditor, blocks), found
        if best is not None:
            self._enter(best, ledgers)
        return best

    def _lends(self, replica: int, debtor: int, short: Sequence[bool]) -> bool:
        lender = self._replicas[replica]
        if not self._config.across_pools and lender.pool != self._replicas[debtor].pool:
            return False
        return replica != debtor and lender.present and not short[replica] and not lender.borrows

    def _room(self, position: int, ledger: _Ledger) -> int:
        """Blocks that a replica may still lend."""
        config, capacity = self._config, self._replicas[position].capacity_blocks
        kept = int(config.keep_free_ratio * capacity)
        return min(ledger.free_blocks - kept, int(config.max_lent_ratio * capacity) - ledger.lent_blocks)

    def _gain(self, debtor: int, creditor: int, blocks: int, ledgers: Sequence[_Ledger]) -> float:
        """Change of the predicted tokens per second of both."""
        mine, theirs = ledgers[debtor], ledgers[creditor]
        tokens = blocks * self._replicas[debtor].block_tokens
        wire_s, work_s = self._moving.loan_s(debtor, creditor, tokens)
        joining = self._joining(mine, blocks)
        read = mine.read_tokens - tokens + int(joining * mine.wanted_blocks) * self._replicas[debtor].block_tokens
        after_s = max(
            self._moving.step_s(debtor, mine.batch + joining, read),
            self._moving.step_s(debtor, mine.batch + joining, 0) + wire_s + work_s,
        )
        before_s = self._moving.step_s(debtor, mine.batch, mine.read_tokens)
        gained = (mine.batch + joining) / after_s - mine.batch / before_s
        own_s = self._moving.step_s(creditor, theirs.batch, theirs.read_tokens) + theirs.hosting_s
        return gained - (theirs.batch / own_s - theirs.batch / (own_s + work_s))

    def _joining(self, ledger: _Ledger, blocks: int) -> int:
        """Waiting requests that fit into freed blocks and those that were free."""
        if not ledger.wanted_blocks:
            return 0
        return min(ledger.waiting, int((ledger.free_blocks + blocks) / ledger.wanted_blocks))

    def _enter(self, move: Borrow, ledgers: Sequence[_Ledger]) -> None:
        mine, theirs = ledgers[move.source], ledgers[move.target]
        block_tokens = self._replicas[move.source].block_tokens
        joining = self._joining(mine, move.blocks)
        mine.free_blocks += move.blocks - int(joining * mine.wanted_blocks)
        mine.read_tokens += int(joining * mine.wanted_blocks) * block_tokens - move.blocks * block_tokens
        mine.batch += joining
        mine.waiting -= joining
        theirs.free_blocks -= move.blocks
        theirs.lent_blocks += move.blocks
        theirs.hosting_s += self._moving.loan_s(move.source, move.target, move.blocks * block_tokens)[1]
