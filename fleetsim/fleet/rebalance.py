"""Rebalancers at work: asked every period, their moves carried out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fleetsim.engine.replica import Replica
from fleetsim.errors import PolicyError
from fleetsim.fleet.borrowing import terms
from fleetsim.fleet.gateway import Gateway
from fleetsim.kernel.streams import Streams
from fleetsim.rebalancing.api import Borrow, LoanState, Migrate, MoveQueued, Recall, ReplicaState
from fleetsim.scenario.schema import Scenario

if TYPE_CHECKING:
    from fleetsim.fleet.fleet import Fleet


class Rebalancing:
    """A rebalancer and the replicas between which it moves requests: those that serve one LLM with one format of its cache."""

    def __init__(self, replicas: Sequence[Replica], fleet: Fleet) -> None:
        self.replicas = tuple(replicas)
        self.now_s = 0.0
        self._fleet = fleet
        self._gateway: Gateway = fleet.gateway
        self.policy: Any = None
        """Not trusted to keep its Protocol."""

    def migrating(self, position: int) -> int:
        """Migrations under way from or to a replica."""
        return self._gateway.moves.migrating[self.replicas[position].index]

    def step_s(self, position: int, batch: int, tokens: int) -> float:
        """Predicted duration of a decode step of a replica [s]."""
        return self._fleet.pool_of[self.replicas[position].index].decode_time().seconds(batch, tokens)

    def loan_s(self, source: int, target: int, tokens: int) -> tuple[float, float]:
        """What a loan costs each step of its debtor on the way, and each of its creditor [s]."""
        debtor, creditor = self.replicas[source], self.replicas[target]
        cost = terms(self._fleet.network(), self._fleet.pool_of[debtor.index].llm, debtor, creditor, tokens)
        return cost.wire_s, cost.work_s

    def loans(self) -> list[LoanState]:
        """Loans of memory between these replicas."""
        places = {replica.index: position for position, replica in enumerate(self.replicas)}
        return [
            LoanState(
                loan.loan.request.id, places[loan.source.index], places[loan.target.index], loan.loan.blocks, loan.began
            )
            for loan in self._gateway.lending.loans
            if loan.source.index in places and loan.target.index in places
        ]

    def begin(self) -> None:
        """Ask for the first time one period from now."""
        self._fleet.clock.at(self._fleet.clock.now_s + self.policy.period_s, self._tick)

    def _tick(self) -> None:
        fleet, gateway = self._fleet, self._gateway
        if fleet.at_rest or not fleet.goes_on:
            return
        self.now_s = fleet.clock.now_s
        for move in self.policy.tick():
            if isinstance(move, MoveQueued):
                gateway.moves.move_queued(move, self.replicas)
            elif isinstance(move, Migrate):
                gateway.moves.migrate(move, self.replicas)
            elif isinstance(move, Borrow):
                gateway.lending.borrow(move, self.replicas)
            elif isinstance(move, Recall):
                gateway.lending.recall(move, self.replicas)
            else:
                raise PolicyError(f"rebalancer answered {move!r}")
        self.begin()


def state_of(replica: Replica, fleet: Fleet) -> ReplicaState:
    """What a rebalancer sees of a replica."""
    return ReplicaState(replica, fleet.pool_of[replica.index].name)


def rebalancings(scenario: Scenario, streams: Streams, fleet: Fleet) -> list[Rebalancing]:
    """A rebalancer for each LLM (and format of its cache) that the scenario's pools serve; none if it names none."""
    choice = scenario.gateway.rebalancer
    if choice is None:
        return []
    kinds: dict[tuple[str, str], list[Replica]] = {}
    for replica, pool in zip(fleet.replicas, fleet.pool_of, strict=True):
        if pool.config.role != "encode":
            kinds.setdefault((pool.llm.name, pool.config.engine.kv.dtype), []).append(replica)
    found = []
    for (llm, dtype), replicas in kinds.items():
        rebalancing = Rebalancing(replicas, fleet)
        states = [state_of(replica, fleet) for replica in replicas]
        rebalancing.policy = choice.create(streams.get(f"rebalancer.{llm}.{dtype}"), states, rebalancing)
        if not rebalancing.policy.period_s > 0:
            raise PolicyError(f"rebalancer {choice.name} wants to be asked every {rebalancing.policy.period_s} s")
        found.append(rebalancing)
    return found
