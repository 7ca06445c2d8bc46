"""A replica that grows and shrinks along a ladder of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import inf
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.elasticity.api import Action, Convert, FleetState, PoolName
from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.behaviour import Period, Seconds

_Share = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]


class ShapeLadderConfig(PolicyConfig):
    """Parameters of growing and shrinking; all values are assumptions."""

    pools: Annotated[tuple[PoolName, ...], Field(min_length=2)] = ("small", "large")
    """Shapes of a replica, the smallest first; `conversions` from each to its neighbours say how."""
    period_s: Period = 5.0
    """Time between two looks."""
    late_up: _Share = 0.1
    """Share of first tokens since the last look beyond the objective above which a replica grows …"""
    waiting_up: Annotated[float, Field(gt=0, json_schema_extra={"unit": "count"})] = 16.0
    """… as it does above so many waiting requests per replica …"""
    kv_up: _Share = 0.9
    """… and above this share of KV blocks in use."""
    kv_down: _Share = 0.4
    """Share of KV blocks in use below which a replica shrinks, if nobody waits and no first token was late …"""
    lasting_s: Seconds = 60.0
    """… for this long."""


class ShapeLadder:
    """Gives a replica more accelerators while it cannot keep up, and takes some away when it has too many.

    Rule: first tokens beyond the objective, waiting requests and KV use are looked at over all pools together. If any of them is
    above its threshold, a replica of the smallest shape that has one turns into the next larger one. If none waits, none was late
    and KV use is low for `lasting_s`, one of the largest turns into the next smaller one. Nothing is decided while a change is
    under way. How much KV use is low is asked of the whole, so `kv_down` should leave room for what it means in the smaller shape.

    What is charged: what the scenario's `conversions` say.

    References
    ----------
    The trigger is left open by "ElasticMoE: An Efficient Auto Scaling Method for Mixture-of-Experts Models", arXiv:2510.02613; the
    thresholds here are ours.
    """

    Config: ClassVar = ShapeLadderConfig

    def __init__(self, config: ShapeLadderConfig, rng: Generator, fleet: FleetState) -> None:
        self.period_s = config.period_s
        self._config, self._fleet = config, fleet
        self._low_since_s = inf
        for name in config.pools:
            if name not in fleet.pools:
                raise PolicyError(f'shape-ladder names a pool "{name}", which there is not')

    def tick(self) -> Sequence[Action]:
        """One step up or down the ladder, or none."""
        config, fleet = self._config, self._fleet
        pools = [fleet.pools[name] for name in config.pools]
        ready = sum([pool.ready for pool in pools])
        if not ready or any(way.under_way for way in fleet.ways.values()):
            return ()
        waiting = sum([pool.waiting + pool.waiting_outside for pool in pools])
        tokens = sum([pool.window.ttfts for pool in pools])
        late = sum([pool.window.late for pool in pools])
        used = sum([pool.kv_used_ratio * pool.ready for pool in pools]) / ready
        high = waiting > config.waiting_up * ready or late > config.late_up * tokens or used > config.kv_up
        low = not waiting and not late and used < config.kv_down
        self._low_since_s = min(self._low_since_s, fleet.now_s) if low else inf
        if high:
            return self._step(config.pools)
        if fleet.now_s - self._low_since_s >= config.lasting_s:
            self._low_since_s = inf
            return self._step(config.pools[::-1])
        return ()

    def _step(self, names: Sequence[str]) -> Sequence[Action]:
        """One replica of the first shape that has one becomes one of the next."""
        for name, following in pairwise(names):
            if self._fleet.pools[name].ready and (name, following) in self._fleet.ways:
                return (Convert(name, following),)
        return ()
