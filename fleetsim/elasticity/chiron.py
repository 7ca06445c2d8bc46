"""Chiron: batch sizes by back-pressure on each replica, and replicas of three kinds by back-pressure of both kinds of work."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf, isfinite
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.elasticity.api import Action, FleetState, Held, PoolName, ReplicaState, Scale, Seat
from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.behaviour import Period, Seconds
from fleetsim.scaling.capacity import replica_seconds

_Share = Annotated[float, Field(gt=0, le=1, json_schema_extra={"unit": "ratio"})]
_Count = Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})]


class ChironConfig(PolicyConfig):
    """Parameters of both scalers."""

    interactive: PoolName = "interactive"
    """Pool of replicas for interactive requests."""
    mixed: PoolName = "mixed"
    """Pool of replicas for both."""
    batch: PoolName = "batch"
    """Pool of replicas for batch requests; give it `min_replicas: 0`."""
    batch_classes: tuple[str, ...] = ("batch",)
    """Classes of batch requests; all others are interactive."""
    period_s: Period = 5.0
    """Time between two looks."""
    theta: _Share = 0.6
    """Interactive back-pressure that is kept (SageServe's version; the paper has the mean load over that of bursts)."""
    grow: _Share = 0.1
    """Share by which a replica's batch size grows …"""
    grow_below: _Share = 0.95
    """… while its back-pressure is below this; both are assumptions …"""
    shrink: Annotated[float, Field(gt=0, lt=1, json_schema_extra={"unit": "ratio"})] = 0.2
    """… and share by which it shrinks while that is above 1; an assumption too."""
    smooth: _Share = 0.5
    """Weight of the last look in a replica's throughput; an assumption."""
    start_seqs: _Count | None = None
    """Batch size at the beginning; default: what the scheduler says, which is the largest."""
    group_s: Seconds = 60.0
    """Batch requests whose deadlines lie in the same span of this length wait as one group; an assumption."""
    output_tokens: Annotated[float, Field(gt=0, json_schema_extra={"unit": "tokens"})] = 256.0
    """Length of an answer that is expected until some have ended; an assumption."""


class Chiron:
    """Sets the batch size of each replica by its own back-pressure, and the number of replicas by that of the work.

    Rule, on each replica: back-pressure is the larger of its mean step time over the objective per token, and of its throughput of
    answers at the last look over that now, smoothed. The latter counts only where it had as many requests as it may run at both
    looks and where that number has grown in between: a batch that shrank is slower by itself, and would go on shrinking. Below
    `grow_below` the batch size grows by `grow`, above 1 it shrinks by `shrink`. Replicas of the pool for batch requests have the
    objective of the batch classes, if these have one of their own.

    Rule for interactive work: back-pressure is the share of interactive and mixed replicas that have interactive requests (the
    router `chiron` packs these). As many are wanted as bring it to `theta`; more at once, fewer one at a time. The pool for
    interactive requests has as many as are busy, within its bounds, the mixed pool the others.

    Rule for batch work: requests that are held at the gateway are grouped by deadline. A group waits for as long as the work of it
    and of all before it takes the batch replicas, by their predicted times and the mean length of answers so far. The fewest
    replicas are wanted with which no group waits beyond its deadline less the time to start a replica; none go before nobody is
    held any more, and then all do.

    What is charged: starts and drains as the pools say. On mixed replicas interactive requests should take the place of batch ones:
    `classes` with priorities, and `engine.order: preemptive-priority`.

    References
    ----------
    A. Patke et al., "Hierarchical Autoscaling for Large Language Model Serving with Chiron", arXiv:2501.08090; the formula of the
    interactive side as in shashwatj07/SageServe.
    """

    Config: ClassVar = ChironConfig

    def __init__(self, config: ChironConfig, rng: Generator, fleet: FleetState) -> None:
        self.period_s = config.period_s
        self._config, self._fleet = config, fleet
        for name in (config.interactive, config.mixed, config.batch):
            if name not in fleet.pools:
                raise PolicyError(f'chiron names a pool "{name}", which there is not')
        self._rates: dict[int, float] = {}
        """Tokens per second until the last look, smoothed, of replicas that were full then."""
        self._grown: set[int] = set()
        """Replicas whose batch size grew at the last look."""
        self._seats: dict[int, float] = {}
        """Batch sizes, not rounded."""
        self._tokens = 0.0
        self._answers = 0

    def tick(self) -> Sequence[Action]:
        """Batch sizes, and the numbers of replicas."""
        config, fleet = self._config, self._fleet
        for name in (config.interactive, config.mixed, config.batch):
            window = fleet.pools[name].window
            self._tokens += window.output_tokens
            self._answers += window.finished
        actions: list[Action] = []
        for name in (config.interactive, config.mixed, config.batch):
            ready = [replica for replica in fleet.replicas[name] if replica.state == "ready"]
            limit_s = self._limit_s(name)
            actions += [Seat(replica.number, self._batch_size(replica, name, limit_s)) for replica in ready]
        interactive, mixed = self._for_interactive()
        actions += [Scale(config.interactive, interactive), Scale(config.mixed, mixed)]
        actions.append(Scale(config.batch, self._for_batch()))
        return actions

    # --- each replica --------------------------------------------------------------------------------------------------

    def _limit_s(self, pool: str) -> float:
        """Objective per token of a pool's replicas."""
        classes: tuple[str | None, ...] = (None,)
        if pool == self._config.batch:
            classes = self._config.batch_classes
        return min([self._fleet.limits_of(klass)[1] for klass in classes], default=inf)

    def _batch_size(self, replica: ReplicaState, pool: str, limit_s: float) -> int:
        """Requests that it may run from now on."""
        config, most = self._config, self._fleet.pools[pool].max_seqs
        now = self._seats.setdefault(replica.number, float(min(config.start_seqs or most, most)))
        pressure = self._pressure(replica, limit_s)
        before = round(now)
        if pressure > 1.0:
            now *= 1.0 - config.shrink
        elif pressure < config.grow_below:
            now *= 1.0 + config.grow
        now = self._seats[replica.number] = min(max(now, 1.0), float(most))
        self._grown.discard(replica.number)
        if round(now) > before:
            self._grown.add(replica.number)
        return round(now)

    def _pressure(self, replica: ReplicaState, limit_s: float) -> float:
        """Local back-pressure; rounded, so that equals are equal."""
        before = self._rates.pop(replica.number, None)
        if not replica.steps:
            return 0.0
        pressure = replica.busy_s / replica.steps / limit_s
        if replica.running + replica.waiting >= replica.max_seqs and replica.output_tokens:
            rate = replica.output_tokens / self._fleet.elapsed_s
            if before is not None:
                rate = self._config.smooth * rate + (1.0 - self._config.smooth) * before
                if replica.number in self._grown:
                    pressure = max(pressure, before / rate)
            self._rates[replica.number] = rate
        return round(pressure, 6)

    # --- interactive work ----------------------------------------------------------------------------------------------

    def _for_interactive(self) -> tuple[int, int]:
        """Replicas of the pools for interactive work and for both."""
        config, fleet = self._config, self._fleet
        pools = fleet.pools[config.interactive], fleet.pools[config.mixed]
        busy = sum([self._serves(replica) for pool in pools for replica in fleet.replicas[pool.name]])
        waiting = sum([held.klass not in config.batch_classes for held in fleet.held])
        have = pools[0].wanted + pools[1].wanted
        wanted = max(ceil(busy / config.theta - 1e-9), 1 if waiting else 0, have - 1)
        first = pools[0].clip(max(busy, pools[0].wanted - 1))
        return first, pools[1].clip(wanted - first)

    def _serves(self, replica: ReplicaState) -> bool:
        """Whether a replica that takes requests has interactive ones."""
        return replica.state == "ready" and any(klass not in self._config.batch_classes for klass in replica.classes)

    # --- batch work ----------------------------------------------------------------------------------------------------

    def _for_batch(self) -> int:
        """Replicas of the pool for batch work."""
        config, fleet = self._config, self._fleet
        pool = fleet.pools[config.batch]
        held = [each for each in fleet.held if each.klass in config.batch_classes]
        if not held:
            return 0
        needed, prompts, requests = 0, 0, 0
        answer = self._tokens / self._answers if self._answers else config.output_tokens
        for deadline_s, group in _groups(held, config.group_s):
            requests += len(group)
            prompts += sum([each.prompt_tokens for each in group])
            work_s = replica_seconds(pool, requests, prompts, requests * answer, self._limit_s(config.batch))
            slack_s = max(deadline_s - fleet.now_s - pool.startup_s, config.period_s)
            if isfinite(slack_s):
                needed = max(needed, ceil(work_s / slack_s - 1e-9))
        return max(needed, pool.wanted)


def _groups(held: Sequence[Held], span_s: float) -> list[tuple[float, list[Held]]]:
    """Requests by deadline, the earliest first, each group with its earliest deadline."""
    groups: list[tuple[float, list[Held]]] = []
    for each in sorted(held, key=lambda each: each.deadline_s):
        if groups and each.deadline_s - groups[-1][0] <= span_s:
            groups[-1][1].append(each)
        else:
            groups.append((each.deadline_s, [each]))
    return groups
