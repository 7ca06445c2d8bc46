"""Loans of memory between replicas: who owes what to whom."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from fleetsim.engine.replica import Replica
from fleetsim.errors import PolicyError
from fleetsim.fleet.borrowing import Ahead, Borrowing, Place
from fleetsim.routing.api import Borrow, Recall, Route
from fleetsim.workload.request import Request

if TYPE_CHECKING:
    from fleetsim.fleet.gateway import Gateway
    from fleetsim.fleet.sides import Group, Side

_GONE: Any = object()


class Lending:
    """Arranges loans for decoding requests, and ahead for prompts that are longer than a replica.

    A replica is debtor or creditor, never both, so that none waits for the other.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.loans: dict[Place, None] = {}
        """Loans of memory that have been asked for and are not over."""
        self.loans_begun = [0] * len(gateway.replicas)
        """Loans at each replica, as the one that lends, that began."""
        self.loans_given_up = [0] * len(gateway.replicas)
        """Those that did not."""
        self.loans_recalled = [0] * len(gateway.replicas)
        """Those that ended because the blocks were brought back."""
        self.lent_bytes = 0.0
        """Keys and values copied for loans and recalls."""

    def of(self, request: Request) -> list[Place]:
        """Loans of a request that have been asked for and are not over."""
        return [loan for loan in self.loans if loan.loan.request is request] if self.loans else []

    def borrow(self, move: Borrow, replicas: Sequence[Replica]) -> None:
        """Begin to lend memory to a decoding request; nothing, if it does not decode any more, moves, or has blocks there."""
        request = self._gateway.moves.movable(move, replicas)
        if type(move.blocks) is not int or move.blocks < 1:
            raise PolicyError(f"cannot do {move!r}: blocks must be 1 or more")
        if request is None or request in self._gateway.moves.under_way or request in self._gateway.patience.twins:
            return
        source, target = replicas[move.source], replicas[move.target]
        if self._lends_on(source, [target]) or not target.present:
            return
        if source.stops is not None or target.stops is not None or source.batches[0].compression is not None:
            return
        if any(loan.target is target or not loan.began for loan in self.of(request)):
            return
        if not source.is_decoding(request, request.rank):
            return
        pool = self._gateway.pools[source.index]
        loan = Borrowing(
            self._gateway.network(),
            pool.llm,
            request,
            source,
            target,
            move.blocks,
            pool.kv_bytes_per_token,
            self._over,
        )
        self.loans[loan] = None
        loan.begin()

    def counts(self) -> tuple[int, int]:
        """Loans that began, and those of them whose blocks were brought back before their request was over."""
        return sum(self.loans_begun) + sum(loan.began for loan in self.loans), sum(self.loans_recalled)

    def recall(self, move: Recall, replicas: Sequence[Replica]) -> None:
        """Begin to bring lent blocks back; nothing, if there are none."""
        request = self._gateway.moves.movable(move, replicas)
        if request is None:
            return
        target = replicas[move.target]
        for loan in self.of(request):
            if loan.target is target:
                loan.recall()

    def borrow_ahead(self, group: Group, request: Request, replica: Replica, route: Route, ready_s: float) -> None:
        """Ask for room on other replicas, and send a request once all of them have it; ask the router again if one has not."""
        pool, network = self._gateway.pools[replica.index], self._gateway.network()
        targets = [group.entry.replicas[position] for position, _ in route.borrow]
        self._gateway.outside[request] = None
        if self._lends_on(replica, targets):
            self._gateway.clock.at(
                self._gateway.clock.now_s + route.borrow_again_s, partial(self._route_later, group, request)
            )
            return
        places = [
            Ahead(network, pool.llm, request, replica, target, blocks, pool.kv_bytes_per_token, self._over)
            for target, (_, blocks) in zip(targets, route.borrow, strict=True)
        ]
        request.content = None
        answers: list[bool] = []

        def answered(yes: bool) -> None:
            answers.append(yes)
            if len(answers) == len(places):
                self._lent_ahead(group, request, replica, route, ready_s, places)

        for place in places:
            self.loans[place] = None
        for place in places:
            place.reserve(answered)

    def _lent_ahead(
        self,
        group: Group,
        request: Request,
        replica: Replica,
        route: Route,
        ready_s: float,
        places: Sequence[Ahead],
    ) -> None:
        """All creditors have answered."""
        now_s = self._gateway.clock.now_s
        there = replica.present and all(place.target.present for place in places)
        if there and all(place.began for place in places) and self._gateway.outside.pop(request, _GONE) is not _GONE:
            request.lenders = tuple(place.loan for place in places)
            request.remote_blocks = sum([place.loan.blocks for place in places])
            self._gateway.forward(request, replica, max(now_s, ready_s))
            return
        for place in places:
            if place.began:
                place.end()
            else:
                self._over(place)
        if request in self._gateway.outside:
            self._gateway.clock.at(now_s + route.borrow_again_s, partial(self._route_later, group, request))

    def side_of(self, replica: Replica) -> int:
        """1 for a creditor, -1 for a debtor, else 0."""
        for loan in self.loans:
            if loan.target is replica:
                return 1
            if loan.source is replica:
                return -1
        return 0

    def _lends_on(self, source: Replica, targets: Sequence[Replica]) -> bool:
        """Whether a loan would make a replica debtor and creditor at once: they could wait for each other's room for ever."""
        return any(loan.target is source or loan.source in targets for loan in self.loans)

    def _route_later(self, group: Group, request: Request) -> None:
        if self._gateway.outside.pop(request, _GONE) is not _GONE:
            self._gateway.route(group, request)

    def can_borrow(self, side: Side, position: int, route: Route) -> bool:
        """Whether the engines of a debtor and its creditors can work over each other's memory.

        Raises
        ------
        PolicyError
            If the route names replicas that there are not.
        """
        for creditor, blocks in route.borrow:
            if not 0 <= creditor < len(side.replicas) or creditor == position or type(blocks) is not int or blocks < 1:
                raise PolicyError(f"router borrows {blocks!r} blocks of replica {creditor!r} for replica {position}")
        if not inf > route.borrow_again_s > 0.0 or len({creditor for creditor, _ in route.borrow}) < len(route.borrow):
            raise PolicyError(f"router answered {route!r}")
        engines = [side.replicas[place] for place in (position, *(creditor for creditor, _ in route.borrow))]
        compressed = engines[0].batches[0].compression is not None
        sizes = {replica.batches[0].block_tokens for replica in engines}
        return not compressed and len(sizes) == 1 and all(replica.stops is None for replica in engines)

    def _over(self, loan: Place) -> None:
        del self.loans[loan]
        index = loan.target.index
        self.lent_bytes += loan.bytes
        if not loan.began:
            self.loans_given_up[index] += 1
            return
        self.loans_begun[index] += 1
        self.loans_recalled[index] += loan.recalled
