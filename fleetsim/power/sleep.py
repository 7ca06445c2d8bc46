"""Replicas without requests sleep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.plugins import PolicyConfig
from fleetsim.power.api import PoolState, Row, Setting, Sleep, Wake


class SleepConfig(PolicyConfig):
    """Parameters of sleep."""

    idle_s: Annotated[float, Field(ge=0)] = 30.0
    """A replica without requests for so long may sleep: an assumption [s]."""
    awake: Annotated[int, Field(ge=0)] = 1
    """Fewest replicas of a pool that stay awake."""
    sleep_below_ratio: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Nobody sleeps unless the requests of those that would stay awake are below this share of the seats: an assumption."""
    wake_above_ratio: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Above this share of the seats of those that are awake another one wakes: an assumption."""
    period_s: Annotated[float, Field(gt=0)] = 1.0
    """Time between two looks: an assumption [s]."""


class SleepIdle:
    """Replicas without requests sleep, and wake one by one when the others fill up.

    Rule: of each pool with a `power.sleep`, one replica wakes whenever a request waits in a queue or at the gateway, or running and
    waiting requests are above `wake_above_ratio` of the seats (`max_seqs`) of those that are awake or waking; as many as requests
    wait at the gateway over the seats of one. Otherwise, replicas that have had no request for `idle_s` go to sleep while
    `awake` stay and the requests that are there take less than `sleep_below_ratio` of their seats. A replica that sleeps takes no
    requests, and draws what `power.sleep` says.

    Charged: the time to wake; the prefix cache, unless `keeps_cache`.
    """

    Config: ClassVar = SleepConfig
    needs_sleep = True

    def __init__(self, config: SleepConfig, rng: Generator, row: Row) -> None:
        self.period_s = config.period_s
        self._config = config
        self._row = row

    def tick(self) -> Sequence[Setting]:
        """What to set."""
        settings: list[Setting] = []
        for number, pool in enumerate(self._row.pools):
            if pool.sleep_w is not None:
                settings += self._of_pool(number, pool)
        return settings

    def _of_pool(self, number: int, pool: PoolState) -> Iterator[Setting]:
        config = self._config
        own = [(place, r) for place, r in enumerate(self._row.replicas) if r.pool == number]
        awake = [(place, r) for place, r in own if r.state in ("ready", "waking", "starting")]
        asleep = [place for place, r in own if r.state == "asleep"]
        waiting = sum([r.waiting for _, r in awake])
        load = sum([r.running for _, r in awake]) + waiting + pool.waiting_outside
        seats = pool.slots
        waking = any(r.state == "waking" for _, r in awake)
        full = load > config.wake_above_ratio * seats * len(awake)
        if full or pool.waiting_outside or (waiting and not waking):
            needed = max(1, -(-pool.waiting_outside // seats) - sum(r.state == "waking" for _, r in awake))
            if waking and not full:
                needed -= 1
            for place in asleep[:needed]:
                yield Wake(place)
            return
        stay = len(awake)
        for place, replica in reversed(awake):
            if stay <= config.awake or load >= config.sleep_below_ratio * seats * (stay - 1) > 0:
                return
            if replica.state == "ready" and replica.idle_s >= config.idle_s:
                stay -= 1
                yield Sleep(place)
