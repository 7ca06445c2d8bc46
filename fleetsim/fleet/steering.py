"""The autoscaler of all pools at work."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from fleetsim.elasticity.api import Convert, FleetState, Held, ReplicaState, Scale, Seat, Way
from fleetsim.engine.replica import Replica
from fleetsim.errors import PolicyError
from fleetsim.fleet.conversions import way_s
from fleetsim.kernel.streams import Streams
from fleetsim.plugins import Choice
from fleetsim.scenario import schema

if TYPE_CHECKING:
    from fleetsim.fleet.fleet import Fleet
    from fleetsim.fleet.lifecycle import Lifecycle, Scaling
    from fleetsim.fleet.pool import Pool


class Steering:
    """Shows a fleet's autoscaler all pools, and does what it answers."""

    def __init__(
        self, lifecycle: Lifecycle, fleet: Fleet, streams: Streams, choice: Choice, pools: Sequence[Scaling]
    ) -> None:
        self._lifecycle = lifecycle
        self._fleet = fleet
        self.pools = pools
        """What is seen of each."""
        slo = fleet.slo
        limits = {} if slo is None else slo.classes
        self.state = FleetState(
            {pool.name: scaling.state for pool, scaling in zip(fleet.pools, self.pools, strict=True)},
            {pool.name: [] for pool in fleet.pools},
            {pair: self._way(way) for pair, way in lifecycle.conversions.ways.items()},
            {
                name: (inf if each.ttft is None else each.ttft, inf if each.tpot is None else each.tpot)
                for name, each in limits.items()
            },
        )
        for pool, scaling in zip(fleet.pools, self.pools, strict=True):
            scaling.state.wanted = lifecycle.wanted[pool.index]
        self._seats = [scaling.state.max_seqs for scaling in self.pools for _ in scaling.pool.replicas]
        self._own_schedulers: set[int] = set()
        """Replicas whose scheduler is not that of their pool any more."""
        self._done = [(0.0, 0, 0)] * len(fleet.replicas)
        self._last_s = 0.0
        self.use(choice.create(streams.get("autoscaler"), self.state))

    def use(self, policy: Any) -> None:
        """Ask this policy from now on.

        Raises
        ------
        PolicyError
            If its period is no time.
        """
        period_s = policy.period_s
        if not (isinstance(period_s, float | int) and 0.0 < period_s < inf):
            raise PolicyError(f"autoscaler {type(policy).__name__} wants to be asked every {period_s!r} s")
        self._policy, self._period_s = policy, float(period_s)

    def begin(self) -> None:
        """Ask for the first time one period from now."""
        self._fleet.clock.at(self._fleet.clock.now_s + self._period_s, self._tick)

    def _tick(self) -> None:
        fleet = self._fleet
        if not fleet.goes_on:
            return
        self._observe()
        answer = self._policy.tick()
        if not isinstance(answer, Sequence):
            raise PolicyError(f"the autoscaler of the fleet answered {answer!r}: expected a list of actions")
        for action in answer:
            if isinstance(action, Scale):
                self._scale(action)
            elif isinstance(action, Convert):
                self._convert(action)
            elif isinstance(action, Seat):
                self._seat(action)
            else:
                raise PolicyError(f"the autoscaler of the fleet answered {action!r}")
        self.begin()

    # --- what it sees --------------------------------------------------------------------------------------------------

    def _way(self, way: schema.Conversion) -> Way:
        return Way(way.source, way.target, way_s(self._fleet, way), way.requests == "hand-over")

    def _observe(self) -> None:
        """Bring the state up to date."""
        state, fleet = self.state, self._fleet
        state.now_s = now_s = fleet.clock.now_s
        state.elapsed_s, self._last_s = now_s - self._last_s, now_s
        replicas: dict[str, Sequence[ReplicaState]] = {}
        for scaling in self.pools:
            scaling.observe()
            pool = scaling.pool
            pairs = zip(pool.replicas, pool.lives, strict=True)
            replicas[pool.name] = [self._shown(r, str(life.state), now_s) for r, life in pairs if life.state != "off"]
        state.replicas = replicas
        outside = [*fleet.gateway.presence.waiting_room, *fleet.gateway.holding.requests()]
        outside.sort(key=lambda request: (request.arrival_s, request.id))
        state.held = [Held(r.klass, r.arrival_s, r.deadline_s, r.prompt_tokens) for r in outside]
        for (source, target), way in state.ways.items():
            way.under_way = self._lifecycle.conversions.under_way(source, target)

    def _shown(self, replica: Replica, state: str, now_s: float) -> ReplicaState:
        meter = replica.meter(now_s)
        busy_s, steps, tokens = self._done[replica.index]
        self._done[replica.index] = meter.busy_s, meter.steps, meter.output_tokens
        classes = self._fleet.gateway.classes
        assert classes is not None
        return ReplicaState(
            replica.index,
            state,
            sum([len(batch.running) for batch in replica.batches]),
            sum([len(batch.waiting) for batch in replica.batches]) + len(replica.inbox) + len(replica.held),
            self._seats[replica.index],
            {klass: count for klass, count in classes[replica.index].items() if count},
            meter.busy_s - busy_s,
            meter.steps - steps,
            meter.output_tokens - tokens,
        )

    # --- what it answers -----------------------------------------------------------------------------------------------

    def _pool(self, name: str) -> Pool:
        pool = self._lifecycle.conversions.pools.get(name)
        if pool is None:
            raise PolicyError(f'the autoscaler of the fleet names a pool "{name}", which there is not')
        return pool

    def _scale(self, action: Scale) -> None:
        pool, lifecycle = self._pool(action.pool), self._lifecycle
        if type(action.replicas) is not int:
            raise PolicyError(f"the autoscaler of the fleet wants {action.replicas!r} replicas of {pool.name}")
        wanted = self.pools[pool.index].state.clip(action.replicas)
        if wanted != lifecycle.wanted[pool.index]:
            lifecycle.events.append((self._fleet.clock.now_s, "replicas_wanted", pool.name, -1, wanted))
        lifecycle.want(pool, wanted)

    def _convert(self, action: Convert) -> None:
        if (action.source, action.target) not in self._lifecycle.conversions.ways:
            raise PolicyError(
                f"the autoscaler of the fleet turns {action.source} into {action.target}, "
                "for which the scenario has no conversion"
            )
        self._lifecycle.conversions.begin(action.source, action.target, action.replicas)

    def _seat(self, action: Seat) -> None:
        """Let as many requests run at a time on a replica's ranks as the policy says, from the next step on."""
        fleet, index, seats = self._fleet, action.replica, action.max_seqs
        if not (type(index) is int and 0 <= index < len(fleet.replicas)):
            raise PolicyError(f"the autoscaler of the fleet names replica {index!r}; there are {len(fleet.replicas)}")
        replica, pool = fleet.replicas[index], fleet.pool_of[index]
        most = self.pools[pool.index].state.max_seqs
        if type(seats) is not int or not 1 <= seats <= most:
            raise PolicyError(f"the autoscaler of the fleet lets {seats!r} of 1 to {most} run on replica {index}")
        if seats == self._seats[index]:
            return
        self._seats[index] = seats
        replica.at_boundary(lambda: self._sit(replica, pool, seats))
        fleet.gateway.seats[index] = seats * pool.config.parallelism.dp
        fleet.gateway.holding.ask()

    def _sit(self, replica: Replica, pool: Pool, seats: int) -> None:
        """Between two steps: a scheduler of its own where it had that of its pool, with another limit."""
        if replica.index not in self._own_schedulers:
            self._own_schedulers.add(replica.index)
            replica.use_scheduler(pool.config.engine.scheduler.create())
        scheduler: Any = replica.scheduler
        scheduler.max_seqs = seats
        for batch in replica.batches:
            batch.seats = seats
