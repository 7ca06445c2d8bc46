"""Replicas that change between computing prompts and computing answers."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Annotated, ClassVar

from numpy.random import Generator
from pydantic import Field

from fleetsim.elasticity.api import Action, Convert, FleetState, PoolName
from fleetsim.errors import PolicyError
from fleetsim.plugins import PolicyConfig
from fleetsim.scaling.behaviour import Period, Seconds

_Share = Annotated[float, Field(ge=0, le=1, json_schema_extra={"unit": "ratio"})]
_Count = Annotated[int, Field(ge=1, strict=True, json_schema_extra={"unit": "count"})]


class RoleFlipsConfig(PolicyConfig):
    """Parameters of changing roles; the rules and the two decode replicas are xLLM's, the numbers are assumptions."""

    prefill: PoolName = "prefill"
    """Pool that computes prompts."""
    decode: PoolName = "decode"
    """Pool that computes answers."""
    period_s: Period = 5.0
    """Time between two looks."""
    late_ratio: _Share = 0.1
    """Share of first tokens, or of times per token, beyond their objective from which on that is not met."""
    idle_ratio: _Share = 0.2
    """Share of time with steps below which replicas for prompts are idle."""
    kv_high: _Share = 0.8
    """Share of KV blocks in use from which on replicas for answers are short of memory."""
    least_prefill: _Count = 1
    """Replicas for prompts that are always left."""
    least_decode: _Count = 2
    """Replicas for answers that are always left."""
    dwell_s: Seconds = 10.0
    """Time between two flips."""


class RoleFlips:
    """Moves replicas between the pools for prompts and for answers, to where the objective is missed.

    Rule: the side for prompts is short if more than `late_ratio` of the first tokens since the last look were late, or if what
    waits will be by the predicted prefill times. The side for answers is short if more than `late_ratio` of the requests that
    ended were slow, or more than `kv_high` of its memory is in use. If only the first is short, a replica for answers turns; if
    only the second is, or the prompts' replicas are idle while memory for answers is short, one for prompts does. Nothing changes
    within `dwell_s` of a flip, nor while one is under way. The scenario's `conversions` between both pools say what a flip takes:
    with `requests: wait` a replica ends what it has, and turns without weights being loaded, as xLLM's stateless instances do.

    What is charged: the work that the old role still has, and the time that the conversion says. The new replica's prefix cache is
    empty.

    References
    ----------
    "xLLM Technical Report", arXiv:2510.14686, section on dynamic disaggregation.
    """

    Config: ClassVar = RoleFlipsConfig

    def __init__(self, config: RoleFlipsConfig, rng: Generator, fleet: FleetState) -> None:
        self.period_s = config.period_s
        self._config, self._fleet = config, fleet
        self._flipped_s = -inf
        for name in (config.prefill, config.decode):
            if name not in fleet.pools:
                raise PolicyError(f'role-flips names a pool "{name}", which there is not')

    def tick(self) -> Sequence[Action]:
        """One flip, or none."""
        config, fleet = self._config, self._fleet
        if fleet.now_s - self._flipped_s < config.dwell_s or any(way.under_way for way in fleet.ways.values()):
            return ()
        prefill, decode = fleet.pools[config.prefill], fleet.pools[config.decode]
        prompts, answers = self._prompts_short(), self._answers_short()
        idle = prefill.busy_ratio < config.idle_ratio and not prefill.waiting
        if prompts and not answers and decode.ready > config.least_decode:
            return self._flip(config.decode, config.prefill)
        if answers and (idle or not prompts) and prefill.ready > config.least_prefill:
            return self._flip(config.prefill, config.decode)
        return ()

    def _flip(self, source: str, target: str) -> Sequence[Action]:
        if (source, target) not in self._fleet.ways:
            return ()
        self._flipped_s = self._fleet.now_s
        return (Convert(source, target),)

    def _prompts_short(self) -> bool:
        """Whether first tokens are late, or will be."""
        pool, window = self._fleet.pools[self._config.prefill], self._fleet.pools[self._config.prefill].window
        if window.ttfts and window.late > self._config.late_ratio * window.ttfts:
            return True
        if not window.arrivals:
            return False
        wait_s = (
            (pool.waiting + pool.waiting_outside)
            / max(pool.ready, 1)
            * pool.prefill_s(window.prompt_tokens / window.arrivals)
        )
        return wait_s > pool.ttft_limit_s

    def _answers_short(self) -> bool:
        """Whether answers are slow, or memory for them runs out."""
        pool = self._fleet.pools[self._config.decode]
        slow = pool.window.tpots and pool.window.slow > self._config.late_ratio * pool.window.tpots
        return bool(slow) or pool.kv_used_ratio > self._config.kv_high
